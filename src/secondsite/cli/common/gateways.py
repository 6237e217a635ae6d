"""What commands share: how they reach a gateway, and how words become values."""

from __future__ import annotations

import getpass
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient

DEFAULT_SOCKET = Path("/run/secondsite/gateway.sock")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?\Z")
_UNIT_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@Parameter(name="*")
@dataclass(frozen=True)
class Reach:
    """Which gateway a command talks to."""

    gateway: Annotated[Path, Parameter(env_var="SECONDSITE_GATEWAY")] = DEFAULT_SOCKET
    """Control socket of the gateway to talk to."""

    def open(self) -> GatewayClient:
        """A client of that gateway; a context manager."""
        from secondsite.gateway.control.client import GatewayClient

        return GatewayClient(self.gateway)


@Parameter(name="*")
@dataclass(frozen=True)
class Listing:
    """How a listing is printed."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON instead of a table."""


REACH = Reach()
LISTING = Listing()


def parse_pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``["A=B", ...]`` as a dictionary. Raises InvalidInput naming the option."""
    pairs: dict[str, str] = {}
    for text in texts or []:
        left, separator, right = text.partition("=")
        if not (left and separator and right):
            raise InvalidInput(what=f"{option} {text!r}", why="it is not of the form THERE=HERE")
        if pairs.setdefault(left, right) != right:
            raise InvalidInput(what=f"{option} {text!r}", why=f"{left} is mapped twice")
    return pairs


def parse_duration(text: str, option: str) -> float:
    """``5s``, ``1.5m``, ``2h`` or plain seconds, as seconds. Raises InvalidInput naming the option."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise InvalidInput(what=f"{option} {text!r}", why="it is not a duration like 5s, 2m or 1h")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def whoami() -> str:
    """Who runs the command, for records: the user behind sudo where there is one."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"
