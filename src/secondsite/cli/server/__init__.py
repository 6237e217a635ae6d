"""Commands to a server: who is who, what the sites have, jobs, events, and the server's own life."""
