"""The server outlives its machine: backups, restores, incarnations, rebuilding from the stores."""
