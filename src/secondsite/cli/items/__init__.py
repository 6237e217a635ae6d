"""``secondsite item``: what is protected through a server, and all that may be asked of it."""
