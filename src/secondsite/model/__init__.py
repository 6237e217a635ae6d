"""Nouns and decisions without I/O: identities, extents, machines, points, events."""
