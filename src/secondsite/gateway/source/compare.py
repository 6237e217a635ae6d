"""Hash compare between a source and its target: the target's answers, and the target as the source sees it.

What is compared, and how the widths of both sides' tables come together, is in `journal.compare`. An answer
is of one point: the source names the one it compares with, and is refused when the target has moved on. The
target answers from its digest table (`tables`), which follows from what segments say of themselves; a
`reread` reads the stored data itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.gateway.source.tables import DigestTable
from secondsite.journal.compare import RANGE_BYTES, RANGE_SUB_BLOCKS, Int64s, Uint64s, ranges_of
from secondsite.journal.digests import ZERO, Digests, digest_sub_blocks, values_of
from secondsite.journal.view import DiskView
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.model.points import DiskState, Point
from secondsite.transfer.errors import DigestsNotReady, DigestsRefused, ProtocolViolation, TransferCancelled
from secondsite.transfer.protocols import (
    CommittedPoint,
    DigestAnswer,
    DigestQuery,
    Link,
    error_code,
)
from secondsite.transfer.wire import DIGEST_VERSION, REREAD_MAX, SUMS_MAX, VALUES_MAX

# Two encoding threads work near each other; a window of sums is half a MiB at most.
WINDOWS = 2
ASK_AGAIN_SECONDS = 0.5
ASK_AGAIN_SECONDS_MAX = 10.0
# A target makes its table again by reading the disk, at some hundred MB/s: time enough for about a TiB.
READY_SECONDS_MAX = 3600.0


# -- the target -----------------------------------------------------------------------------------


def disk_asked_for(query: DigestQuery, point: Point | None) -> DiskState:
    """The query's disk at `point`, the newest. Raises DigestsRefused."""
    if point is None or point.number != query.point:
        newest = f"the newest point is {point.number}" if point else "there is no point"
        raise DigestsRefused(disk=query.disk, point=query.point, why=newest)
    return disk_at(query, point)


def disk_at(query: DigestQuery, point: Point) -> DiskState:
    """The query's disk at `point`, with the key it was asked for. Raises DigestsRefused."""
    disk = next((disk for disk in point.disks if disk.id == query.disk), None)
    if disk is None or disk.key_id != query.key_id:
        why = "the point does not have the disk" if disk is None else f"its data key is {disk.key_id}"
        raise DigestsRefused(disk=query.disk, point=query.point, why=why)
    return disk


def answer_from(table: DigestTable, query: DigestQuery) -> DigestAnswer:
    """What a table holds of what was asked for. Raises OSError."""
    if query.level == "sums":
        return packed(query, table.stamp.size_bytes, table.sums(query.first, query.count))
    rows = [table.rows(number * RANGE_SUB_BLOCKS, RANGE_SUB_BLOCKS) for number in query.ranges]
    return packed(query, table.stamp.size_bytes, np.concatenate(rows))


def packed(query: DigestQuery, size_bytes: int, digests: Digests) -> DigestAnswer:
    """An answer from sums, or from the digests of all sub-blocks of the ranges asked for."""
    used = digests.any(axis=1)
    kept = digests[used] if query.level == "sums" else values_of(digests[used])
    bits = np.packbits(used, bitorder="little").tobytes()
    return DigestAnswer(
        point=query.point, size_bytes=size_bytes, used=bits, digests=kept.astype("<u8").tobytes()
    )


def reread(view: DiskView, query: DigestQuery, seed: int) -> DigestAnswer:
    """What was asked for from a disk's data as it is stored. Raises what reading the view raises."""
    numbers = range(query.first, query.first + query.count) if query.level == "sums" else query.ranges
    buffer = memoryview(bytearray(RANGE_BYTES))
    rows = np.zeros((len(numbers), RANGE_SUB_BLOCKS, 2), dtype=np.uint64)
    for index, number in enumerate(numbers):
        start, end = number * RANGE_BYTES, min((number + 1) * RANGE_BYTES, view.size_bytes)
        if start >= end or all(zero for *_, zero in view.extents(start, end - start)):
            continue
        block = buffer[: end - start]
        view.read_into(start, block)
        digests = digest_sub_blocks(block, start // SUB_BLOCK_BYTES, seed)
        rows[index, : len(digests)] = digests
    if query.level == "sums":
        return packed(query, view.size_bytes, rows.sum(axis=1, dtype=np.uint64))
    return packed(query, view.size_bytes, rows.reshape(-1, 2))


# -- the source -----------------------------------------------------------------------------------


@dataclass
class Traffic:
    """What asking cost. Thread-safe."""

    queries: int = 0
    bytes: int = 0  # of answers
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        """One answer came."""
        with self._lock:
            self.queries += 1
            self.bytes += count


class RemoteDisk:
    """A disk at the target as of its newest point: `journal.compare.Theirs` over a link. Thread-safe."""

    def __init__(
        self,
        link: Link,
        machine: MachineId,
        disk: DiskState,
        point: int,
        *,
        traffic: Traffic,
        reread: bool = False,
    ) -> None:
        self._link = link
        self._machine = machine
        self._disk = disk
        self._point = point
        self._reread = reread
        self._window_ranges = REREAD_MAX if reread else SUMS_MAX
        self._values_max = REREAD_MAX if reread else VALUES_MAX
        self._traffic = traffic
        self._lock = threading.Lock()
        self._windows: OrderedDict[int, Digests] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """See `Theirs`."""
        return self._disk.size_bytes

    def sums(self, ranges: Int64s) -> Digests:
        """See `Theirs`. Raises what the link and the target raise."""
        found = np.zeros((len(ranges), 2), dtype=np.uint64)
        windows = ranges // self._window_ranges
        for number in np.unique(windows).tolist():
            here = windows == number
            found[here] = self._window(number)[ranges[here] - number * self._window_ranges]
        return found

    def values(self, ranges: Int64s) -> Uint64s:
        """See `Theirs`. Raises what the link and the target raise."""
        parts = []
        for start in range(0, len(ranges), self._values_max):
            asked = ranges[start : start + self._values_max]
            answer = self._ask(self._query("values", ranges=tuple(asked.tolist())))
            parts.append(unpacked(answer, len(asked) * RANGE_SUB_BLOCKS, 1, zero=ZERO))
        return np.concatenate(parts).reshape(-1, RANGE_SUB_BLOCKS)

    def _window(self, number: int) -> Digests:
        with self._lock:
            found = self._windows.get(number)
            if found is None:
                first = number * self._window_ranges
                count = max(1, min(self._window_ranges, ranges_of(self.size_bytes) - first))
                answer = self._ask(self._query("sums", first=first, count=count))
                found = np.zeros((self._window_ranges, 2), dtype=np.uint64)
                found[:count] = unpacked(answer, count, 2, zero=0).reshape(-1, 2)
                self._windows[number] = found
            self._windows.move_to_end(number)
            while len(self._windows) > WINDOWS:
                self._windows.popitem(last=False)
            return found

    def _query(
        self, level: str, *, first: int = 0, count: int = 0, ranges: tuple[int, ...] = ()
    ) -> DigestQuery:
        return DigestQuery(
            machine=self._machine,
            disk=self._disk.id,
            key_id=self._disk.key_id,
            point=self._point,
            level="sums" if level == "sums" else "values",
            first=first,
            count=count,
            ranges=ranges,
            reread=self._reread,
        )

    def _ask(self, query: DigestQuery) -> DigestAnswer:
        answer = self._link.digests(query)
        self._traffic.add(len(answer.used) + len(answer.digests))
        if answer.version != DIGEST_VERSION or answer.point != self._point:
            raise DigestsRefused(disk=self._disk.id, point=self._point, why="the answer is of something else")
        if answer.size_bytes != self._disk.size_bytes:
            why = f"it has {answer.size_bytes} bytes there, not {self._disk.size_bytes}"
            raise DigestsRefused(disk=self._disk.id, point=self._point, why=why)
        return answer


def unpacked(answer: DigestAnswer, count: int, width: int, *, zero: int) -> Uint64s:
    """`count` rows of `width` numbers, flat, with `zero` where there is nothing. Raises ProtocolViolation."""
    bits = np.unpackbits(np.frombuffer(answer.used, dtype=np.uint8), bitorder="little")
    used = bits[:count].astype(np.bool_)
    fits = len(answer.used) == -(-count // 8) and not bits[count:].any()
    if not fits or len(answer.digests) != int(used.sum()) * width * 8:
        raise ProtocolViolation(peer="the target", why="digests of another number than asked for")
    rows = np.full((count, width), zero, dtype=np.uint64)
    rows[used] = np.frombuffer(answer.digests, dtype="<u8").reshape(-1, width)
    return rows.reshape(-1)


@dataclass(frozen=True)
class Compared:
    """The target's disks to compare with; empty, and why, when it cannot be done."""

    disks: Mapping[DiskId, RemoteDisk]
    traffic: Traffic
    why_not: str = ""
    adopted: str = ""  # the adopted copy they are of; empty: they are of a point


def open_compare(
    link: Link,
    machine: MachineId,
    point: CommittedPoint,
    keys: Mapping[DiskId, KeyId],
    *,
    clock: Clock,
    cancel: threading.Event,
    wait: bool,
    on_wait: Callable[[SecondsiteError], None] | None = None,
) -> Compared:
    """Find out whether the target's digests of `point` can be had, before anything is read at the source.

    keys: the data key of each disk here. wait: until the target has made a lost table again.
    on_wait: told why, once. Raises what may pass otherwise (link.down), and TransferCancelled.
    """
    traffic = Traffic()
    disks = {
        disk.id: RemoteDisk(link, machine, disk, point.number, traffic=traffic)
        for disk in point.disks
        if keys.get(disk.id) == disk.key_id
    }
    end = clock.monotonic() + READY_SECONDS_MAX
    pause = ASK_AGAIN_SECONDS
    for disk in disks.values():
        while True:
            try:
                disk.sums(np.zeros(1, dtype=np.int64))
                break
            except SecondsiteError as error:
                if cancel.is_set():
                    raise TransferCancelled(what=f"the compare of machine {machine}") from error
                ready = error_code(error) != DigestsNotReady.code
                if ready and error.retryable:
                    raise
                if ready or not wait or clock.monotonic() > end:
                    return Compared({}, traffic, why_not=str(error))
                if on_wait is not None:
                    on_wait(error)
                clock.wait(cancel, pause)
                pause = min(2 * pause, ASK_AGAIN_SECONDS_MAX)
    return Compared(disks, traffic)
