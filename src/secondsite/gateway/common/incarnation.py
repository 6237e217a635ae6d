"""Which life of its server a gateway obeys: the highest it has met, also after a restart.

    DIRECTORY/incarnation.json    version, number, signature, told: beside the enrolment's other files

One object a directory and process, because every connection to the server must judge by the same number.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.transfer.incarnation import ShownIncarnation

NAME = "incarnation.json"
VERSION = 1
FILE_BYTES_MAX = 4096


class TwoServers(SecondsiteError):
    """An earlier life of the server answers."""

    code = "server.two-servers"
    outcome = Outcome.REFUSED
    happened = "{server} is incarnation {found} of the server; this gateway obeys incarnation {known}."
    cause = "The server was restored from a backup, and the original is still there or came back."
    action = "Stop the original; see RUNBOOK.md, server lost. Replication goes on."


class _File(msgspec.Struct, frozen=True):
    version: int
    number: int
    signature: str = ""
    told: int = 0  # the incarnation that was given our revocation list


class Incarnations:
    """The highest incarnation met. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._lock = threading.Lock()
        self._known = self._read()

    @property
    def number(self) -> int:
        """The one that is obeyed; 0: none was met yet."""
        return self._known.number

    @property
    def shown(self) -> ShownIncarnation:
        """What every request shows."""
        return ShownIncarnation(self._known.number, self._known.signature)

    @property
    def untold(self) -> bool:
        """Whether the one that is obeyed has not been given our revocation list."""
        return self._known.told < self._known.number

    def met(self, server: str, said: ShownIncarnation) -> None:
        """A server answered as this incarnation (0: it says none).

        Raises TwoServers when it is a lower one than was met before: nothing of its answer counts.
        """
        number = said.number
        with self._lock:
            known = self._known.number
            if number == known or not number:
                return
            if number < known:
                self._known = self._read()  # enrolled anew with another server, by hand
                if number < self._known.number:
                    raise TwoServers(server=server, found=number, known=known)
                if number == self._known.number:
                    return
            self._write(_File(VERSION, number, said.signature, self._known.told))

    def told(self) -> None:
        """The one that is obeyed has our revocation list."""
        with self._lock:
            self._write(msgspec.structs.replace(self._known, told=self._known.number))

    def _write(self, found: _File) -> None:
        replace_file(self._path, msgspec.json.encode(found), mode=0o644)
        self._known = found

    def _read(self) -> _File:
        try:
            found = msgspec.json.decode(read_limited(self._path, size_bytes_max=FILE_BYTES_MAX), type=_File)
        except FileNotFoundError:
            return _File(VERSION, 0)
        except JSON_ERRORS:
            return _File(VERSION, 0)  # learnt anew from the server that is met next
        return found


def forget_incarnation(directory: Path) -> None:
    """A person has enrolled here: whichever server it was with is the one from now on."""
    remove_file(directory / NAME)


_opened: dict[Path, Incarnations] = {}
_opening = threading.Lock()


def incarnations(directory: Path) -> Incarnations:
    """The one object of an enrolment's directory."""
    key = directory.resolve()
    with _opening:
        return _opened.setdefault(key, Incarnations(key))
