"""Segments arriving at a target: staged, hashed on the way, checked against their name, published whole.

What is checked without any key: size and hash are those announced, the header names the machine, disk, epoch
and id of the URL. That the content opens is the business of whoever holds the key; that it is what the
source sealed follows from the hash, which the point's manifest repeats.
"""

from __future__ import annotations

import blake3

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.journal.format import SEGMENT_HEADER
from secondsite.journal.names import segment_name
from secondsite.journal.segment_head import decode_head
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore, StagedObject
from secondsite.model.events import EventSink, Severity
from secondsite.transfer.errors import HashMismatch, ProtocolViolation, SegmentConflict, SegmentRefused
from secondsite.transfer.protocols import SegmentName

AFTER_BLOCK = mark("receive.after-block")
BEFORE_PUBLISH = mark("receive.before-publish")
AFTER_PUBLISH = mark("receive.after-publish")

# Reading back what was staged before a cut, and comparing with what is there.
BLOCK_BYTES = 1 * MIB


def key_of(name: SegmentName) -> str:
    """Where the segment lies in the store."""
    return segment_name(name.machine, name.epoch, name.disk, name.id)


def is_present(store: ObjectStore, name: SegmentName, *, size_bytes: int, digest: str) -> bool:
    """Whether the segment is in the store already. Raises SegmentConflict when other bytes are."""
    key = key_of(name)
    try:
        found = store.size(key)
    except ObjectMissing:
        return False
    if found != size_bytes:
        raise SegmentConflict(segment=key, why=f"it has {found} bytes, {size_bytes} are announced")
    hasher = blake3.blake3()
    for start in range(0, size_bytes, BLOCK_BYTES):
        hasher.update(store.read(key, start, min(BLOCK_BYTES, size_bytes - start)))
    if hasher.hexdigest() != digest:
        raise SegmentConflict(segment=key, why="its hash is another")
    return True


class Upload:
    """One segment on its way into the store; see `transfer.protocols.SegmentUpload`."""

    def __init__(
        self, store: ObjectStore, name: SegmentName, *, size_bytes: int, digest: str, events: EventSink
    ) -> None:
        self._store = store
        self._name = name
        self._size_bytes = size_bytes
        self._digest = digest
        self._events = events
        self._staged: StagedObject | None = self._stage()
        self._hasher = blake3.blake3()
        # counted here: another upload of the segment may take the staged bytes over and add to them
        self._offset = self._held().offset
        self._head_checked = False
        self._hash_staged()

    @property
    def offset(self) -> int:
        """Bytes held so far."""
        return self._offset

    def append(self, data: memoryview) -> None:
        """Add bytes at the end."""
        staged = self._held()
        if self._offset + len(data) > self._size_bytes:
            raise ProtocolViolation(peer="the sender", why=f"more bytes than announced of {self._name.id}")
        staged.append(data)
        self._offset += len(data)
        self._hasher.update(data)
        self._check_head()
        crash_point(AFTER_BLOCK)

    def finish(self) -> None:
        """Verify, publish."""
        staged = self._held()
        if self._offset != self._size_bytes:
            raise ProtocolViolation(peer="the sender", why=f"fewer bytes than announced of {self._name.id}")
        found = self._hasher.hexdigest()
        if found != self._digest:
            self._drop()
            error = HashMismatch(segment=self._name.id, found=found, expected=self._digest)
            self._events.emit(
                "receive.hash-mismatch", Severity.WARNING, str(error), machine=self._name.machine
            )
            raise error
        crash_point(BEFORE_PUBLISH)
        try:
            staged.publish()
        except ObjectExists:
            # the same segment over two connections: the first one won
            is_present(self._store, self._name, size_bytes=self._size_bytes, digest=self._digest)
        self._staged = None
        crash_point(AFTER_PUBLISH)

    def suspend(self) -> None:
        """Let go of it, keeping its bytes."""
        if self._staged is not None:
            self._staged.close()
            self._staged = None

    def _stage(self) -> StagedObject:
        staged = self._store.stage(key_of(self._name))
        if staged.offset > self._size_bytes:
            staged.discard()  # of another attempt under this name; nothing of it can be of use
            staged = self._store.stage(key_of(self._name))
        return staged

    def _hash_staged(self) -> None:
        """Take what an earlier attempt left into the hash: a torn tail shows at the end as a mismatch."""
        staged = self._held()
        for start in range(0, self._offset, BLOCK_BYTES):
            self._hasher.update(staged.read_back(start, min(BLOCK_BYTES, self._offset - start)))
        self._check_head()

    def _check_head(self) -> None:
        """As soon as the header is there, refuse what was sent under a wrong name."""
        if self._head_checked or self._offset < min(SEGMENT_HEADER.size, self._size_bytes):
            return
        why = head_problem(self._held().read_back(0, SEGMENT_HEADER.size), self._name)
        if why:
            self._drop()
            error = SegmentRefused(segment=self._name.id, why=why)
            self._events.emit(
                "receive.segment-refused", Severity.WARNING, str(error), machine=self._name.machine
            )
            raise error
        self._head_checked = True

    def _drop(self) -> None:
        self._held().discard()
        self._staged = None

    def _held(self) -> StagedObject:
        assert self._staged is not None, "used after its end"
        return self._staged


def head_problem(data: bytes, name: SegmentName) -> str:
    """Why the segment that begins with `data` cannot be `name`; empty when it can."""
    try:
        head, _ = decode_head(data, f"segment {name.id}")
    except SecondsiteError as error:
        return str(error)
    found = (head.machine, head.epoch, head.disk, head.id)
    if found != (name.machine, name.epoch, name.disk, name.id):
        return (
            f"its header is of disk {head.disk} of machine {head.machine} in epoch {head.epoch}, id {head.id}"
        )
    return ""
