"""Connections that are kept between requests, which their other end may have closed meanwhile."""

from __future__ import annotations

import http.client
import select


def drop_if_closed(connection: http.client.HTTPConnection) -> None:
    """Let the next request connect anew if the kept connection is of no use any more.

    Servers close what is idle for some seconds: a request sent on that gets no answer, and whether it may be
    sent again nobody knows. Between two answers there is nothing to read from a server, so what can be read
    is the end of the connection (urllib3's `is_connection_dropped` looks the same way).
    """
    if connection.sock is None:
        return
    poll = select.poll()  # not select(): a descriptor's number may be above 1024
    poll.register(connection.sock, select.POLLIN)
    if poll.poll(0):
        connection.close()
