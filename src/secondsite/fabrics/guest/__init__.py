"""What a recovered machine's guest is given to take other addresses: a small read-only drive."""
