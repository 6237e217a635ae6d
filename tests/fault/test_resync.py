"""Resynchronisation by hash compare: after everything was lost but the data, only what differs travels."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.fabrics.base import Quiesce
from secondsite.fabrics.memory import MemoryCapture, MemorySource
from secondsite.gateway.source import copying
from secondsite.gateway.source.firstcopying import Seed
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.subblocks import SubBlockTable, Uint64s
from secondsite.model.points import Point
from secondsite.model.states import ItemState
from secondsite.transfer.errors import DigestsNotReady, DigestsRefused
from secondsite.transfer.protocols import DigestAnswer, DigestQuery
from secondsite.transfer.spool import Batch
from support.source_rig import Rig

pytestmark = pytest.mark.fault

DISKS = {"vda": 12 * MIB, "vdb": 6 * MIB + 512}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, disks=DISKS)
    for disk in DISKS:
        for offset in range(0, 4 * MIB, 64 * KIB):
            made.fabric.write(made.machine, disk, offset, made.chance.randbytes(64 * KIB))
    yield made
    made.close()


def protected(rig: Rig) -> Replication:
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    replication.take_point(seconds_max=30)  # so that the next cycle is an hour away
    rig.until(lambda: not replication._line.pending, "all committed")
    return replication


def lose_everything(rig: Rig) -> None:
    """The source's checkpoints and table, as after a lost host volume; the target's table stays."""
    rig.close()
    rig.fabric.lose_tracking(rig.machine)
    for path in (rig.directory / "subblocks").iterdir():
        path.unlink()


def resynced(rig: Rig, older: dict[int, dict[str, bytes]]) -> Point:
    """The point of the resync, after checking it and those before."""
    content = rig.content()
    protected(rig)
    [newest] = [p for p in rig.points() if p.number > max(older) and p.parent_checkpoint is None]
    assert rig.view(newest.number) == content
    for number, held in older.items():
        assert rig.view(number) == held, "older points stay as they were"
    return newest


def views(rig: Rig) -> dict[int, dict[str, bytes]]:
    return {point.number: rig.view(point.number) for point in rig.points()}


def test_only_differences_travel_when_table_and_tracking_are_lost(rig: Rig) -> None:
    protected(rig)
    older, everything = views(rig), rig.points()[0].sent_bytes
    rig.fabric.write(rig.machine, "vda", MIB + 4 * KIB, rig.chance.randbytes(12 * KIB))
    rig.fabric.discard(rig.machine, "vda", 2 * MIB, MIB)
    rig.fabric.write(rig.machine, "vdb", 5 * MIB, rig.chance.randbytes(4 * KIB))
    lose_everything(rig)
    point = resynced(rig, older)
    assert point.sent_bytes < 24 * KIB < everything / 100
    texts = rig.texts()
    assert "replicate.resynced: resync: 1 MiB of" in texts or "1.0" in texts, texts
    # the table has learned what the target holds: what is written again as it was is not sent again
    same = rig.fabric.content(rig.machine, "vda")[: 64 * KIB]
    rig.fabric.write(rig.machine, "vda", 0, same)
    assert rig.replication is not None
    taken = rig.replication.take_point(seconds_max=30)
    assert rig.points()[-1].number == taken.number
    assert rig.points()[-1].sent_bytes == 0


def test_an_unchanged_disk_costs_its_digests_alone(rig: Rig) -> None:
    protected(rig)
    older = views(rig)
    lose_everything(rig)
    point = resynced(rig, older)
    assert point.sent_bytes == 0
    assert point.segments == ()
    [event] = [event for _, event in rig.events.since(0, 100_000) if event.code == "replicate.resynced"]
    assert event.data["differed_bytes"] == 0
    assert float(event.data["digest_bytes"]) < 1024


def test_disks_that_grew_and_shrank_are_compared_as_far_as_both_reach(rig: Rig) -> None:
    protected(rig)
    older = views(rig)
    rig.fabric.resize(rig.machine, "vda", 14 * MIB + 512)
    rig.fabric.resize(rig.machine, "vdb", 3 * MIB)
    rig.fabric.write(rig.machine, "vda", 13 * MIB, b"new" * 1000)
    lose_everything(rig)
    point = resynced(rig, older)
    assert point.sent_bytes < 100 * KIB
    rig.close()
    older = views(rig)
    rig.fabric.resize(rig.machine, "vdb", 6 * MIB)
    lose_everything(rig)
    resynced(rig, older)


def test_a_target_without_its_table_makes_it_again_and_is_asked_again(rig: Rig) -> None:
    protected(rig)
    older = views(rig)
    rig.fabric.write(rig.machine, "vda", 0, rig.chance.randbytes(8 * KIB))
    lose_everything(rig)
    for tables in rig.fingerprints._machines.values():
        for disk in list(tables._open):
            tables._drop(disk)
    point = resynced(rig, older)
    assert point.sent_bytes < 16 * KIB
    assert "fingerprint.rebuilt" in rig.codes()
    assert "digests.not-ready" in rig.codes()


def test_a_target_that_cannot_answer_gets_everything(rig: Rig) -> None:
    protected(rig)
    older = views(rig)
    rig.receiver._digests = None
    lose_everything(rig)
    point = resynced(rig, older)
    assert point.sent_bytes > 4 * MIB
    assert "all of it is sent" in rig.texts()


def test_a_target_that_stops_answering_in_the_middle_is_asked_again(rig: Rig) -> None:
    protected(rig)
    older = views(rig)
    rig.fabric.write(rig.machine, "vdb", MIB, rig.chance.randbytes(8 * KIB))
    lose_everything(rig)
    answers = 0

    def sometimes(journal: object, query: DigestQuery) -> DigestAnswer:
        nonlocal answers
        answers += 1
        if query.level == "values" and answers < 6:
            raise DigestsNotReady(disk=query.disk, point=query.point, why="a test")
        return rig.fingerprints.digests(journal, query)  # type: ignore[arg-type]

    rig.receiver._digests = sometimes
    point = resynced(rig, older)
    assert answers >= 6
    assert point.sent_bytes < 16 * KIB


class Sliced:
    """Slices of 1 MiB, one of which may be waited for; what every checkpoint's instant held."""

    def __init__(self, rig: Rig, patch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.instants: dict[str, dict[str, bytes]] = {}
        self.slices = 0
        self.before_slice: dict[int, threading.Event] = {}
        patch.setattr(copying, "Seed", functools.partial(Seed, slice_bytes=MIB))
        original = MemorySource.capture

        def capture(
            source: MemorySource, *, since: str | None, checkpoint: str | None, quiesce: Quiesce
        ) -> MemoryCapture:
            self.slices += since is None
            gate = self.before_slice.get(self.slices) if since is None else None
            if gate is not None:
                gate.wait(30)
            with source._machine.lock:
                made = original(source, since=since, checkpoint=checkpoint, quiesce=quiesce)
                if checkpoint is not None:
                    self.instants[checkpoint] = dict(rig.content())
                return made

        patch.setattr(MemorySource, "capture", capture)


def interrupted(rig: Rig, sliced: Sliced) -> None:
    """A resync ends in the middle of its third slice; what it changed there is changed back meanwhile.

    vda's fourth MiB (the slice under way) holds other bytes than the target's while it is read first, so that
    they are sent, and the target's again when it is read once more.
    """
    protected(rig)
    before = rig.fabric.content(rig.machine, "vda")[2 * MIB : 2 * MIB + 64 * KIB]
    rig.fabric.write(rig.machine, "vda", 2 * MIB, rig.chance.randbytes(64 * KIB))
    rig.fabric.write(rig.machine, "vda", 0, rig.chance.randbytes(4 * KIB))
    lose_everything(rig)
    sliced.slices = 0
    ended = threading.Event()
    set_note = Batch.set_note
    notes = 0

    def failing(batch: Batch, note: bytes) -> None:
        nonlocal notes
        notes += 1
        if notes >= 3:  # also when it is tried again before it is closed
            ended.set()
            raise DigestsRefused(disk="vda", point=0, why="a test ends it")
        set_note(batch, note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "set_note", failing)
        rig.open(frequency_seconds=3600)
        rig.until(ended.is_set, "the third slice")
        rig.close()
    rig.fabric.write(rig.machine, "vda", 2 * MIB, before)


def finish(rig: Rig, sliced: Sliced) -> None:
    protected(rig)
    for point in rig.points():
        assert rig.view(point.number) == sliced.instants[point.checkpoint], f"point {point.number}"


def test_an_interrupted_resync_goes_on_without_what_followed_its_note(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliced = Sliced(rig, monkeypatch)
    interrupted(rig, sliced)
    done = sliced.slices
    finish(rig, sliced)
    assert "replicate.copy-restarted" not in rig.codes()
    assert sliced.slices - done < done + 6
    assert sum(point.parent_checkpoint is None for point in rig.points()) == 2


def test_planted_bug_keeping_what_followed_the_note_is_caught(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliced = Sliced(rig, monkeypatch)
    monkeypatch.setattr(Batch, "rewind", lambda batch: None)
    interrupted(rig, sliced)
    with pytest.raises(AssertionError):
        finish(rig, sliced)


def test_planted_bug_learning_into_a_table_whose_log_is_dead_is_caught(tmp_path: Path) -> None:
    """Of a shipment whose log is dead nobody knows what it holds: then nothing may be dropped."""
    table = SubBlockTable(tmp_path / "t", "m", "vda", on_void=lambda why: None)  # type: ignore[arg-type]
    table.void("", size_bytes=MIB)
    log = table.begin()
    values: Uint64s = np.full(4, 99, dtype=np.uint64)
    table.learn(log, 0, values)
    assert not table.changed(log, 0, values).any()
    table.void("its volume failed")
    table.learn(log, 0, values)
    assert table.changed(log, 0, values).all()
    table.close()


def test_errors_of_digests_say_what_to_do() -> None:
    for error in (DigestsNotReady, DigestsRefused):
        made: SecondsiteError = error(disk="vda", point=3, why="x")
        assert all(made.sentences())
