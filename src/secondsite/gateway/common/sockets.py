"""Unix sockets have little room for their names: checked before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

from secondsite.base.errors import Outcome, SecondsiteError

# sun_path holds 108 bytes with its terminator (unix(7)).
SOCKET_PATH_BYTES_MAX = 107


class SocketPathTooLong(SecondsiteError):
    """The kernel has no room for the name."""

    code = "socket.path-too-long"
    outcome = Outcome.USAGE
    happened = "The socket {path} cannot be made: its path is longer than 107 bytes."
    cause = "Unix sockets have a fixed room for their path."
    action = "Choose a directory with a shorter path, e.g. below /run."


def check_socket_path(path: Path) -> None:
    """Raise SocketPathTooLong when the kernel has no room for it."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise SocketPathTooLong(path=path)
