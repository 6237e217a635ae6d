"""A row of the audit log and the chain of digests, at the server and for whoever checks an export. Pure.

A row's digest is SHA-256 over a JSON array of the digest before it and its own fields. Its seal is an HMAC of
number and digest with a key derived from the server's master key: who has only an export, or only the
database, cannot make one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from secondsite.base.errors import Outcome, SecondsiteError

FIRST_DIGEST = "0" * 64
# For deriving the seals' key from the master key.
SEAL_PURPOSE = "audit 1"
# The longest row there is: its detail has a dozen texts of some hundred characters.
LINE_BYTES_MAX = 256 * 1024


class ExportDamaged(SecondsiteError):
    """Somebody changed what must not change."""

    code = "audit.export-damaged"
    outcome = Outcome.DAMAGED
    happened = "The export does not hold at row {number}: {why}."
    cause = "Rows were changed, removed or added after it was made, or it was cut off while it was written."
    action = "Export again (`secondsite audit export`), and find out who had the file in their hands."


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One row, as it is exported."""

    number: int
    at: str
    actor: str
    via: str
    address: str
    request: str
    operation: str
    vault: str
    target: str
    outcome: str
    detail: dict[str, str | int | bool | None]
    digest: str = ""
    seal: str = ""

    def hashed(self, before: str) -> str:
        """SHA-256, in hexadecimal, over a JSON array of the digest before and the fields in order."""
        fields = [before, *(getattr(self, name) for name in self.__struct_fields__[:-2])]
        return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def seal(key: bytes, number: int, digest: str) -> str:
    """The seal of a row. key: 32 bytes derived for SEAL_PURPOSE."""
    return hmac.digest(key, f"{number}:{digest}".encode(), "sha256").hex()


@dataclass(frozen=True)
class ExportHolds:
    """An export whose rows follow each other. sealed: the seals were checked, too."""

    entries: int
    digest: str  # of the last row: what the server says of that number must be the same
    sealed: bool


def check_export(
    lines: Iterable[bytes], *, anchor: tuple[int, str] | None = None, key: bytes | None = None
) -> ExportHolds:
    """Check an export's lines, the first row being number 1. Raises ExportDamaged at the first that is wrong.

    anchor: a number and its digest, known from elsewhere; without one a cut end is not seen. key: the seals'.
    """
    number, digest = 0, FIRST_DIGEST
    for line in lines:
        entry = _parsed(line, number + 1)
        if entry.number != number + 1:
            raise ExportDamaged(number=number + 1, why=f"number {entry.number} stands there")
        number, digest = entry.number, entry.hashed(digest)
        if digest != entry.digest:
            raise ExportDamaged(number=number, why="the row, or one before it, was changed")
        if key is not None and not hmac.compare_digest(entry.seal, seal(key, number, digest)):
            raise ExportDamaged(number=number, why="its seal is not this server's")
        if anchor is not None and anchor[0] == number and anchor[1] != digest:
            raise ExportDamaged(number=number, why="it is not the row that was there once")
    if anchor is not None and anchor[0] > number:
        raise ExportDamaged(number=number + 1, why=f"number {anchor[0]} was there once, and is gone")
    return ExportHolds(number, digest, key is not None)


def _parsed(line: bytes, number: int) -> Entry:
    if len(line) > LINE_BYTES_MAX:
        raise ExportDamaged(number=number, why="the line is longer than any row")
    if not line.endswith(b"\n"):
        raise ExportDamaged(number=number, why="the line is cut off")
    try:
        entry = msgspec.json.decode(line, type=Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ExportDamaged(number=number, why=f"it does not parse ({error})") from None
    return entry
