"""Where a person's way to the server is kept: its address, a token, the authority to know it by.

    ~/.config/secondsite/client.json   mode 0600: it holds the token

The variable SECONDSITE_CLIENT names another file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS

FILE_BYTES_MAX = 256 * 1024
VARIABLE = "SECONDSITE_CLIENT"


class NotLoggedIn(SecondsiteError):
    """No file, no token."""

    code = "client.not-logged-in"
    outcome = Outcome.USAGE
    happened = "There is no log-in: {path} is not there."
    cause = "No command has logged in as this user yet, or SECONDSITE_CLIENT names another file."
    action = "Log in once: `secondsite login --server https://HOST --token-file FILE`."


class LoginReadable(SecondsiteError):
    """A token others can read is no secret."""

    code = "client.login-readable"
    outcome = Outcome.REFUSED
    happened = "The log-in in {path} is not used: others than its owner can read it (mode {mode})."
    cause = "The file was copied, or made by hand."
    action = "Run `chmod 600 {path}`, and replace its token if others may have read it."


class Login(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The file's content. authority: PEM; empty: the system's own authorities."""

    server: str
    token: str
    authority: str = ""

    def __repr__(self) -> str:
        return f"Login({self.server})"


def login_path() -> Path:
    """The file of this user."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "secondsite" / "client.json"


def save_login(login: Login, path: Path | None = None) -> Path:
    """Keep a log-in, readable for its owner only; replaces the one before."""
    path = path or login_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, msgspec.json.format(msgspec.json.encode(login)) + b"\n", mode=0o600)
    return path


def load_login(path: Path | None = None) -> Login:
    """The log-in of this user. Raises NotLoggedIn, LoginReadable or InvalidInput."""
    path = path or login_path()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = read_limited(path, size_bytes_max=FILE_BYTES_MAX)
    except FileNotFoundError:
        raise NotLoggedIn(path=path) from None
    if mode & 0o077:
        raise LoginReadable(path=path, mode=f"{mode:04o}")
    try:
        return msgspec.json.decode(data, type=Login)
    except JSON_ERRORS as error:
        raise InvalidInput(what=f"the log-in {path}", why=str(error)) from None


def forget_login(path: Path | None = None) -> None:
    """Remove the file; absent is fine."""
    remove_file(path or login_path())
