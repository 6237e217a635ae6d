"""The server's HTTP API: the frame around every request, the error model, the routes, the TLS listener."""
