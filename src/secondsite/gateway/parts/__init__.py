"""A gateway's parts, made from its configuration: as a target, as a source, as a server's own."""
