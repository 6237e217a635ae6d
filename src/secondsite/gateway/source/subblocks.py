"""What the target holds, 8 bytes per 4 KiB: the table that lets a cycle drop what did not change (rule 1).

The table is a cache of the target, stamped with (epoch, number of the committed point). What a cycle sends
waits in its side log and is folded in only after the commit, in the order of the cycles; a cycle that is
abandoned takes its own log and all later ones with it. The stamp is taken off the file while a gateway runs
(an unclean end voids the table) and put back by `close`.

An entry is 0 when nothing is known, 1 for zeros, else the low half of the sub-block's keyed digest. Both
files are sparse, read and written by offset rather than mapped: a full volume is then an error that voids
the table, where a mapping would end the process by SIGBUS.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blake3
import msgspec
import numpy as np
from numpy.typing import NDArray

from secondsite.base.crash import crash_point, mark
from secondsite.base.files import fsync_directory
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB, SUB_BLOCK_BYTES
from secondsite.journal.digests import UNKNOWN, ZERO
from secondsite.model.ids import DiskId, MachineId

Uint64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]

AFTER_FOLD = mark("subblocks.after-fold")

_MAGIC = b"ssSUBBLK"
_VERSION = 1
# One page: magic, version, length of the stamp, the stamp as JSON, zeros, blake3 of all before.
_HEADER_BYTES = 4 * KIB
_ENTRY_BYTES = 8
# A side log remembers which groups of entries it holds, so that folding costs what was written: 256 entries
# are one read of 1 MiB.
_GROUP = 256
_FOLD_GROUPS_MAX = 64
# With the link cut hundreds of cycles may wait; each log is an open file. Later ones share the newest.
_LOGS_MAX = 8


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """Of which committed state of which disk a table speaks."""

    machine: MachineId
    disk: DiskId
    epoch: int
    point: int
    size_bytes: int
    complete: bool = False  # unknown entries are holes of the target: a copy of everything filled the rest


@dataclass(eq=False)
class SideLog:
    """What one cycle changes, or several in a row; made by `SubBlockTable.begin`."""

    fd: int
    groups: NDArray[np.bool_]
    dead: bool = False
    cycles: int = 1  # begun on it and not folded yet
    committed: bool = False  # some of its cycles are: their entries are nowhere else

    def end(self) -> None:
        """Free its file."""
        if not self.dead:
            self.dead = True
            os.close(self.fd)


class SubBlockTable:
    """The table of one disk. Thread-safe. `on_void` is told why the table knows nothing (any more)."""

    def __init__(
        self, path: Path, machine: MachineId, disk: DiskId, *, on_void: Callable[[str], None]
    ) -> None:
        self._path = path
        self._machine = machine
        self._disk = disk
        self._on_void = on_void
        self._lock = threading.Lock()
        self._logs: list[SideLog] = []
        self._stamp: Stamp | None = None
        self._size_bytes = 0
        self._known = False  # whether any entry may be other than unknown
        self._complete = False
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = _decode_header(os.pread(self._fd, _HEADER_BYTES, 0))
        if found is not None and (found.machine, found.disk) == (machine, disk):
            self._stamp, self._size_bytes, self._known = found, found.size_bytes, True
            self._complete = found.complete
        self._found = "it was not closed in order, or is new" if self._stamp is None else ""
        # From here on the file says nothing until it is closed in order.
        os.pwrite(self._fd, bytes(_HEADER_BYTES), 0)
        os.fsync(self._fd)

    @property
    def stamp(self) -> Stamp | None:
        """What the table speaks of; None: of nothing committed."""
        return self._stamp

    @property
    def size_bytes(self) -> int:
        """Of the disk it is for; 0 before anything was expected."""
        return self._size_bytes

    @property
    def complete(self) -> bool:
        """Whether an unknown entry means that the target holds nothing there."""
        return self._complete

    @property
    def count(self) -> int:
        """Sub-blocks of the disk."""
        return -(-self._size_bytes // SUB_BLOCK_BYTES)

    def expect(self, *, epoch: int, point: int, size_bytes: int) -> bool:
        """Keep the table if it speaks of exactly this, else void it; whether it was kept."""
        with self._lock:
            stamp, why = self._stamp, self._found
            if stamp is not None:
                if (stamp.epoch, stamp.point) != (epoch, point):
                    why = f"it speaks of point {stamp.point} of epoch {stamp.epoch}, not {point} of {epoch}"
                elif self._size_bytes != size_bytes:
                    why = f"the disk has {size_bytes} bytes now, not {self._size_bytes}"
                else:
                    return True
            self._void(why or "nothing was committed on it", size_bytes)
            return False

    def void(self, why: str, *, size_bytes: int | None = None) -> None:
        """Know nothing from now on; logs begun before are dead."""
        with self._lock:
            self._void(why, self._size_bytes if size_bytes is None else size_bytes)

    def begin(self) -> SideLog:
        """A side log for the next cycle, after those begun before it."""
        with self._lock:
            if len(self._logs) >= _LOGS_MAX:
                self._logs[-1].cycles += 1
                return self._logs[-1]
            fd = os.open(self._path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            log = SideLog(fd, np.zeros(-(-self.count // _GROUP), dtype=np.bool_))
            self._logs.append(log)
            return log

    def changed(self, log: SideLog, first: int, values: Uint64s, before: Uint64s | None = None) -> Bools:
        """Which of the sub-blocks from number `first` the target may not hold; `log` then has `values`.

        before: filled with what was known of them; where it cannot be read it stays as it is.
        """
        with self._lock:
            if log.dead or first + len(values) > self.count:
                return np.ones(len(values), dtype=np.bool_)
            try:
                known = self._overlaid(log, first, len(values))
                if before is not None:
                    before[:] = known
                differs: Bools = (known != values) | (known == UNKNOWN)
                if differs.any():
                    self._put(log, first, values)
            except OSError as error:
                self._void(f"its volume failed: {error.strerror}", self._size_bytes)
                return np.ones(len(values), dtype=np.bool_)
            return differs

    def learn(self, log: SideLog, first: int, values: Uint64s) -> None:
        """The target said what it holds of sub-blocks; nothing, once a void has cut `log` off.

        Of a shipment whose log is dead nobody knows what it holds besides what the target does.
        """
        with self._lock:
            if log.dead or first + len(values) > self.count:
                return
            try:
                _write(self._fd, _HEADER_BYTES, first, values)
            except OSError as error:
                self._void(f"its volume failed: {error.strerror}", self._size_bytes)
                return
            self._known = True

    def not_zero(self, log: SideLog, first: int, count: int) -> Bools:
        """Which sub-blocks the target may hold as other than zeros; `log` then has them as zeros."""
        with self._lock:
            if log.dead or first + count > self.count:
                return np.ones(count, dtype=np.bool_)
            try:
                known = self._overlaid(log, first, count)
                stale = known > ZERO
                if stale.any():
                    known[stale] = ZERO
                    self._put(log, first, known)
                    known[stale] = UNKNOWN
            except OSError as error:
                self._void(f"its volume failed: {error.strerror}", self._size_bytes)
                return np.ones(count, dtype=np.bool_)
            unsure: Bools = known != ZERO
            return unsure

    def fold(self, log: SideLog, *, epoch: int, point: int, whole: bool = False) -> None:
        """The cycle of `log` was committed as `point`: its entries are the target's now.

        whole: it carried everything there is, not only changes.
        """
        with self._lock:
            if log.dead:
                # voided under it; entries of this cycle stay unknown, the stamp holds for what follows
                self._restamp(epoch, point)
                return
            assert self._logs[0] is log, "cycles are folded in their order"
            self._stamp = None  # until all of it is in
            log.cycles -= 1
            if log.cycles:
                log.committed = True
                return
            try:
                self._fold(log)
            except OSError as error:
                self._void(f"its volume failed: {error.strerror}", self._size_bytes)
                return
            self._logs.pop(0).end()
            self._known = True
            self._complete = self._complete or whole
            self._restamp(epoch, point)
        crash_point(AFTER_FOLD)

    def abandon(self, log: SideLog) -> None:
        """The cycle of `log` is not committed: drop its log and those of all later cycles."""
        with self._lock:
            if log in self._logs:
                if log.cycles > 1 or log.committed:
                    why = "a cycle was abandoned that shared its log with earlier ones"
                    self._void(why, self._size_bytes)
                    return
                index = self._logs.index(log)
                for later in self._logs[index:]:
                    later.end()
                del self._logs[index:]

    def close(self) -> None:
        """Put the stamp on if the table is whole and sync it; logs of cycles not committed are dropped.

        A cycle that is sealed but not committed yet will be, by the next gateway: the stamp then tells it
        that the table speaks of the point before.
        """
        with self._lock:
            for log in self._logs:
                log.end()
            self._logs.clear()
            # a full volume leaves it without a stamp, which is safe
            with contextlib.suppress(OSError):
                if self._stamp is not None:
                    os.fsync(self._fd)
                    os.pwrite(self._fd, _encode_header(self._stamp), 0)
                    os.fsync(self._fd)
            os.close(self._fd)

    def remove(self) -> None:
        """Close and delete it: the protection ended."""
        self._stamp = None
        self.close()
        self._path.unlink(missing_ok=True)
        fsync_directory(self._path.parent)

    # -- under the lock ---------------------------------------------------------------------------

    def _restamp(self, epoch: int, point: int) -> None:
        self._stamp = Stamp(
            machine=self._machine,
            disk=self._disk,
            epoch=epoch,
            point=point,
            size_bytes=self._size_bytes,
            complete=self._complete,
        )

    def _void(self, why: str, size_bytes: int) -> None:
        for log in self._logs:
            log.end()
        self._logs.clear()
        self._stamp = None
        self._found = ""
        os.ftruncate(self._fd, _HEADER_BYTES)
        self._size_bytes = size_bytes
        if why:
            self._on_void(why)
        self._known = self._complete = False

    def _overlaid(self, log: SideLog, first: int, count: int) -> Uint64s:
        """Entries as they will be when every cycle up to that of `log` is committed."""
        known = _read(self._fd, _HEADER_BYTES, first, count) if self._known else np.zeros(count, np.uint64)
        groups = slice(first // _GROUP, -(-(first + count) // _GROUP))
        for earlier in self._logs:
            if earlier.groups[groups].any():
                newer = _read(earlier.fd, 0, first, count)
                np.copyto(known, newer, where=newer != UNKNOWN)
            if earlier is log:
                break
        return known

    def _put(self, log: SideLog, first: int, values: Uint64s) -> None:
        _write(log.fd, 0, first, values)
        log.groups[first // _GROUP : -(-(first + len(values)) // _GROUP)] = True

    def _fold(self, log: SideLog) -> None:
        touched = np.flatnonzero(log.groups)
        if not len(touched):
            return
        for run in np.split(touched, np.flatnonzero(np.diff(touched) != 1) + 1):
            for start in range(int(run[0]), int(run[-1]) + 1, _FOLD_GROUPS_MAX):
                end = min(start + _FOLD_GROUPS_MAX, int(run[-1]) + 1)
                first = start * _GROUP
                count = min(end * _GROUP, self.count) - first
                newer = _read(log.fd, 0, first, count)
                known = _read(self._fd, _HEADER_BYTES, first, count)
                np.copyto(known, newer, where=newer != UNKNOWN)
                _write(self._fd, _HEADER_BYTES, first, known)


def _read(fd: int, base: int, first: int, count: int) -> Uint64s:
    data = os.pread(fd, count * _ENTRY_BYTES, base + first * _ENTRY_BYTES)
    entries = np.zeros(count, dtype="<u8")
    got = len(data) // _ENTRY_BYTES  # short where the sparse file ends
    entries[:got] = np.frombuffer(data, dtype="<u8", count=got)
    return entries


def _write(fd: int, base: int, first: int, values: Uint64s) -> None:
    view = memoryview(values.astype("<u8").tobytes())
    offset = base + first * _ENTRY_BYTES
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _encode_header(stamp: Stamp) -> bytes:
    body = msgspec.json.encode(stamp)
    text = _MAGIC + _VERSION.to_bytes(2, "little") + len(body).to_bytes(2, "little") + body
    page = text.ljust(_HEADER_BYTES - 32, b"\0")
    return page + blake3.blake3(page).digest()


def _decode_header(page: bytes) -> Stamp | None:
    """The stamp of a table that was closed in order; None for any other page."""
    if len(page) != _HEADER_BYTES or page[:8] != _MAGIC or blake3.blake3(page[:-32]).digest() != page[-32:]:
        return None
    if int.from_bytes(page[8:10], "little") != _VERSION:
        return None
    length = int.from_bytes(page[10:12], "little")
    try:
        return msgspec.json.decode(page[12 : 12 + length], type=Stamp)
    except JSON_ERRORS:
        return None
