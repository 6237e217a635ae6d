"""The data path at one site: capture, ship, receive, serve, recover."""
