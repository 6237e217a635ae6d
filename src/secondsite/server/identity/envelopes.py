"""Secrets at rest: each in an envelope under the master key, bound to the place it lies at.

The associated data names table, row and column, so that an envelope copied elsewhere in the database does not
open there. The master key lies in a file of mode 0600 beside no database: whoever copies the database alone
has no secret of it. Every server of one database needs the same file.

    offset  size  field
    0       1     version, 1
    1       3     zero
    4       8     the master key's id: the first bytes of a hash of it
    12      12    nonce, random
    24      n     sealed with AES-256-GCM, tag of 16 bytes at the end
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import create_file, read_limited

KEY_BYTES = 32
HEADER = struct.Struct("<B3x8s12s")
VERSION = 1
NONCE_BYTES = 12
PLAIN_BYTES_MAX = 64 * 1024
FILE_HEAD = "secondsite master key, version 1"
FILE_BYTES_MAX = 4096


class MasterKeyUnusable(SecondsiteError):
    """The file is there and is not to be used as it is."""

    code = "secrets.master-key-unusable"
    outcome = Outcome.REFUSED
    happened = "The master key {path} is not used: {why}."
    cause = "The file was edited, copied without its mode, or is not a master key."
    action = (
        "Put the file back from its copy, owned by the server's user with mode 0600. Nothing was changed."
    )


class MasterKeyMissing(SecondsiteError):
    """There are secrets, but not what opens them."""

    code = "secrets.master-key-missing"
    outcome = Outcome.REFUSED
    happened = "The database holds secrets, and their master key {path} is not there."
    cause = "The database was moved or restored without the file, or a second server was started without it."
    action = "Put the master key beside the configuration again (copy it from another server or a backup)."


class EnvelopeUnopened(SecondsiteError):
    """Another master key, another place, or damage."""

    code = "secrets.envelope-unopened"
    outcome = Outcome.DAMAGED
    happened = "The secret at {place} does not open: {why}."
    cause = "The database and the master key do not belong together, or the row was changed or moved by hand."
    action = (
        "Start the server with the master key its database was made with, or restore both from one backup."
    )


@dataclass(frozen=True)
class Place:
    """Where an envelope lies."""

    table: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}/{self.row}/{self.column}"

    def bound(self) -> bytes:
        """As associated data: each part with its length, so that no two places read the same."""
        parts = (part.encode() for part in (self.table, self.row, self.column))
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)


@dataclass(frozen=True)
class MasterKey:
    """Opens every secret of one database."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> bytes:
        """8 bytes that tell master keys apart and say nothing of them."""
        return hashlib.sha256(b"secondsite master key id" + self.secret).digest()[:8]

    def seal(self, place: Place, plain: bytes) -> bytes:
        """The envelope for `plain` at `place`."""
        assert len(plain) <= PLAIN_BYTES_MAX
        nonce = os.urandom(NONCE_BYTES)
        head = HEADER.pack(VERSION, self.id, nonce)
        return head + AESGCM(self._sealing_key()).encrypt(nonce, plain, head + place.bound())

    def open(self, place: Place, envelope: bytes) -> bytes:
        """What `seal` was given. Raises EnvelopeUnopened."""
        if len(envelope) < HEADER.size or envelope[0] != VERSION:
            raise EnvelopeUnopened(place=place, why="it is of a version this server does not know")
        head, sealed = envelope[: HEADER.size], envelope[HEADER.size :]
        _, key, nonce = HEADER.unpack(head)
        if key != self.id:
            why = f"it was sealed with master key {key.hex()}, this server has {self.id.hex()}"
            raise EnvelopeUnopened(place=place, why=why)
        try:
            return AESGCM(self._sealing_key()).decrypt(nonce, sealed, head + place.bound())
        except InvalidTag:
            raise EnvelopeUnopened(place=place, why="it was changed, or belongs elsewhere") from None

    def derive(self, purpose: str) -> bytes:
        """32 bytes for another use, the same at every server with this master key."""
        return HKDF(
            algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"secondsite {purpose}".encode()
        ).derive(self.secret)

    def _sealing_key(self) -> bytes:
        return self.derive("envelopes 1")


def open_master_key(path: Path, *, create: bool) -> MasterKey:
    """The master key of a file; made at the first start.

    create: whether to make one when there is none; False once a database holds secrets.

    Raises:
        MasterKeyMissing: none is there and none may be made.
        MasterKeyUnusable: others can read the file, or it does not parse.
    """
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = f"{FILE_HEAD}\n{secrets.token_hex(KEY_BYTES)}\n"
        create_file(path, text.encode(), mode=0o600)  # two servers at once: the first one's counts
    try:
        data = read_limited(path, size_bytes_max=FILE_BYTES_MAX)
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise MasterKeyMissing(path=path) from None
    if mode & 0o077:
        raise MasterKeyUnusable(path=path, why=f"its mode is {mode:04o}: others than its owner can read it")
    lines = data.decode(errors="replace").split("\n")
    secret = b""
    with contextlib.suppress(ValueError):
        secret = bytes.fromhex(lines[1]) if len(lines) == 3 else b""
    if lines[0] != FILE_HEAD or len(secret) != KEY_BYTES:
        raise MasterKeyUnusable(path=path, why="it does not parse")
    return MasterKey(secret)
