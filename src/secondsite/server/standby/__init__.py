"""A second server that waits: follows the active one's state, and takes over when a person says so."""
