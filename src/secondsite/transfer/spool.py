"""The cache volume: sealed segments on their way, in a directory with a limit.

    DIRECTORY/cache.id                       random; a copy lies in the state directory
    DIRECTORY/MACHINE/NUMBER/shipment.json   machine, epoch; makes the shipment exist
                            /ID.seg          one sealed segment, whole or absent
                            /segments.log    a line for each segment kept here or acknowledged by the target
                            /note            what the source keeps with an open shipment
                            /proposal        makes the shipment sealed
    DIRECTORY/MACHINE/.gone-NUMBER           a shipment that was committed or discarded, being removed

Segments are not synced: after a power cut their hashes tell which are whole, and what is not is captured
again, because the source forgets nothing before a commit. A shipment leaves by one rename, so that a crash
in the middle of its removal cannot leave a part of it that looks like an open one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from pathlib import Path

import blake3
import msgspec

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import (
    fsync_directory,
    read_limited,
    remove_leftovers,
    replace_file,
    temporary_beside,
)
from secondsite.base.units import KIB, MIB, format_bytes
from secondsite.journal.errors import RecordTooLarge
from secondsite.journal.format import PROPOSAL_BYTES_MAX
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId, SegmentId
from secondsite.model.points import PointProposal, SegmentRef
from secondsite.transfer.errors import CacheFull, CacheLost, PayloadLost

AFTER_SEGMENT = mark("spool.after-segment")
AFTER_PROPOSAL = mark("spool.after-proposal")
AFTER_GONE = mark("spool.after-gone")

NOTE_BYTES_MAX = 64 * KIB
LOG_BYTES_MAX = 256 * MIB
_SMALL_BYTES_MAX = 4 * KIB
_GONE = ".gone-"
_NOTED = b'"noted"'  # a line of the log: everything above belongs to the note
_REWOUND = b'"rewound"'  # a line of the log: what was added since the note is dropped


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    machine: MachineId
    epoch: int
    number: int


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    order: int
    ref: SegmentRef
    sent: bool = False


class Spool:
    """The directory as a whole. Thread-safe.

    identity: a file on another volume (the state directory) that remembers this cache's id.
    """

    def __init__(self, directory: Path, *, limit_bytes: int, identity: Path, events: EventSink) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._events = events
        self._lock = threading.Lock()
        self._used_bytes = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lost = self._recognise(identity)
        self._batches = self._load()
        self._next = max((b.number for b in self._batches), default=0) + 1

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self._directory

    @property
    def limit_bytes(self) -> int:
        """How much it may hold."""
        return self._limit_bytes

    def set_limit(self, limit_bytes: int) -> None:
        """How much it may hold from now on; what it holds above that stays until it is sent."""
        self._limit_bytes = limit_bytes

    @property
    def used_bytes(self) -> int:
        """How much it holds, segments the target has already included."""
        return self._used_bytes

    @property
    def needed_bytes(self) -> int:
        """How much it holds that the target does not have."""
        # batches lock themselves and then this: never the other way round
        return self._used_bytes - sum(b.sent_bytes for b in self.batches())

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more fits, when what the target has is dropped."""
        return self.needed_bytes + size_bytes <= self._limit_bytes

    def batches(self, machine: MachineId | None = None) -> list[Batch]:
        """Shipments kept here, oldest first."""
        with self._lock:
            return [b for b in self._batches if machine is None or b.machine == machine]

    def begin(self, machine: MachineId, epoch: int) -> Batch:
        """Make a new shipment's directory. Raises CacheFull."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        header = _Header(machine=machine, epoch=epoch, number=number)
        path = self._directory / machine / f"{number:012d}"
        try:
            path.mkdir(parents=True, mode=0o700)
            replace_file(path / "shipment.json", msgspec.json.encode(header))
        except OSError as error:
            raise self.full(0, error) from error
        batch = Batch(self, path, header)
        with self._lock:
            self._batches.append(batch)
        return batch

    def reserve(self, size_bytes: int) -> None:
        """Count `size_bytes` in, dropping what the target has already. Raises CacheFull."""
        while True:
            with self._lock:
                if self._used_bytes + size_bytes <= self._limit_bytes:
                    self._used_bytes += size_bytes
                    return
            if not any(batch.drop_sent() for batch in self.batches()):
                raise self.full(size_bytes, None)

    def release(self, size_bytes: int) -> None:
        """Count `size_bytes` out."""
        with self._lock:
            self._used_bytes -= size_bytes
            assert self._used_bytes >= 0, "released more than was reserved"

    def count(self, size_bytes: int) -> None:
        """Count in what an earlier run left."""
        with self._lock:
            self._used_bytes += size_bytes

    def forget(self, batch: Batch) -> None:
        """Called by a batch that removed itself."""
        with self._lock, contextlib.suppress(ValueError):
            self._batches.remove(batch)

    def full(self, size_bytes: int, error: OSError | None) -> CacheFull | CacheLost:
        """The error for a write that found no room, or (another OSError) a volume that does not work."""
        if error is not None and error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return CacheLost(directory=self._directory, why=os.strerror(error.errno or 0))
        return CacheFull(
            directory=self._directory,
            used=format_bytes(self._used_bytes),
            limit=format_bytes(self._limit_bytes),
            need=format_bytes(size_bytes),
        )

    def _recognise(self, identity: Path) -> bool:
        """Whether the cache is another one than the state directory remembers."""
        here = self._directory / "cache.id"
        try:
            found = read_limited(here, size_bytes_max=_SMALL_BYTES_MAX)
        except FileNotFoundError:
            found = b""
        try:
            known = read_limited(identity, size_bytes_max=_SMALL_BYTES_MAX)
        except FileNotFoundError:
            known = b""
        if found and found == known:
            return False
        if known:
            error = CacheLost(directory=self._directory, why="it is not the one that was here before")
            self._events.emit("spool.lost", Severity.WARNING, str(error))
        if not found:
            found = secrets.token_hex(16).encode() + b"\n"
            replace_file(here, found)
        replace_file(identity, found)
        return bool(known)

    def _load(self) -> list[Batch]:
        batches = []
        for directory in sorted(p for p in self._directory.iterdir() if p.is_dir()):
            for path in sorted(directory.iterdir()):
                batch = None if path.name.startswith(_GONE) else Batch.load(self, path)
                if batch is not None:
                    batches.append(batch)
                    continue
                if not path.name.startswith(_GONE):
                    text = f"what {path} held was not whole; it is captured again"
                    self._events.emit("spool.shipment-lost", Severity.WARNING, text)
                shutil.rmtree(path)
        return sorted(batches, key=lambda b: b.number)


class Batch:
    """What the cache keeps of one shipment. Thread-safe."""

    def __init__(self, spool: Spool, path: Path, header: _Header) -> None:
        self._spool = spool
        self._path = path
        self._header = header
        self._lock = threading.Lock()
        self._lines: dict[SegmentId, _Line] = {}
        self._files: dict[SegmentId, int] = {}  # segments kept here -> size in bytes
        self._unchecked: set[SegmentId] = set()  # of an earlier run: a power cut may have torn them
        self._unlogged: set[SegmentId] = set()  # acknowledged while the volume was full: no line says so
        self._log = os.open(
            path / "segments.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._noted: set[SegmentId] = set()  # added before the last note
        self._dropped: set[SegmentId] = set()  # by `rewind`; a worker may still acknowledge one
        self._gone = False
        self.proposal: PointProposal | None = None
        self.note = b""

    @classmethod
    def load(cls, spool: Spool, path: Path) -> Batch | None:
        """A batch of an earlier run; None when it cannot be used."""
        batch = None
        try:
            header = msgspec.json.decode(_read(path / "shipment.json", _SMALL_BYTES_MAX), type=_Header)
            batch = cls(spool, path, header)
            batch._read_back()
        except (OSError, ValueError, SecondsiteError):
            if batch is not None:
                batch._abandon()
            return None
        return batch

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self._path

    @property
    def machine(self) -> MachineId:
        """Whose."""
        return self._header.machine

    @property
    def epoch(self) -> int:
        """The epoch its segments belong to."""
        return self._header.epoch

    @property
    def number(self) -> int:
        """Grows with each batch."""
        return self._header.number

    def entries(self) -> dict[int, SegmentRef]:
        """Segments kept here or at the target by their order of adding."""
        with self._lock:
            return {line.order: line.ref for line in self._lines.values()}

    @property
    def sent_bytes(self) -> int:
        """Bytes kept here that the target has."""
        with self._lock:
            return sum(size for id_, size in self._files.items() if self._lines[id_].sent)

    def pending(self) -> list[tuple[int, SegmentRef]]:
        """(order, segment) of those kept here that the target does not have."""
        with self._lock:
            lines = sorted(self._lines.values(), key=lambda line: line.order)
            return [(line.order, line.ref) for line in lines if not line.sent]

    def keep(self, order: int, ref: SegmentRef, data: bytes | bytearray | memoryview) -> None:
        """Write one segment. Raises CacheFull, CacheLost."""
        self._spool.reserve(ref.stored_bytes)
        path = self._segment_path(ref.id)
        temporary = temporary_beside(path)
        try:
            with temporary.open("xb", buffering=0) as file:
                view = memoryview(data).cast("B")
                while view:
                    view = view[file.write(view) or 0 :]
            temporary.rename(path)
            crash_point(AFTER_SEGMENT)
            with self._lock:
                earlier = self._lines.get(ref.id)
                sent = earlier is not None and earlier.sent  # acknowledged while it was written
                self._write_line(_Line(order=order, ref=ref, sent=sent))
                self._files[ref.id] = ref.stored_bytes
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            self._spool.release(ref.stored_bytes)
            raise self._spool.full(ref.stored_bytes, error) from error

    def acknowledge(self, order: int, ref: SegmentRef) -> None:
        """The target has it, durable. Its bytes stay for a while, as long as nothing else needs the room."""
        line = _Line(order=order, ref=ref, sent=True)
        with self._lock:
            if ref.id in self._dropped:
                return
            self._lines[ref.id] = line
            if self._gone:
                return
            try:
                self._write_line(line)
            except OSError:
                self._unlogged.add(ref.id)  # `set_note` tries again before it promises anything

    def unacknowledge(self, ref: SegmentRef) -> bool:
        """The target lost it after all: True when its bytes are still here to be sent again."""
        with self._lock:
            line = self._lines[ref.id]
            if ref.id not in self._files:
                return False
            self._write_line(_Line(order=line.order, ref=ref))
            return True

    def payload(self, ref: SegmentRef) -> Path:
        """The file of a segment kept here. Raises PayloadLost when a power cut tore it."""
        path = self._segment_path(ref.id)
        with self._lock:
            unchecked = ref.id in self._unchecked
        if unchecked:
            try:
                found = blake3.blake3(path.read_bytes()).hexdigest()
            except OSError:
                found = ""
            if found != ref.hash:
                raise PayloadLost(path=path)
            with self._lock:
                self._unchecked.discard(ref.id)
        return path

    def set_note(self, note: bytes) -> None:
        """Keep the note, durable. Raises CacheFull, CacheLost."""
        assert len(note) <= NOTE_BYTES_MAX
        try:
            with self._lock:
                for id_ in list(self._unlogged):
                    self._write_line(self._lines[id_])
                self._write_text(_NOTED)
                self._noted = set(self._lines)
            os.fsync(self._log)
            replace_file(self._path / "note", note)
        except OSError as error:
            raise self._spool.full(len(note), error) from error
        self.note = note

    def rewind(self) -> None:
        """Drop the segments added since the last note. Raises CacheFull, CacheLost."""
        with self._lock:
            dropped = self._lines.keys() - self._noted
            if not dropped:
                return
            try:
                self._write_text(_REWOUND)
            except OSError as error:
                raise self._spool.full(0, error) from error
            self._dropped |= dropped
            for id_ in dropped:
                del self._lines[id_]
                self._unlogged.discard(id_)
                if id_ in self._files:
                    self._segment_path(id_).unlink(missing_ok=True)
                    self._spool.release(self._files.pop(id_))

    def seal(self, proposal: PointProposal) -> None:
        """Keep the proposal, durable; every segment of it is kept or acknowledged already.

        Raises RecordTooLarge: no target would take it.
        """
        body = msgspec.json.encode(proposal)
        if len(body) > PROPOSAL_BYTES_MAX:
            what = f"an instant of {proposal.machine_name}"
            raise RecordTooLarge(what=what, size=len(body), limit=PROPOSAL_BYTES_MAX)
        try:
            replace_file(self._path / "proposal", blake3.blake3(body).digest() + body)
        except OSError as error:
            raise self._spool.full(len(body), error) from error
        crash_point(AFTER_PROPOSAL)
        self.proposal = proposal

    def drop_sent(self) -> bool:
        """Remove the files the target has; False when there was none."""
        with self._lock:
            sent = [id_ for id_ in self._files if self._lines[id_].sent and id_ not in self._unlogged]
            for id_ in sent:
                self._segment_path(id_).unlink(missing_ok=True)
                self._spool.release(self._files.pop(id_))
        return bool(sent)

    def remove(self) -> None:
        """Take it out of the cache: at once by name, then its files."""
        with self._lock:
            if self._gone:
                return
            self._gone = True
            os.close(self._log)
            freed = sum(self._files.values())
            self._files.clear()
        gone = self._path.with_name(f"{_GONE}{self._path.name}")
        with contextlib.suppress(FileNotFoundError):  # the volume is lost: so is the batch
            self._path.rename(gone)
            fsync_directory(gone.parent)
            crash_point(AFTER_GONE)
            shutil.rmtree(gone, ignore_errors=True)
        self._spool.release(freed)
        self._spool.forget(self)

    def _abandon(self) -> None:
        self._gone = True
        os.close(self._log)
        self._spool.release(sum(self._files.values()))

    def _segment_path(self, segment: SegmentId) -> Path:
        return self._path / f"{segment}.seg"

    def _write_line(self, line: _Line) -> None:
        """Caller holds the lock. The line end comes first: a line that a full volume cut short ends there."""
        self._write_text(msgspec.json.encode(line))
        self._lines[line.ref.id] = line
        self._unlogged.discard(line.ref.id)

    def _write_text(self, text: bytes) -> None:
        if os.write(self._log, b"\n" + text) != len(text) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _read_back(self) -> None:
        remove_leftovers(self._path)
        for text in _read(self._path / "segments.log", LOG_BYTES_MAX).split(b"\n"):
            if text == _NOTED:
                self._noted = set(self._lines)
            elif text == _REWOUND:
                self._lines = {i: line for i, line in self._lines.items() if i in self._noted}
            with contextlib.suppress(msgspec.DecodeError):  # a power cut may tear the last line
                line = msgspec.json.decode(text, type=_Line)
                self._lines[line.ref.id] = line
        for path in self._path.glob("*.seg"):
            known = self._lines.get(SegmentId(path.stem))
            if known is None or path.stat().st_size != known.ref.stored_bytes:
                path.unlink()  # killed before its line was written, or torn
                continue
            self._files[known.ref.id] = known.ref.stored_bytes
            self._unchecked.add(known.ref.id)
            self._spool.count(known.ref.stored_bytes)
        self._lines = {i: line for i, line in self._lines.items() if line.sent or i in self._files}
        if not self._noted <= self._lines.keys():
            # a power cut took bytes that were not synced: what the note says of them is not true any more
            raise ValueError("segments from before the note are gone")
        with contextlib.suppress(FileNotFoundError):
            self.note = _read(self._path / "note", NOTE_BYTES_MAX)
        with contextlib.suppress(FileNotFoundError):
            data = _read(self._path / "proposal", PROPOSAL_BYTES_MAX + 32)
            if blake3.blake3(data[32:]).digest() != data[:32]:
                raise ValueError("a damaged proposal")
            self.proposal = msgspec.json.decode(data[32:], type=PointProposal)
            if any(ref.id not in self._lines for ref in self.proposal.segments):
                raise ValueError("segments of the proposal are gone")


def _read(path: Path, size_bytes_max: int) -> bytes:
    return read_limited(path, size_bytes_max=size_bytes_max)
