"""Addresses that do not leave this machine."""

from __future__ import annotations

import ipaddress

from secondsite.base.errors import InvalidInput


def loopback(listen: str) -> tuple[str, int]:
    """The address in `HOST:PORT`, which must not leave this machine. Raises InvalidInput."""
    host, _, port = listen.rpartition(":")
    what = f"metrics.listen {listen!r}"
    try:
        inside = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        raise InvalidInput(what=what, why="it is not ADDRESS:PORT") from None
    if not inside:
        why = "it is not of the loopback interface; put a proxy with TLS before it to be asked from elsewhere"
        raise InvalidInput(what=what, why=why)
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise InvalidInput(what=what, why="its port is not a number below 65536")
    return host.strip("[]"), int(port)
