"""The revisions, one a file, each on the one before."""
