"""A backup of a server's state as a file: sealed frames between a header and an end mark.

    header, 96 bytes
    offset  size  field
    0       4     magic SSBK
    4       1     version, 1
    5       3     zero
    8       16    the backup's id
    24      8     the master key's id, as in envelopes
    32      32    salt, random
    64      8     when it was made, microseconds since 1970
    72      8     the server's incarnation
    80      16    the server's id

    frame, 8 bytes and what is sealed
    0       4     length n of what is sealed, tag of 16 bytes included
    4       4     flags: 1 = the last one
    8       n     sealed with AES-256-GCM: zlib of at most 1 MiB of the lines

    end mark, 48 bytes
    0       4     magic SSBE
    4       4     number of frames
    8       8     bytes before the end mark
    16      32    SHA-256 of all bytes before the end mark

The key is HKDF-SHA256 with salt and "secondsite server backup 1" over HKDF-SHA256(master key, no salt,
"secondsite server backups 1"). A frame's nonce is its number (8 bytes, from 0) and its flags; the header is
the associated data: frames cannot be left out, swapped or added, and a file that was cut off has no last one.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secondsite.base.units import MIB
from secondsite.server.identity.envelopes import KEY_BYTES, MasterKey
from secondsite.server.survival.errors import BackupDamaged, BackupForeign, BackupTooNew

MAGIC, END_MAGIC = b"SSBK", b"SSBE"
VERSION = 1
HEADER = struct.Struct("<4sB3x16s8s32sQQ16s")
FRAME = struct.Struct("<II")
END = struct.Struct("<4sIQ32s")
LAST = 1
NONCE = struct.Struct("<QI")
TAG_BYTES = 16
FRAME_PLAIN_BYTES = 1 * MIB
# zlib makes what does not compress larger by 5 bytes in 16 KiB and 11 more (zlib's manual, compressBound)
FRAME_SEALED_BYTES_MAX = FRAME_PLAIN_BYTES + FRAME_PLAIN_BYTES // 1024 + 64 + TAG_BYTES
# a row holds at most an answer of a gateway (16 MiB of JSON in JSON); more is damage
LINE_BYTES_MAX = 64 * MIB
FRAMES_MAX = 1 << 20


@dataclass(frozen=True)
class Head:
    """What a backup says of itself without its key."""

    id: str  # 32 hexadecimal digits
    master: bytes  # id of the master key, 8 bytes
    made_at: int  # microseconds since 1970
    incarnation: int
    server: str  # 32 hexadecimal digits
    salt: bytes

    def pack(self) -> bytes:
        """The header's bytes."""
        ids = bytes.fromhex(self.id), bytes.fromhex(self.server)
        return HEADER.pack(
            MAGIC, VERSION, ids[0], self.master, self.salt, self.made_at, self.incarnation, ids[1]
        )


def new_head(master: MasterKey, *, made_at: int, incarnation: int, server: str) -> Head:
    """The header of a backup made now."""
    return Head(os.urandom(16).hex(), master.id, made_at, incarnation, server, os.urandom(32))


def read_head(file: BinaryIO, what: str) -> Head:
    """The header at the file's position. Raises BackupDamaged, BackupTooNew."""
    raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or raw[:4] != MAGIC:
        raise BackupDamaged(what=what, why="it does not begin as a backup of a server does")
    _, version, identity, master, salt, made_at, incarnation, server = HEADER.unpack(raw)
    if version > VERSION:
        raise BackupTooNew(what=what, found=version, known=VERSION)
    if version != VERSION or raw[5:8] != bytes(3):
        raise BackupDamaged(what=what, why="its header has values no version writes")
    return Head(identity.hex(), master, made_at, incarnation, server.hex(), salt)


def check_whole(file: BinaryIO, what: str) -> str:
    """Hash the whole file against its end mark; the hash. Needs no key. Raises BackupDamaged."""
    size = file.seek(0, os.SEEK_END)
    if size < HEADER.size + END.size:
        raise BackupDamaged(what=what, why=f"it has only {size} bytes")
    file.seek(0)
    digest, left = hashlib.sha256(), size - END.size
    while left:
        data = file.read(min(MIB, left))
        if not data:
            raise BackupDamaged(what=what, why="it became shorter while it was read")
        digest.update(data)
        left -= len(data)
    magic, _, length, expected = END.unpack(file.read(END.size))
    if magic != END_MAGIC or length != size - END.size:
        raise BackupDamaged(what=what, why="its end is missing")
    if expected != digest.digest():
        raise BackupDamaged(what=what, why="its hash is not the one at its end")
    file.seek(0)
    return digest.hexdigest()


def _cipher(master: MasterKey, head: Head) -> AESGCM:
    made = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=head.salt, info=b"secondsite server backup 1")
    return AESGCM(made.derive(master.derive("server backups 1")))


class BackupWriter:
    """Writes lines; `close` makes the file whole. Not thread-safe."""

    def __init__(self, file: BinaryIO, head: Head, master: MasterKey) -> None:
        self._file = file
        self._head = head.pack()
        self._cipher = _cipher(master, head)
        self._digest = hashlib.sha256()
        self._waiting = bytearray()
        self._frames = 0
        self._size = 0
        self._put(self._head)

    def line(self, data: bytes) -> None:
        """One line, without its end."""
        assert b"\n" not in data
        assert len(data) <= LINE_BYTES_MAX
        self._waiting += data
        self._waiting += b"\n"
        while len(self._waiting) > FRAME_PLAIN_BYTES:
            self._frame(bytes(self._waiting[:FRAME_PLAIN_BYTES]), 0)
            del self._waiting[:FRAME_PLAIN_BYTES]

    def close(self) -> tuple[int, str]:
        """The last frame and the end mark; size in bytes and SHA-256 of the whole file."""
        self._frame(bytes(self._waiting), LAST)
        self._put(END.pack(END_MAGIC, self._frames, self._size, self._digest.digest()))
        return self._size, self._digest.hexdigest()

    def _frame(self, plain: bytes, flags: int) -> None:
        nonce = NONCE.pack(self._frames, flags)
        sealed = self._cipher.encrypt(nonce, zlib.compress(plain), self._head)
        self._put(FRAME.pack(len(sealed), flags) + sealed)
        self._frames += 1

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)


class BackupReader:
    """Opens a backup and gives its lines; nothing of it is believed before its frame was opened."""

    def __init__(self, file: BinaryIO, master: MasterKey, what: str) -> None:
        """Raises BackupDamaged, BackupTooNew, BackupForeign."""
        self._what = what
        check_whole(file, what)
        self.head = read_head(file, what)
        if self.head.master != master.id:
            raise BackupForeign(what=what, sealed=self.head.master.hex(), given=master.id.hex())
        self._file = file
        self._cipher = _cipher(master, self.head)

    def lines(self) -> Iterator[bytes]:
        """Every line, without its end. Raises BackupDamaged."""
        rest = bytearray()
        for plain in self._frames():
            rest += plain
            *whole, last = rest.split(b"\n")
            rest = last
            if len(rest) > LINE_BYTES_MAX:
                raise self._damaged("one of its lines is too long")
            yield from map(bytes, whole)
        if rest:
            raise self._damaged("its last line has no end")

    def _frames(self) -> Iterator[bytes]:
        head = self.head.pack()
        for number in range(FRAMES_MAX):
            raw = self._file.read(FRAME.size)
            if len(raw) < FRAME.size:
                raise self._damaged("a frame is cut off")
            length, flags = FRAME.unpack(raw)
            if not TAG_BYTES <= length <= FRAME_SEALED_BYTES_MAX or flags & ~LAST:
                raise self._damaged(f"frame {number} has a length or flag no version writes")
            sealed = self._file.read(length)
            try:
                packed = self._cipher.decrypt(NONCE.pack(number, flags), sealed, head)
                opener = zlib.decompressobj()
                plain = opener.decompress(packed, FRAME_PLAIN_BYTES + 1)
            except (InvalidTag, zlib.error):
                raise self._damaged(f"frame {number} does not open") from None
            if len(plain) > FRAME_PLAIN_BYTES or not opener.eof or opener.unused_data:
                raise self._damaged(f"frame {number} holds something else than it may")
            yield plain
            if flags & LAST:
                return self._end(number + 1)
        raise self._damaged("it has too many frames")

    def _end(self, frames: int) -> None:
        magic, count, _, _ = END.unpack(self._file.read(END.size))
        if magic != END_MAGIC or count != frames or self._file.read(1):
            raise self._damaged("its end mark is not where its frames end")

    def _damaged(self, why: str) -> BackupDamaged:
        return BackupDamaged(what=self._what, why=why)
