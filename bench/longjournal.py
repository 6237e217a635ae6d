"""A journal of a day's points at 5 s, made at once by the journal's own writer in the source's name."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from secondsite.base.clock import SystemClock
from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.gateway.target.views import open_point_view
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.page_write import write_log_page, write_page
from secondsite.journal.segment import SegmentHead, SegmentWriter
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import DiskView
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.model.points import Point, PointProposal, SegmentRef

POINTS_A_DAY = 17_280
BLOCKS_A_POINT = 2
SECONDS_MAX = 900.0  # on a quiet machine of two cores it takes one to two minutes


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """What is made inside reaches the disk together, at the end: one sync instead of six a point."""
    with mock.patch("os.fsync"), mock.patch("os.fdatasync"):
        yield
    os.sync()


def lengthen(home: Path, machine: MachineId, wanted: int, say: Callable[[str], None]) -> None:
    """Commit points until there are so many; each says two blocks again as they are.

    The last one has the name of the checkpoint that was newest before, so that its source, which has that,
    goes on from there. Nobody else may write meanwhile.

    home: the gateway's directory, with its store and vault key. Raises RuntimeError after `SECONDS_MAX`.
    """
    vault = VaultKey.load(home / "vault.key")
    store = LocalStore(home / "store")
    journal = Journal(store, machine, vault)
    keys = KeyRing(store, machine, vault)
    points = journal.points()
    newest, left = points[-1], wanted - len(points)
    checkpoint, begun = newest.checkpoint, time.monotonic()
    chance = random.Random(1)
    with open_point_view(journal, newest.number, vault) as view, unsynced():
        disk = newest.disks[0].id
        blocks = _blocks_with_data(view.disks[disk])
        for number in range(left):
            if number % 2000 == 0:
                say(f"{number} of {left} points made")
            ref = _segment(journal, newest, keys, view.disks[disk], chance.sample(blocks, BLOCKS_A_POINT))
            name = checkpoint if number == left - 1 else f"made-up-{number}"
            newest = journal.commit(_proposal(newest, name, ref), clock=SystemClock())
            if time.monotonic() - begun > SECONDS_MAX:
                raise RuntimeError(f"only {number} points were made in {SECONDS_MAX:.0f} s")
        say(f"{left} points made in {time.monotonic() - begun:.0f} s; now their pages, as upkeep makes them")
        without: set[tuple[DiskId, int, int]] = set()
        without_log: set[int] = set()
        while write_log_page(journal, without=without_log) or write_page(journal, keys, without=without):
            if time.monotonic() - begun > SECONDS_MAX:
                raise RuntimeError(f"their pages were not made in {SECONDS_MAX:.0f} s")
    say(f"pages made, {time.monotonic() - begun:.0f} s in all")


def _blocks_with_data(disk: DiskView) -> list[int]:
    """The first ones, enough to choose from."""
    found: list[int] = []
    for start, end, zero in disk.extents(0, disk.size_bytes):
        if not zero:
            found += range(-(-start // SUB_BLOCK_BYTES), end // SUB_BLOCK_BYTES)
        if len(found) > 100_000:
            break
    return found


def _segment(journal: Journal, newest: Point, keys: KeyRing, view: DiskView, blocks: list[int]) -> SegmentRef:
    disk = newest.disks[0]
    head = SegmentHead(
        machine=newest.machine,
        disk=disk.id,
        epoch=newest.epoch,
        id=SegmentId(secrets.token_hex(16)),
        key_id=disk.key_id,
        disk_size_bytes=disk.size_bytes,
    )
    writer = SegmentWriter(head, keys.get(disk.key_id))
    for block in sorted(blocks):
        at = block * SUB_BLOCK_BYTES
        writer.add(at, memoryview(view.read(at, SUB_BLOCK_BYTES)))
    data, ref = writer.finish()
    journal.store.put(journal.segment_name(ref), data)
    return ref


def _proposal(newest: Point, checkpoint: str, ref: SegmentRef) -> PointProposal:
    return PointProposal(
        machine=newest.machine,
        machine_name=newest.machine_name,
        epoch=newest.epoch,
        nonce=secrets.token_hex(16),
        checkpoint=checkpoint,
        parent_checkpoint=newest.checkpoint,
        asked_at=newest.asked_at,
        given_at=newest.given_at,
        consistency=newest.consistency,
        disks=newest.disks,
        segments=(ref,),
        definition=newest.definition,
    )
