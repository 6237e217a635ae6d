"""The vault key, data keys of disks, their rotation, and the proof that a recovery key exists elsewhere."""
