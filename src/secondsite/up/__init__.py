"""``secondsite up``: a server and a gateway on one machine, nothing to configure, and their supervisor."""
