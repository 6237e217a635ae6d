"""The file a vault key lives in: version 1 holds one key, version 2 also the keys it took the place of.

ASCII, one field a line. Version 1 is what `secondsite key create` makes; version 2 is made by a rotation, so
that one file opens all that was ever sealed. The retired keys are one sealed box under the new key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.journal.box import KEY_BYTES, derive, open_box, seal_box
from secondsite.journal.errors import KeyFileInvalid
from secondsite.journal.format import BOX_RETIRED_KEYS
from secondsite.model.ids import KeyId

HEAD_1 = "secondsite vault key, version 1"
HEAD_2 = "secondsite vault key, version 2"
FILE_BYTES_MAX = 16 * 1024
# Each has about 200 bytes in the file; whoever rotates every month has two years of points at the most.
RETIRED_MAX = 32


@dataclass(frozen=True)
class RetiredKey:
    """A key another one took the place of: it opens what was sealed with it, and seals nothing any more."""

    id: KeyId
    generation: int  # the first key of a vault is 1
    secret: bytes = field(repr=False)
    retired_at: str = ""  # RFC 3339 UTC: when the key that took its place was made


@dataclass(frozen=True)
class KeyFile:
    """What a key file holds."""

    id: KeyId
    secret: bytes = field(repr=False)
    generation: int = 1
    retired: tuple[RetiredKey, ...] = ()  # the newest first


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A retired key in the box."""

    generation: int
    id: str
    secret: str  # hexadecimal
    retired_at: str


def key_id_of(secret: bytes) -> KeyId:
    """The id of a vault key: follows from its 32 bytes and gives nothing away."""
    return KeyId(derive(secret, b"", b"vault key id", 16).hex())


def encode_key_file(key: KeyFile, randomness: Callable[[int], bytes]) -> bytes:
    """The file's content: version 1 for the first key of a vault, version 2 for every later one."""
    body = base64.b64encode(key.secret).decode()
    if key.generation == 1:
        return f"{HEAD_1}\nid: {key.id}\nkey: {body}\nchecksum: {_checksum_1(key.id, body)}\n".encode()
    rows = [_Row(old.generation, old.id, old.secret.hex(), old.retired_at) for old in key.retired]
    plain = msgspec.json.encode(rows)
    box = seal_box(BOX_RETIRED_KEYS, key.id, key.secret, plain, randomness=randomness)
    retired = base64.b64encode(box).decode()
    text = f"{HEAD_2}\nid: {key.id}\ngeneration: {key.generation}\nkey: {body}\nretired: {retired}\n"
    return f"{text}checksum: {_checksum_2(text)}\n".encode()


def decode_key_file(path: Path, data: bytes) -> KeyFile:
    """Read a file's content, of either version. Raises KeyFileInvalid, which names `path`."""
    try:
        text = data.decode("ascii").replace("\r\n", "\n")
        lines = text.splitlines()
        head = lines[0].strip() if lines else ""
        if head not in (HEAD_1, HEAD_2):
            raise KeyFileInvalid(path=path, why=f"its first line is not {HEAD_1!r} or {HEAD_2!r}")
        fields = dict(line.strip().split(": ", 1) for line in lines[1:] if line.strip())
        identity, body, given = fields["id"].strip(), fields["key"].strip(), fields["checksum"].strip()
        if head == HEAD_1:
            right = given == _checksum_1(identity, body)
        else:
            kept = f"{HEAD_2}\nid: {identity}\ngeneration: {fields['generation'].strip()}\nkey: {body}\n"
            right = given == _checksum_2(f"{kept}retired: {fields['retired'].strip()}\n")
        if not right:
            raise KeyFileInvalid(path=path, why="the checksum does not fit the key")
        secret = base64.b64decode(body, validate=True)
        if len(secret) != KEY_BYTES or key_id_of(secret) != identity:
            raise KeyFileInvalid(path=path, why="the id does not fit the key")
        if head == HEAD_1:
            return KeyFile(key_id_of(secret), secret)
        box = base64.b64decode(fields["retired"].strip(), validate=True)
        return _with_retired(path, secret, int(fields["generation"]), box)
    except (UnicodeDecodeError, ValueError, KeyError, binascii.Error):
        raise KeyFileInvalid(path=path, why="it has no id, key and checksum lines") from None


def _with_retired(path: Path, secret: bytes, generation: int, box: bytes) -> KeyFile:
    identity = key_id_of(secret)
    try:
        plain = open_box(BOX_RETIRED_KEYS, identity, secret, box, what="the retired keys")
        rows = msgspec.json.decode(plain, type=list[_Row])
        retired = tuple(
            RetiredKey(KeyId(row.id), row.generation, bytes.fromhex(row.secret), row.retired_at)
            for row in rows
        )
    except (SecondsiteError, ValueError, *JSON_ERRORS) as error:
        raise KeyFileInvalid(path=path, why=f"its retired keys do not open: {error}") from None
    generations = [generation, *(key.generation for key in retired)]
    falling = all(a > b for a, b in itertools.pairwise(generations))
    fit = all(len(key.secret) == KEY_BYTES and key_id_of(key.secret) == key.id for key in retired)
    if not (falling and fit and generations[-1] >= 1 and generation > 1):
        raise KeyFileInvalid(path=path, why="its retired keys contradict themselves")
    return KeyFile(identity, secret, generation, retired)


def _checksum_1(identity: str, body: str) -> str:
    return hashlib.sha256(f"{identity} {body}".encode()).hexdigest()[:16]


def _checksum_2(text: str) -> str:
    """Of all the lines before it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
