"""A typed client of the server's API, for commands and for programs: `ServerClient`."""
