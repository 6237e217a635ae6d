"""Pause, resume and a comparison of everything, by order: one machine, a real journal, real views."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.source import copying
from secondsite.gateway.source.firstcopying import Seed
from secondsite.gateway.source.orders import Orders
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.wishes import PointNotTaken
from secondsite.model.ids import DiskId
from secondsite.model.states import ItemState
from support.source_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def protected(rig: Rig, *, frequency_seconds: float = 3600) -> Replication:
    rig.scribble(50)
    replication = rig.open(frequency_seconds=frequency_seconds)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    replication.take_point(seconds_max=30)  # the next one by itself is `frequency_seconds` away now
    rig.until(lambda: not replication._line.pending, "its commit")
    return replication


def paused(rig: Rig, replication: Replication, by: str = "maria") -> None:
    replication.set_orders(paused_by=by, resync=rig.orders.resync)
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "Paused")


def resumed(rig: Rig, replication: Replication) -> None:
    replication.set_orders(paused_by="", resync=rig.orders.resync)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")


def newest_is_the_source(rig: Rig) -> bool:
    return rig.view(rig.points()[-1].number) == rig.content()


def test_nothing_is_captured_while_it_rests_and_nothing_is_lost(rig: Rig) -> None:
    replication = protected(rig, frequency_seconds=0.05)
    paused(rig, replication)
    known = len(rig.points())
    checkpoints = rig.fabric.open_source(rig.machine).checkpoints()
    rig.scribble(40)
    shown = replication.board.show(spool_bytes=0)
    assert (shown.note, shown.paused_by) == ("paused by maria", "maria")
    with pytest.raises(PointNotTaken, match="paused by maria"):
        replication.take_point(seconds_max=30)
    rig.clock.wait(threading.Event(), 0.5)  # ten cycles' time: that none comes cannot be waited for
    assert len(rig.points()) == known
    assert rig.fabric.open_source(rig.machine).checkpoints()[-1] == checkpoints[-1]
    resumed(rig, replication)
    rig.until(lambda: newest_is_the_source(rig), "a point with all that was written meanwhile")
    assert "replicate.resync" not in rig.codes()
    assert replication.board.show(spool_bytes=0).note == ""


def test_a_pause_that_comes_while_a_due_cycle_tidies_up_is_obeyed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replication = protected(rig)
    tidy, known = replication._cycles.tidy, rig.points()

    def meanwhile() -> None:
        tidy()
        if not replication._orders.paused_by:
            replication.set_orders(paused_by="maria", resync=rig.orders.resync)

    monkeypatch.setattr(replication._cycles, "tidy", meanwhile)
    rig.scribble()
    replication.hurry()
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "Paused")
    assert not replication._line.pending, "no cycle was begun after the pause was acknowledged"
    assert rig.points() == known


def test_what_is_drained_leaves_nothing_to_be_committed_later(rig: Rig) -> None:
    replication = protected(rig, frequency_seconds=0.05)
    rig.memory_link.cut()
    rig.scribble()
    rig.until(lambda: bool(replication._line.pending), "an instant on its way")
    assert not replication.drain()
    rig.until(lambda: not replication._capturing, "the end of a cycle that was under way")
    number = len(replication._line.pending)
    rig.scribble()
    rig.clock.wait(threading.Event(), 0.5)  # ten cycles' time: that none comes cannot be waited for
    assert len(replication._line.pending) == number
    rig.memory_link.heal()
    rig.until(replication.drain, "their commits")
    rig.close()
    assert not rig.shipper.shipments(rig.machine)
    rig.orders = Orders()
    again = rig.open(frequency_seconds=0.05)
    rig.until(lambda: newest_is_the_source(rig), "the next loop goes on")
    assert again.board.state is ItemState.PROTECTED


def test_what_was_captured_before_is_committed_during_the_pause(rig: Rig) -> None:
    replication = protected(rig)
    rig.memory_link.cut()
    rig.scribble()
    expected = rig.content()
    replication.hurry()
    rig.until(lambda: bool(replication._line.pending), "an instant on its way")
    known = len(rig.points())
    paused(rig, replication)
    rig.scribble()
    rig.memory_link.heal()
    rig.until(lambda: len(rig.points()) == known + 1, "its commit")
    assert rig.view(rig.points()[-1].number) == expected
    rig.until(lambda: not rig.shipper.shipments(rig.machine), "an empty cache")
    assert replication.board.state is ItemState.PAUSED


def test_a_pause_survives_a_restart_and_what_was_sealed_is_sent(rig: Rig) -> None:
    replication = protected(rig)
    known = len(rig.points())
    rig.memory_link.cut()
    rig.scribble()
    expected = rig.content()
    replication.hurry()
    rig.until(lambda: bool(replication._line.pending), "an instant on its way")
    rig.close()
    rig.memory_link.heal()
    rig.scribble()
    rig.orders = Orders(paused_by="maria")
    again = rig.open(frequency_seconds=0.05)
    rig.until(lambda: len(rig.points()) == known + 1, "the commit of what an earlier process sealed")
    assert rig.view(rig.points()[-1].number) == expected
    assert again.board.state is ItemState.PAUSED
    newest = rig.points()[-1].number
    rig.until(lambda: again.board.show(spool_bytes=0).last_point == newest, "the word of its commit")
    resumed(rig, again)
    rig.until(lambda: newest_is_the_source(rig), "a point with all that was written meanwhile")


def test_a_first_copy_rests_between_slices_and_goes_on_there(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "Seed", functools.partial(Seed, slice_bytes=MIB))
    for disk, size in (("vda", 8 * MIB), ("vdb", 4 * MIB)):
        rig.fabric.write(rig.machine, disk, 0, rig.chance.randbytes(size))
    rig.orders = Orders(paused_by="maria")
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "Paused")
    rig.until(lambda: replication._planned, "rest")
    assert rig.shipper.shipments(rig.machine) == []  # not even begun
    slices: list[int] = []

    def pause_after_three() -> None:
        slices.append(1)
        if len(slices) == 4:
            replication.set_orders(paused_by="maria", resync=0)
        rig.orders.require_capture("shop")

    monkeypatch.setattr(copying.Copier, "_before_slice", lambda *_: pause_after_three)
    replication.set_orders(paused_by="", resync=0)
    rig.until(lambda: len(slices) == 4 and replication.board.state is ItemState.PAUSED, "Paused again")
    done = replication.board.progress
    assert done is not None
    assert 3 * MIB <= done.done_bytes < 12 * MIB
    resumed(rig, replication)
    assert len(slices) == 12  # eleven slices, as without the pause, and the one that was not begun
    assert newest_is_the_source(rig)


def test_everything_is_compared_once_by_a_number(rig: Rig) -> None:
    replication = protected(rig)
    kept: list[int] = []
    rig.orders.keep = kept.append
    older = {point.number: rig.view(point.number) for point in rig.points()}
    # something no tracking saw: the disk's content differs from what the target holds
    vda = rig.fabric._find(rig.machine).disks[DiskId("vda")]
    vda.write(MIB, b"changed behind everyone's back", tracked=False)
    replication.set_orders(paused_by="", resync=1)
    rig.until(lambda: kept == [1] and replication.board.state is ItemState.PROTECTED, "the comparison")
    assert rig.codes().count("replicate.resynced") == 1
    assert newest_is_the_source(rig)
    for number, content in older.items():
        assert rig.view(number) == content  # rule 4: never in place
    known = rig.codes().count("replicate.resync")
    replication.set_orders(paused_by="", resync=1)  # the same call again
    replication.take_point(seconds_max=30)
    assert rig.codes().count("replicate.resync") == known
    assert kept == [1]


def test_a_comparison_asked_for_while_it_rests_is_done_afterwards(rig: Rig) -> None:
    replication = protected(rig)
    paused(rig, replication)
    replication.set_orders(paused_by="maria", resync=1)
    rig.clock.wait(threading.Event(), 0.3)
    assert "replicate.resync" not in rig.codes()
    rig.orders.resync = 1
    resumed(rig, replication)
    rig.until(lambda: rig.orders.resynced == 1, "the comparison")


def test_a_disk_is_left_out_and_taken_back(rig: Rig) -> None:
    protected(rig)
    first = rig.points()[-1].number
    before = rig.view(first)
    rig.close()
    rig.left_out = (DiskId("vdb"),)
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    rig.scribble()
    fewer = replication.take_point(seconds_max=30)
    assert list(rig.view(fewer.number)) == ["vda"]
    rig.close()
    rig.left_out = ()
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    whole = replication.take_point(seconds_max=30)
    assert rig.view(whole.number) == rig.content()
    assert rig.view(first) == before
    assert "replicate.resync" not in rig.codes()
