"""What every part of a gateway stands on: configuration, files, what it was told to do, events."""
