"""What the control API says, errors among it; shared by its server, its client and the gateway's server."""
