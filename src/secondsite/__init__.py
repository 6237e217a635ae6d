"""secondsite: self-hosted site recovery. A replica is a base plus a journal; a point is a position in it."""

__version__ = "0.1.0"
