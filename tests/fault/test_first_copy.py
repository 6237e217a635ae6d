"""First copies in slices: under writes, with failing reads, cut links, restarts and lost checkpoints.

Every capture that leaves a checkpoint is remembered with what the disks held then; each point must be that.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import KIB, MIB
from secondsite.fabrics.base import Quiesce
from secondsite.fabrics.memory import MemoryCapture, MemorySource
from secondsite.gateway.source import copying, replicate
from secondsite.gateway.source.firstcopying import Seed
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.target.receive import PeerRule
from secondsite.model.states import ItemState
from support.source_rig import US, Rig

pytestmark = pytest.mark.fault


class Slices:
    """A rig whose copies have slices of 1 MiB, each of which may be waited for."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.rig = Rig(directory, disks={"vda": 12 * MIB, "vdb": 6 * MIB}, limit_bytes=64 * MIB)
        self.instants: dict[str, dict[str, bytes]] = {}
        self.slices = 0
        self.gate: threading.Event | None = None  # captures wait for it
        self.hold_from = 0  # the slice before which they do
        patch.setattr(copying, "Seed", functools.partial(Seed, slice_bytes=MIB))
        original = MemorySource.capture

        def capture(
            source: MemorySource, *, since: str | None, checkpoint: str | None, quiesce: Quiesce
        ) -> MemoryCapture:
            self.slices += since is None
            if self.gate is not None and since is None and self.slices > self.hold_from:
                self.gate.wait(30)
            with source._machine.lock:
                made = original(source, since=since, checkpoint=checkpoint, quiesce=quiesce)
                if checkpoint is not None:
                    self.instants[checkpoint] = dict(self.rig.content())
                return made

        patch.setattr(MemorySource, "capture", capture)
        for disk, size in (("vda", 12 * MIB), ("vdb", 6 * MIB)):
            for offset in range(0, size // 2, 64 * KIB):
                self.rig.fabric.write(self.rig.machine, disk, offset, self.rig.chance.randbytes(64 * KIB))

    def until_slices(self, count: int) -> None:
        self.rig.until(lambda: self.slices >= count, f"slice {count}")

    def finish(self, replication: Replication) -> None:
        self.rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
        replication.take_point(seconds_max=30)
        for point in self.rig.points():
            assert self.rig.view(point.number) == self.instants[point.checkpoint], f"point {point.number}"


@pytest.fixture
def slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slices]:
    made = Slices(tmp_path, monkeypatch)
    yield made
    if made.gate is not None:
        made.gate.set()
    made.rig.close()


def test_slices_of_different_instants_become_one_point_at_one_instant(slices: Slices) -> None:
    rig = slices.rig
    slices.gate, slices.hold_from = threading.Event(), 3
    replication = rig.open(frequency_seconds=3600)
    slices.until_slices(3)
    rig.scribble(100)  # before and behind what is copied already
    rig.fabric.discard(rig.machine, "vda", 0, MIB)
    assert replication.board.state is ItemState.INITIAL_REPLICATION
    assert rig.points() == []
    slices.gate.set()
    rig.scribble(100)
    slices.finish(replication)
    assert slices.slices >= 9, "9 MiB of data in slices of 1 MiB"


def test_a_restart_goes_on_with_the_next_slice(slices: Slices) -> None:
    rig = slices.rig
    slices.gate, slices.hold_from = threading.Event(), 5
    rig.open(frequency_seconds=3600)
    slices.until_slices(6)
    assert rig.replication is not None
    rig.replication._stop.set()
    slices.gate.set()
    rig.close()
    rig.scribble(50)
    done = slices.slices
    slices.gate = None
    replication = rig.open(frequency_seconds=3600)
    slices.finish(replication)
    assert "replicate.copy-restarted" not in rig.codes()
    assert slices.slices - done <= 6, "what was copied is not copied again"


def test_a_restart_after_the_checkpoint_died_begins_again_and_says_so(slices: Slices) -> None:
    rig = slices.rig
    slices.gate, slices.hold_from = threading.Event(), 5
    rig.open(frequency_seconds=3600)
    slices.until_slices(6)
    assert rig.replication is not None
    rig.replication._stop.set()
    slices.gate.set()
    rig.close()
    rig.fabric.lose_tracking(rig.machine)
    rig.scribble(50)
    slices.gate = None
    slices.finish(rig.open(frequency_seconds=3600))
    assert "replicate.copy-restarted" in rig.codes()


def test_reads_that_fail_are_tried_again(slices: Slices) -> None:
    rig = slices.rig
    rig.fabric.fail_reads(rig.machine, 3)
    slices.finish(rig.open(frequency_seconds=3600))
    assert "replicate.copy-restarted" not in rig.codes()


def test_a_link_cut_during_the_copy_waits_with_no_capture_open(slices: Slices) -> None:
    rig = slices.rig
    rig.limit_bytes = 8 * MIB  # less than the copy
    slices.gate, slices.hold_from = threading.Event(), 2
    replication = rig.open(frequency_seconds=3600)
    slices.until_slices(3)
    rig.memory_link.cut()
    slices.gate.set()
    rig.until(lambda: "ship.link-trouble" in rig.codes(), "the cut")
    rig.scribble(50)
    rig.memory_link.heal()
    slices.finish(replication)
    assert "replicate.copy-restarted" not in rig.codes()


def test_a_copy_refused_for_good_goes_on_once_it_is_allowed(
    slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicate, "RETRY_SECONDS_MAX", 0.2)
    rig = slices.rig
    slices.gate, slices.hold_from = threading.Event(), 4
    replication = rig.open(frequency_seconds=3600)
    slices.until_slices(5)
    rig.receiver.set_peers({})
    slices.gate.set()
    rig.until(lambda: "link.peer-not-allowed" in rig.codes(), "the refusal")
    rig.receiver.set_peers({US: PeerRule()})
    slices.gate = None
    slices.finish(replication)
    assert "replicate.copy-restarted" not in rig.codes()


def test_a_copy_whose_cache_lost_bytes_begins_again(slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "RETRY_SECONDS_MAX", 0.2)
    rig = slices.rig
    first = slices.gate = threading.Event()
    slices.hold_from = 1
    rig.open(frequency_seconds=3600)
    slices.until_slices(2)
    rig.memory_link.cut()
    # the next three slices find no link
    slices.gate, slices.hold_from = threading.Event(), 4
    first.set()
    slices.until_slices(5)
    assert rig.replication is not None
    rig.replication._stop.set()
    slices.gate.set()
    rig.close()
    kept = [path for path in rig.directory.rglob("*.seg") if path.stat().st_size]
    assert kept, "slices wait in the cache"
    for path in kept:
        path.write_bytes(bytes(path.stat().st_size))  # a power cut: the names are there, the bytes are not
    rig.memory_link.heal()
    slices.gate = None
    slices.finish(rig.open(frequency_seconds=3600))
