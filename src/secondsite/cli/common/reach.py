"""How commands reach the server, and what those that ask for secrets share."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient

SECRET_BYTES_MAX = 4096


@Parameter(name="*")
@dataclass(frozen=True)
class ServerReach:
    """Which server a command talks to."""

    login: Annotated[Path | None, Parameter(env_var="SECONDSITE_CLIENT")] = None
    """File of another log-in than this user's own (`secondsite login`)."""

    def open(self) -> ServerClient:
        """A client of that server; a context manager."""
        from secondsite.client.client import ServerClient
        from secondsite.client.login import load_login

        return ServerClient.of(load_login(self.login))


SERVER_REACH = ServerReach()


def read_secret(file: Path) -> str:
    """The first line of a file that holds a secret. Raises InvalidInput."""
    what = f"the file {file}"
    try:
        with file.open() as opened:  # also /dev/stdin, which has no size
            text = opened.read(SECRET_BYTES_MAX)
    except FileNotFoundError:
        raise InvalidInput(what=what, why="there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(what=what, why=str(error)) from None
    line = text.split("\n", 1)[0].strip("\r")
    if not line:
        raise InvalidInput(what=what, why="its first line is empty")
    return line


def ask_password(file: Path | None, *, whose: str, twice: bool) -> str:
    """A password from a file, or typed without being shown; never from the command line."""
    if file is not None:
        return read_secret(file)
    if not sys.stdin.isatty():
        raise InvalidInput(what="the password", why="there is no terminal to ask at; give --password-file")
    password = getpass.getpass(f"Password of {whose}: ")
    if twice and getpass.getpass("Once more: ") != password:
        raise InvalidInput(what="the password", why="the two are not the same")
    return password
