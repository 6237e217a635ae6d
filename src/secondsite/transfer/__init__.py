"""From the spool at one site to the listener at the other, over mutual TLS."""
