"""A base, read once: compared with the sums promotion kept of it, and digested for the walk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import BLOCK_BYTES_MAX, MIB, SUB_BLOCK_BYTES
from secondsite.journal.base_sums import read_rows, row_sum
from secondsite.journal.bases import BaseFailed, BaseImage
from secondsite.journal.chain import Journal
from secondsite.journal.digests import Digests, digest_sub_blocks, no_digests
from secondsite.journal.names import base_sums_prefix
from secondsite.journal.scrub_disk import DiskWalk, Loss, PairArray
from secondsite.journal.scrub_segment import UNUSABLE
from secondsite.journal.scrub_types import Damage, Meter
from secondsite.journal.scrub_work import in_order
from secondsite.journal.store import ObjectMissing
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId

RUN_BYTES = 1 * MIB
_EXTENT_BYTES = 256 * MIB  # of a base that is asked at once where it has data


class KnownSums:
    """The sum of each 64 KiB of a base as the store knows it."""

    def __init__(self, known: NDArray[np.bool_], sums: PairArray) -> None:
        self._known, self._sums = known, sums

    def of(self, number: int) -> tuple[int, int] | None:
        """None: nothing is known of it, or it is not to be asked."""
        if not self._known[number]:
            return None
        row = self._sums.rows[number]
        return int(row[0]), int(row[1])

    def forget(self, where: Extents) -> None:
        """Do not judge what lies in `where`."""
        for start, end in where.align(BLOCK_BYTES_MAX, len(self._known) * BLOCK_BYTES_MAX):
            self._known[start // BLOCK_BYTES_MAX : -(-end // BLOCK_BYTES_MAX)] = False

    def where(self) -> Extents:
        """What they cover."""
        numbers = np.flatnonzero(self._known).astype(np.int64)
        return Extents.from_arrays(numbers * BLOCK_BYTES_MAX, (numbers + 1) * BLOCK_BYTES_MAX)


@dataclass
class _Run:
    """What reading a run of a base found."""

    offset: int
    digests: Digests
    differing: list[int] = field(default_factory=list)  # 64 KiB that are not what promotion left
    failed: list[int] = field(default_factory=list)  # 64 KiB that could not be read
    why: str = ""


def read_known(
    journal: Journal, disk: DiskId, size_bytes: int, *, meter: Meter, sums: PairArray
) -> tuple[KnownSums, int, list[Damage]]:
    """(the sums, objects read, damaged objects); later objects win. A damaged one says nothing."""
    with contextlib.suppress(ObjectMissing):
        return _read_known(journal, disk, size_bytes, meter, sums, missing=ObjectMissing)
    # a promotion made them one since they were listed; that happens once in many promotions
    return _read_known(journal, disk, size_bytes, meter, sums, missing=())


def _read_known(
    journal: Journal,
    disk: DiskId,
    size_bytes: int,
    meter: Meter,
    sums: PairArray,
    *,
    missing: type[ObjectMissing] | tuple[()],
) -> tuple[KnownSums, int, list[Damage]]:
    """missing: what is raised instead of being told as damage."""
    rows = -(-size_bytes // BLOCK_BYTES_MAX)
    known = np.zeros(rows, dtype=np.bool_)
    damages: list[Damage] = []
    objects = 0
    for name in journal.store.list(base_sums_prefix(journal.machine, disk)):
        objects += 1
        try:
            for part in read_rows(journal.store, name):
                inside = part[part["number"] < rows]
                numbers = inside["number"].astype(np.int64)
                sums.rows[numbers] = inside["sum"]
                known[numbers] = True
                meter.spend(part.nbytes)
        except missing:
            raise
        except UNUSABLE as error:
            damages.append(Damage(name, "base-sums", str(error)))
    return KnownSums(known, sums), objects, damages


def read_base(
    walk: DiskWalk, base: BaseImage, known: KnownSums, seed: int, *, pool: Executor, meter: Meter
) -> None:
    """Digest what the base holds into the walk; what differs from its sums, or cannot be read, is lost."""
    size = walk.size_bytes
    differing: list[int] = []
    failed: list[int] = []
    why = ""

    def read(piece: tuple[int, int]) -> _Run:
        return _read_run(base, piece, known, seed)

    for run in in_order(pool, read, _pieces(base, known, size, meter)):
        meter.spend(len(run.digests) * SUB_BLOCK_BYTES)
        first = run.offset // SUB_BLOCK_BYTES
        walk.digests.write(slice(first, first + len(run.digests)), run.digests)
        differing += run.differing
        failed += run.failed
        why = why or run.why
    if failed:
        walk.lose(Loss(base.locator, "base", why, _ranges(failed, size), blind=True))
    if differing:
        text = f"{len(differing)} blocks of 64 KiB are not what promotion left there"
        walk.lose(Loss(base.locator, "base", text, _ranges(differing, size), suspect=True))


def _ranges(numbers: list[int], size: int) -> Extents:
    starts = np.array(numbers, dtype=np.int64) * BLOCK_BYTES_MAX
    return Extents.from_arrays(starts, np.minimum(starts + BLOCK_BYTES_MAX, size))


def _pieces(base: BaseImage, known: KnownSums, size: int, meter: Meter) -> Iterator[tuple[int, int]]:
    """Aligned runs with data or a sum, ascending."""
    covered = known.where()
    for start in range(0, size, _EXTENT_BYTES):
        end = min(size, start + _EXTENT_BYTES)
        there = base.data_extents(start, end - start).union(covered.clip(start, end))
        there = there.clip(start, end).align(BLOCK_BYTES_MAX, size)
        meter.expect(there.total_bytes)
        yield from there.pieces(RUN_BYTES, aligned=True)


def _read_run(base: BaseImage, piece: tuple[int, int], known: KnownSums, seed: int) -> _Run:
    offset, length = piece
    buffer = memoryview(bytearray(length))
    run = _Run(offset, no_digests(0))
    try:
        base.read_into(offset, buffer)
    except BaseFailed as error:
        # one bad sector costs its 64 KiB, not the whole run
        run.why = str(error)
        for at in range(0, length, BLOCK_BYTES_MAX):
            part = buffer[at : min(at + BLOCK_BYTES_MAX, length)]
            try:
                base.read_into(offset + at, part)
            except BaseFailed:
                part[:] = bytes(len(part))
                run.failed.append((offset + at) // BLOCK_BYTES_MAX)
    run.digests = digest_sub_blocks(buffer, offset // SUB_BLOCK_BYTES, seed)
    for at in range(0, length, BLOCK_BYTES_MAX):
        number = (offset + at) // BLOCK_BYTES_MAX
        expected = known.of(number)
        if expected is None or number in run.failed:
            continue
        if row_sum(buffer[at : min(at + BLOCK_BYTES_MAX, length)], number, seed) != expected:
            run.differing.append(number)
    return run


def base_lost(walk: DiskWalk, where: str, error: SecondsiteError) -> None:
    """The whole base is not to be had: no view of the disk opens, whatever the journal holds."""
    everything = Extents.whole(1 << 62)
    walk.lose(Loss(where, "base", str(error), everything, blind=True, forever=True))
