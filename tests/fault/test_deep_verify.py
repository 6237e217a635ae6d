"""Deep verify over the memory fabric: a pass under writes finds nothing, a planted difference is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import KIB, MIB, SUB_BLOCK_BYTES
from secondsite.gateway.messages.gateway import DeepVerification
from secondsite.gateway.source import deepverify
from secondsite.gateway.source.deepverify import DeepVerifier, VerifyRunning
from secondsite.gateway.source.encode import DiskTrack
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.subblocks import Bools, SideLog, SubBlockTable, Uint64s
from secondsite.model.ids import DiskId
from secondsite.model.states import ItemState
from secondsite.transfer.errors import DigestsNotReady
from secondsite.transfer.protocols import DigestAnswer, DigestQuery
from support.source_rig import Rig

pytestmark = pytest.mark.fault

DISKS = {"vda": 5 * MIB, "vdb": 3 * MIB + 512}
TOTAL = sum(DISKS.values())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, disks=DISKS)
    made.scribble(100)
    yield made
    made.close()


def protected(rig: Rig) -> Replication:
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    replication.take_point(seconds_max=30)
    return replication


def verified(rig: Rig, *, writing: bool = False) -> DeepVerification:
    rig.verifier.start()

    def done() -> bool:
        if writing:
            rig.scribble(3)
        return rig.verifier.show().finished_at is not None

    rig.until(done, "the pass")
    return rig.verifier.show()


def test_a_pass_under_writes_finds_nothing(rig: Rig) -> None:
    protected(rig)
    found = verified(rig, writing=True)
    assert (found.error, found.differing, found.differing_bytes) == ("", (), 0)
    assert found.done_bytes == found.total_bytes == TOTAL
    assert found.first_point is not None
    assert found.last_point is not None
    assert found.last_point > found.first_point, "each slice with a point of its own"
    assert "verify.deep-done" in rig.codes()
    assert "verify.differs" not in rig.codes()
    again = verified(rig)
    assert again.done_bytes == TOTAL


def write_unseen(rig: Rig, disk: str, offset: int, data: bytes) -> None:
    """Change a disk behind its tracking, as a rolled back storage would."""
    rig.fabric._machines[rig.machine].disks[DiskId(disk)].write(offset, data, tracked=False)


def test_what_tracking_did_not_see_is_found_and_named(rig: Rig) -> None:
    protected(rig)
    old = rig.fabric.content(rig.machine, "vdb")[MIB + 8 * KIB : MIB + 16 * KIB]
    write_unseen(rig, "vdb", MIB + 8 * KIB, bytes(byte ^ 0xFF for byte in old))
    found = verified(rig)
    assert [(r.disk, r.offset, r.length) for r in found.differing] == [("vdb", MIB + 8 * KIB, 8 * KIB)]
    assert found.differing_bytes == 8 * KIB
    event = next(e for _, e in rig.events.since(0, 100_000) if e.code == "verify.differs")
    assert event.severity.name == "CRITICAL"
    assert f"{MIB + 8 * KIB}..{MIB + 16 * KIB}" in event.text
    assert "since when is not known" in event.text


def healed(rig: Rig) -> None:
    """What differed is right from a point on; those before read as they did."""
    rig.until(lambda: "verify.healed" in rig.codes(), "the healing")
    points = rig.points()
    assert rig.view(points[-1].number) == rig.content()
    found = next(e for _, e in rig.events.since(0, 100_000) if e.code == "verify.differs")
    wrong = int(found.data["point"])
    assert rig.view(wrong) != rig.content(), "an older point stays what it is"
    event = next(e for _, e in rig.events.since(0, 100_000) if e.code == "verify.healed")
    assert int(event.data["point"]) > wrong
    assert event.data["healed_bytes"] == found.data["differing_bytes"]
    again = verified(rig)
    assert (again.error, again.differing_bytes) == ("", 0)
    assert rig.codes().count("repair.sent") == 1, "once is enough"


def test_what_tracking_did_not_see_is_healed(rig: Rig) -> None:
    protected(rig)
    old = rig.fabric.content(rig.machine, "vdb")[MIB + 8 * KIB : MIB + 16 * KIB]
    write_unseen(rig, "vdb", MIB + 8 * KIB, bytes(byte ^ 0xFF for byte in old))
    assert verified(rig).differing_bytes == 8 * KIB
    healed(rig)


def test_a_second_finding_says_when_it_was_right_last(rig: Rig) -> None:
    protected(rig)
    first = verified(rig).first_point
    old = rig.fabric.content(rig.machine, "vda")[: 4 * KIB]
    write_unseen(rig, "vda", 0, bytes(byte ^ 0xFF for byte in old))
    verified(rig)
    event = next(e for _, e in rig.events.since(0, 100_000) if e.code == "verify.differs")
    assert event.data["sound_point"] == first
    assert f"at point {first} or later" in event.text
    healed(rig)


def test_what_is_known_to_differ_is_sent_after_a_restart(rig: Rig) -> None:
    replication = protected(rig)
    old = rig.fabric.content(rig.machine, "vda")[: 4 * KIB]
    write_unseen(rig, "vda", 0, bytes(byte ^ 0xFF for byte in old))
    rig.verifier.hurry = None  # no cycle of its own follows what is found
    rig.verifier.start()
    replication.take_point(seconds_max=30)
    rig.until(lambda: bool(rig.verifier._kept.wrong), "the finding")
    rig.close()
    protected(rig)
    healed(rig)


def test_what_encoding_lost_is_found_and_healed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug in the data path: a sub-block that changed is not sent."""
    replication = protected(rig)
    changed = SubBlockTable.changed
    victim = 2 * MIB

    def blind(
        table: SubBlockTable, log: SideLog, first: int, values: Uint64s, before: Uint64s | None = None
    ) -> Bools:
        differs = changed(table, log, first, values, before)
        index = victim // SUB_BLOCK_BYTES - first
        if table is rig.tables[DiskId("vda")] and 0 <= index < len(differs):
            differs[index] = False
        return differs

    with monkeypatch.context() as patch:
        patch.setattr(SubBlockTable, "changed", blind)
        rig.fabric.write(rig.machine, "vda", victim, rig.chance.randbytes(64 * KIB))
        replication.take_point(seconds_max=30)
    found = verified(rig)
    assert [(r.disk, r.offset, r.length) for r in found.differing] == [("vda", victim, SUB_BLOCK_BYTES)]
    healed(rig)


def test_planted_bug_healing_by_the_table_of_known_blocks_is_caught(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what the target was given, and so that nothing differs."""
    monkeypatch.setattr(DiskTrack, "must_send", lambda track, first, differs: differs)
    with pytest.raises(AssertionError):
        test_what_encoding_lost_is_found_and_healed(rig, monkeypatch)


def test_one_pass_at_a_time_and_a_target_that_fails_for_a_while(rig: Rig) -> None:
    protected(rig)
    service = rig.receiver._digests
    assert service is not None
    failures = 0

    def sometimes(journal: object, query: DigestQuery) -> DigestAnswer:
        nonlocal failures
        failures += 1
        if failures < 4:
            raise DigestsNotReady(disk=query.disk, point=query.point, why="a test")
        return service(journal, query)  # type: ignore[arg-type]

    rig.receiver._digests = sometimes
    rig.verifier.start()
    with pytest.raises(VerifyRunning):
        rig.verifier.start()
    rig.until(lambda: rig.verifier.show().finished_at is not None, "the pass")
    assert rig.verifier.show().done_bytes == TOTAL


def test_a_target_that_refuses_ends_the_pass_with_its_reason(rig: Rig) -> None:
    protected(rig)
    rig.receiver._digests = None
    found = verified(rig)
    assert "keeps no digests" in found.error
    assert "verify.deep-failed" in rig.codes()


def test_a_share_is_verified_each_day_and_goes_on_after_a_restart(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepverify, "ROLLING_SLICE_BYTES", MIB)
    rig.rolling_days = 1 / 86_400  # all of it in a second
    replication = protected(rig)
    seen = []
    for _ in range(3):
        rig.until(lambda: not rig.verifier._comparing and rig.verifier._share(TOTAL) >= MIB, "a share is due")
        before = rig.verifier._rolling
        replication.take_point(seconds_max=30)
        # the place is kept in a file a moment after it is known here
        rig.until(lambda: before != rig.verifier._rolling, "its slice is compared")  # noqa: B023
        rig.until(lambda: not rig.verifier._comparing, "its place is kept")
        seen.append(rig.verifier._rolling)
    kept = json.loads((rig.directory / "verify.json").read_text())
    assert (kept.get("disk", ""), kept.get("offset", 0)) == (seen[-1].disk, seen[-1].offset)
    rig.close()
    protected(rig)
    assert rig.verifier._rolling.disk >= seen[-1].disk
    assert "verify.differs" not in rig.codes()


def test_planted_bug_comparing_with_another_instants_point_is_caught(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of one instant against the point of a later one: what was written between differs."""
    committed = DeepVerifier.committed

    def late(verifier: DeepVerifier, point: object) -> None:
        waiting = verifier._waiting
        if waiting is not None and waiting.checkpoint != point.checkpoint:  # type: ignore[attr-defined]
            waiting.checkpoint = point.checkpoint  # type: ignore[attr-defined]
            committed(verifier, point)  # type: ignore[arg-type]
        elif waiting is not None:
            verifier.hurry() if verifier.hurry else None

    monkeypatch.setattr(DeepVerifier, "committed", late)
    protected(rig)
    for _ in range(50):  # in one pass it may be that nothing is written between the two instants
        if verified(rig, writing=True).differing:
            return
    pytest.fail("points of other instants were compared, and nothing was found")
