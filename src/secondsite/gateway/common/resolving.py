"""Whether names have addresses, asked as every connection of this process asks: hosts file, then DNS.

An address is no name and is not looked up. A DNS server that says nothing is not waited for.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping

from secondsite.base.clock import Clock

Resolve = Callable[[str], object]  # raises OSError, UnicodeError
# What hosts say of names that do not resolve, each as: what it is, the name, why.
Unresolved = Callable[[], tuple[str, ...]]
# glibc gives a server 5 s by itself and asks each twice (resolv.conf(5)); a person waits for this look.
RESOLVE_SECONDS = 3.0


def by_this_host(name: str) -> object:
    """The addresses of a name. Raises OSError, UnicodeError."""
    return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)


def unresolved(hosts: Mapping[str, str], clock: Clock, *, resolve: Resolve = by_this_host) -> tuple[str, ...]:
    """Why names do not resolve, one line each. hosts: what it is ("gateway gateway-b") -> name or address."""
    names = sorted({host for host in hosts.values() if not _is_address(host)})
    why: dict[str, str] = {}

    def look(name: str) -> None:
        try:
            resolve(name)
        except (OSError, UnicodeError) as error:
            why[name] = (error.strerror if isinstance(error, OSError) else "") or str(error)
        else:
            why[name] = ""

    # a look-up cannot be interrupted, and must not keep the process from ending
    looks = [threading.Thread(target=look, args=(name,), name="resolve", daemon=True) for name in names]
    for one in looks:
        one.start()
    until = clock.monotonic() + RESOLVE_SECONDS
    for one in looks:
        one.join(max(0.0, until - clock.monotonic()))
    silent = f"no DNS server answered within {RESOLVE_SECONDS:.0f} s"
    found = [(what, host, why.get(host, silent)) for what, host in sorted(hosts.items()) if host in names]
    return tuple(f"{what} ({host}): {reason}" for what, host, reason in found if reason)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True
