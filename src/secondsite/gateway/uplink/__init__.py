"""Everything between a gateway and the server it belongs to. The gateway opens all of it."""
