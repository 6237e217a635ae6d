"""Commands to one gateway, over its control socket. They work without any server."""
