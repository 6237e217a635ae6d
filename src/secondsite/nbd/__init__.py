"""The Network Block Device protocol: client and server."""
