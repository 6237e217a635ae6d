"""Whether a gateway can listen where it is told to, and who is in the way if it cannot.

Linux names the holder of a port in two steps: /proc/net/tcp{,6} give the inode of the listening socket
(proc(5)), and the process that has it open has it among its /proc/PID/fd. Without root only one's own
processes show.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.errors import Outcome, SecondsiteError

_PROC = Path("/proc")
_LISTENING = "0A"  # TCP_LISTEN of the kernel's enum
_SOCKET = re.compile(r"socket:\[(\d+)\]\Z")
COMMAND_CHARACTERS_MAX = 120


class PortHeld(SecondsiteError):
    """Somebody else listens there."""

    code = "gateway.port-held"
    outcome = Outcome.REFUSED
    happened = "The gateway cannot listen on {where}: the port is in use."
    cause = "{holder} listens there."
    action = (
        "Stop it, or give the gateway another port: `[listen] port` in its configuration, and in that of the "
        "gateways that reach it. `secondsite gateway check-port --port N` tells whether one is free."
    )


class PortRefused(SecondsiteError):
    """The operating system does not let it listen there."""

    code = "gateway.port-refused"
    outcome = Outcome.REFUSED
    happened = "The gateway cannot listen on {where}: {why}."
    cause = "{cause}"
    action = (
        "Correct `[listen]` in the gateway's configuration; `secondsite gateway check-port` tries it again."
    )


@dataclass(frozen=True)
class Holder:
    """A process that listens on a port."""

    pid: int
    command: str

    def text(self) -> str:
        """For people."""
        return f"Process {self.pid} ({self.command})"


def check_port(host: str, port: int) -> None:
    """Bind to it for a moment, as the gateway does. Raises PortHeld or PortRefused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def cannot_listen(host: str, port: int, error: OSError) -> PortHeld | PortRefused:
    """Why a listener could not be made, with its cause and what to do."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        found = holder(host, port)
        unseen = "Another process, which only root may see (run `secondsite gateway check-port` as root),"
        return PortHeld(where=where, holder=found.text() if found is not None else unseen)
    why, cause = error.strerror or str(error), "The address cannot be used on this machine."
    if error.errno == errno.EADDRNOTAVAIL:
        cause = f"No network interface of this machine has the address {host}, or not yet."
    elif error.errno in {errno.EACCES, errno.EPERM}:
        cause = f"Ports below {_first_free_for_all()} are for root, or for who has CAP_NET_BIND_SERVICE."
    elif isinstance(error, socket.gaierror):
        cause = f"{host} is neither an address nor a name that this machine can resolve."
    return PortRefused(where=where, why=why, cause=cause)


def holder(host: str, port: int) -> Holder | None:
    """Who listens there; None when it cannot be seen."""
    inodes = set(_listening(host, port))
    if not inodes:
        return None
    for directory in _PROC.iterdir():
        if directory.name.isdecimal() and inodes & set(_sockets(directory)):
            return Holder(int(directory.name), _command(directory))
    return None


def _listening(host: str, port: int) -> Iterator[str]:
    """Inodes of sockets whose listening keeps others from listening there."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if fields[3] == _LISTENING and int(number, 16) == port and _meet(host, _address(address)):
                    yield fields[9]


def _address(text: str) -> str:
    """An address as the kernel writes it: 32-bit words, each in this machine's byte order."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _meet(wanted: str, held: str) -> bool:
    if ipaddress.ip_address(held).is_unspecified:
        return True
    try:
        asked = ipaddress.ip_address(wanted)
    except ValueError:
        return True  # a name: any holder of the port tells something
    return asked.is_unspecified or asked == ipaddress.ip_address(held)


def _sockets(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it ended, or it is not ours to look into
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = _SOCKET.match(str(entry.readlink()))
                if found is not None:
                    yield found[1]


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        name = " ".join(word.decode(errors="replace") for word in words if word)
    except OSError:
        name = ""
    shown = "".join(letter for letter in name if letter.isprintable())
    return shown[:COMMAND_CHARACTERS_MAX] or "without a name"


def _first_free_for_all() -> int:
    try:
        return int((_PROC / "sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def is_ours(found: Holder) -> bool:
    """Whether the holder is a gateway of secondsite: then all is well."""
    words = found.command.split()
    return "gateway" in words and any("secondsite" in word for word in words) and found.pid != os.getpid()
