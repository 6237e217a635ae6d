"""The secondsite command: one function a command."""
