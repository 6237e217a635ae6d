"""What goes wrong at a source, and what must not follow from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from secondsite.base.units import KIB, MIB
from secondsite.gateway.source import subblocks
from secondsite.gateway.source.pace import Policy
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.subblocks import SideLog, SubBlockTable
from secondsite.journal.digests import values_of
from secondsite.model.events import Event
from secondsite.model.states import ItemState
from secondsite.transfer.errors import LinkDown
from secondsite.transfer.shipping import Shipment
from support.source_rig import Rig

pytestmark = pytest.mark.fault


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, limit_bytes=2 * MIB)
    yield made
    made.close()


def protected(rig: Rig, *, frequency_seconds: float = 3600) -> Replication:
    replication = rig.open(frequency_seconds=frequency_seconds)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    return replication


def check_next_point(rig: Rig, replication: Replication) -> int:
    content = rig.content()
    taken = replication.take_point(seconds_max=30)
    assert rig.view(taken.number) == content
    return taken.number


def sent_since(rig: Rig, number: int) -> int:
    return sum(point.sent_bytes for point in rig.points() if point.number > number)


def test_link_cut_beyond_the_cache_pauses_capture_and_catches_up_without_a_full_copy(rig: Rig) -> None:
    rig.scribble(100)
    replication = protected(rig, frequency_seconds=0.05)
    before = len(rig.points())
    rig.memory_link.cut()
    for _ in range(400):
        rig.fabric.write(
            rig.machine, "vda", rig.chance.randrange(60) * 128 * KIB, rig.chance.randbytes(64 * KIB)
        )
        if replication.board.state is ItemState.PAUSED:
            break
        rig.until(lambda: True, "")
        rig.clock.wait(replication._stop, 0.02)
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "bitmap mode")
    assert "replicate.bitmap-mode" in rig.codes()
    spooled = sum(p.stat().st_size for p in (rig.directory / "spool").rglob("*") if p.is_file())
    assert spooled <= rig.limit_bytes + 256 * KIB, "the cache keeps its limit (records of segments aside)"
    assert rig.fabric.open_captures(rig.machine) == 0, "the host pays nothing while we wait"
    rig.scribble(50)
    rig.memory_link.heal()
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected again")
    check_next_point(rig, replication)
    assert "replicate.resync" not in rig.codes()
    assert all(point.parent_checkpoint for point in rig.points()[1:]), "increments only"
    assert len(rig.points()) > before


def test_an_abandoned_cycle_leaves_nothing_in_the_table(rig: Rig) -> None:
    rig.scribble(100)
    replication = protected(rig)
    check_next_point(rig, replication)
    rig.fabric.write(rig.machine, "vda", 0, b"A" * 8 * KIB)
    rig.memory_link.cut()
    sealed = len(rig.shipper.shipments(rig.machine))
    replication.set_policy(Policy(copy_frequency_seconds=0.02))
    rig.until(lambda: len(rig.shipper.shipments(rig.machine)) > sealed, "a cycle is captured")
    rig.until(lambda: bool(replication._line.pending), "and sealed")
    replication._line.give_up("a test loses it", replication._hooks)
    rig.memory_link.heal()
    check_next_point(rig, replication)


def test_planted_bug_an_update_before_the_commit_is_caught(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    put = SubBlockTable._put

    def hasty(table: SubBlockTable, log: SideLog, first: int, values: subblocks.Uint64s) -> None:
        put(table, log, first, values)
        table._known = True
        subblocks._write(table._fd, subblocks._HEADER_BYTES, first, values)

    monkeypatch.setattr(SubBlockTable, "_put", hasty)
    with pytest.raises(AssertionError):
        test_an_abandoned_cycle_leaves_nothing_in_the_table(rig)


def test_cache_lost_starts_again_from_the_last_committed_checkpoint(rig: Rig) -> None:
    rig.scribble(100)
    replication = protected(rig)
    check_next_point(rig, replication)
    rig.memory_link.cut()
    rig.scribble(20)
    replication.set_policy(Policy(copy_frequency_seconds=0.02))
    rig.until(lambda: len(replication._line.pending) >= 3, "cycles wait for the link")
    rig.close()
    shutil.rmtree(rig.directory / "spool")
    shutil.rmtree(rig.directory / "subblocks")
    rig.memory_link.heal()
    full_copies = rig.codes().count("replicate.resync")
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    check_next_point(rig, replication)
    assert rig.codes().count("replicate.resync") == full_copies
    assert all(point.parent_checkpoint for point in rig.points()[1:])


def test_orderly_restart_keeps_the_table_and_a_wrong_stamp_voids_it(rig: Rig) -> None:
    rig.scribble(100)
    rig.fabric.write(rig.machine, "vda", 0, rig.chance.randbytes(64 * KIB))
    replication = protected(rig)
    check_next_point(rig, replication)
    rig.until(lambda: not replication._line.pending, "all committed")
    rig.close()
    voids = rig.codes().count("capture.table-void")
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    # the same bytes written again: tracking calls them changed, the table knows better
    rig.until(lambda: not replication._line.pending, "no cycle under way")
    same = rig.fabric.content(rig.machine, "vda")[: 64 * KIB]
    before = rig.points()[-1].number
    rig.fabric.write(rig.machine, "vda", 0, same)
    check_next_point(rig, replication)
    assert rig.codes().count("capture.table-void") == voids
    assert sent_since(rig, before) == 0, "nothing had changed"
    rig.close()
    path = rig.directory / "subblocks" / "vda.table"
    page = path.read_bytes()[: subblocks._HEADER_BYTES]
    stamp = subblocks._decode_header(page)
    assert stamp is not None
    wrong = subblocks.Stamp(
        machine=stamp.machine, disk=stamp.disk, epoch=1, point=stamp.point - 1, size_bytes=stamp.size_bytes
    )
    with path.open("r+b") as file:
        file.write(subblocks._encode_header(wrong))
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    assert rig.codes().count("capture.table-void") == voids + 1
    before = rig.points()[-1].number
    rig.fabric.write(rig.machine, "vda", 0, same)
    check_next_point(rig, replication)
    assert sent_since(rig, before) > 0, "a void table drops nothing"


def test_a_disk_that_grows_reads_zeros_in_its_new_part(rig: Rig) -> None:
    rig.scribble(100)
    replication = protected(rig)
    check_next_point(rig, replication)
    old = rig.points()[-1].number
    before = rig.view(old)
    rig.fabric.resize(rig.machine, "vdb", 6 * MIB + 512)
    rig.fabric.write(rig.machine, "vdb", 5 * MIB, b"new" * 1000)
    number = check_next_point(rig, replication)
    assert {str(d.id): d.size_bytes for d in rig.journal.point(number).disks}["vdb"] == 6 * MIB + 512
    assert "capture.table-void" in rig.codes()
    assert rig.view(old) == before, "a view has its point's size"
    rig.fabric.resize(rig.machine, "vdb", 3 * MIB)
    check_next_point(rig, replication)
    rig.fabric.resize(rig.machine, "vdb", 4 * MIB)
    check_next_point(rig, replication)


def test_tracking_lost_resends_only_differences_and_keeps_older_points(rig: Rig) -> None:
    rig.scribble(100)
    replication = protected(rig)
    check_next_point(rig, replication)
    older = {point.number: rig.view(point.number) for point in rig.points()}
    everything = rig.points()[0].sent_bytes
    rig.fabric.write(rig.machine, "vda", MIB, rig.chance.randbytes(12 * KIB))
    rig.fabric.discard(rig.machine, "vda", 2 * MIB, MIB)
    rig.fabric.lose_tracking(rig.machine)
    check_next_point(rig, replication)
    assert "replicate.resync" in rig.codes()
    resync = next(point for point in rig.points()[1:] if point.parent_checkpoint is None)
    assert resync.sent_bytes < everything / 2
    for number, content in older.items():
        assert rig.view(number) == content


def test_busy_and_gone_sources_are_waited_for(rig: Rig) -> None:
    rig.scribble(20)
    replication = protected(rig, frequency_seconds=0.05)
    rig.fabric.set_busy(rig.machine, "another product's backup")
    rig.until(lambda: "fabric.source-busy" in rig.codes(), "an event")
    rig.fabric.set_busy(rig.machine, "")
    rig.fabric.fail_reads(rig.machine, 2)
    rig.scribble(20)
    check_next_point(rig, replication)
    assert "replicate.resync" not in rig.codes()


def test_another_writers_claim_holds_the_source(rig: Rig) -> None:
    rig.scribble(20)
    replication = protected(rig, frequency_seconds=0.05)
    journal = rig.receiver.journal(rig.machine)
    journal.claim(
        name="shop", claimant="gateway-b", reason="failover", clock=rig.clock, expected=journal.head()
    )
    last = rig.points()[-1].number
    rig.until(lambda: "replicate.held" in rig.codes(), "the hold")
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "its state, which follows what is told")
    assert rig.points()[-1].number == last, "no point of the old epoch counts after the claim"
    shown = replication.board.show(spool_bytes=0)
    assert (shown.last_point, shown.rpo_seconds, shown.epoch) == (None, None, 2), (
        "none of them is its own now"
    )
    assert "gateway-b is its writer since epoch 2" in shown.note


def test_a_held_source_says_nothing_of_what_it_could_not_count_from(rig: Rig) -> None:
    """The newest point is another writer's: that no bitmap of ours leads there is no trouble."""
    rig.scribble(20)
    protected(rig, frequency_seconds=0.05)
    journal = rig.receiver.journal(rig.machine)
    journal.claim(
        name="shop", claimant="gateway-b", reason="failover", clock=rig.clock, expected=journal.head()
    )
    rig.until(lambda: "replicate.held" in rig.codes(), "the hold")
    rig.close()
    rig.fabric.lose_tracking(rig.machine)
    before = len(rig.codes())
    rig.open(frequency_seconds=0.05)
    rig.until(lambda: "replicate.held" in rig.codes()[before:], "the hold after a restart")
    assert "tracking.checkpoint-unknown" not in rig.codes()


def test_unprotect_leaves_nothing_of_ours(rig: Rig) -> None:
    rig.scribble(20)
    replication = protected(rig, frequency_seconds=0.05)
    replication.unprotect()
    assert rig.fabric.open_source(rig.machine).checkpoints() == []
    assert rig.fabric.open_captures(rig.machine) == 0
    assert rig.shipper.shipments(rig.machine) == []
    assert list((rig.directory / "subblocks").iterdir()) == []
    rig.shipper.close()
    rig.replication = None


def test_at_most_six_checkpoints_while_the_link_is_cut(rig: Rig) -> None:
    rig.scribble(20)
    replication = protected(rig, frequency_seconds=0.02)
    rig.memory_link.cut()
    rig.until(lambda: len(replication._line.pending) >= 9, "many cycles wait")
    # the newest of a cycle under way may be there besides
    assert len(rig.fabric.open_source(rig.machine).checkpoints()) <= 7
    committed = rig.points()[-1].checkpoint
    assert committed in rig.fabric.open_source(rig.machine).checkpoints()
    rig.memory_link.heal()
    rig.scribble(20)
    check_next_point(rig, replication)


def test_values_keep_unknown_zero_and_digests_apart() -> None:
    digests = np.array([[0, 0], [0, 5], [1, 7], [9, 0]], dtype=np.uint64)
    assert values_of(digests).tolist() == [1, 7, 7, 9]


def test_a_first_point_that_an_earlier_process_sealed_ends_the_first_copy(rig: Rig) -> None:
    """Its state would stay that of the beginning for good, and a job of the server would wait for ever."""
    rig.scribble(20)
    with mock.patch.object(rig.memory_link, "commit", side_effect=LinkDown(peer="gateway-b", why="cut")):
        replication = rig.open(frequency_seconds=3600)
        rig.until(lambda: bool(_sealed(rig)), "a sealed point")
        assert replication.board.state is ItemState.INITIAL_REPLICATION
        rig.close()
    replication = rig.open(frequency_seconds=3600, start=False)
    assert _sealed(rig)
    replication.start()
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    told = [entry.text for entry in _events(rig) if entry.code == "item.state"]
    assert [text.split(" is ")[1].split()[0] for text in told][-2:] == [
        "InitialReplicationInProgress",
        "Protected",
    ]
    check_next_point(rig, replication)


def _sealed(rig: Rig) -> list[Shipment]:
    return [one for one in rig.shipper.shipments(rig.machine) if one.proposal is not None]


def _events(rig: Rig) -> list[Event]:
    return [event for _, event in rig.events.since(0, 10_000)]
