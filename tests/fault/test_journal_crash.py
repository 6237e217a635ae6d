"""Power lost at every operation of a commit and of a promotion: every committed point reads as before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from secondsite.journal import promote as promotion
from secondsite.journal.base_sums import differing, read_sums
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store import StoreUnavailable
from secondsite.journal.store_memory import Faults
from support.journal_model import DISKS, PowerCut, Replica


def prepared(seed: int, points: int = 5) -> Replica:
    replica = Replica(seed)
    replica.claim()
    for _ in range(points):
        replica.random_point()
    return replica


def survivors(replica: Replica, seed: int) -> frozenset[int]:
    """Any of the unsynced writes may have reached the disk: none, all, every other."""
    count = max((base.unsynced_count for base in replica.bases.values()), default=0)
    return [frozenset(), frozenset(range(count)), frozenset(range(0, count, 2))][seed % 3]


def operations(work: Callable[[Replica], object]) -> int:
    """How many operations the work takes when nothing goes wrong."""
    replica = prepared(1)
    before = replica.faults.count
    work(replica)
    return replica.faults.count - before


def run_cut(replica: Replica, at: int, work: Callable[[Replica], object], *, landed: bool) -> None:
    replica.faults.cut_at = replica.faults.count + at
    replica.faults.landed = landed
    with pytest.raises(PowerCut):
        work(replica)


def promote_third(replica: Replica) -> None:
    replica.promote(replica.journal.points()[2].number)


PROMOTION_OPERATIONS = operations(promote_third)


@pytest.mark.parametrize("landed", [False, True], ids=["lost", "landed"])
@pytest.mark.parametrize("at", range(1, PROMOTION_OPERATIONS + 1))
def test_power_cut_at_every_operation_of_a_promotion(at: int, *, landed: bool) -> None:
    replica = prepared(1)
    target = replica.journal.points()[2].number
    run_cut(replica, at, promote_third, landed=landed)
    replica.restart(survivors(replica, at))
    replica.check()
    replica.promote(target)
    replica.check()
    replica.random_point()
    replica.check()
    for disk in DISKS:
        key = replica.keys[disk]
        sums = read_sums(replica.store, replica.journal.machine, disk)
        assert list(differing(replica.bases[disk], sums, key.digest_seed())) == []


@pytest.mark.parametrize("landed", [False, True], ids=["lost", "landed"])
@pytest.mark.parametrize("at", range(1, 6))
def test_power_cut_at_every_operation_of_a_commit(at: int, *, landed: bool) -> None:
    replica = prepared(2, points=2)
    points = len(replica.points)
    before = {disk: bytes(content) for disk, content in replica.now.items()}
    epoch = replica.journal.head().epoch

    def work(replica: Replica) -> None:
        refs = [
            replica.segment(disk, epoch, [(3, 5, "random"), (40, 2, "zero")]) for disk in DISKS for _ in "12"
        ]
        proposal = replica.proposal(refs)
        replica.commit(proposal)

    run_cut(replica, at, work, landed=landed)
    after = {disk: bytes(content) for disk, content in replica.now.items()}
    replica.restart()
    found = replica.journal.points()
    if len(found) > points:
        # the record landed although nobody was told: then the point is whole
        replica.points[found[-1].number] = after
        replica.newest = found[-1].checkpoint
    else:
        for disk, content in before.items():
            replica.now[disk][:] = content
    replica.check()
    replica.random_point()
    replica.check()


def test_a_failed_operation_is_repeated_and_nothing_is_lost() -> None:
    for at in range(1, PROMOTION_OPERATIONS + 1, 3):
        replica = prepared(3)
        target = replica.journal.points()[2].number
        replica.faults.fail_at = replica.faults.count + at
        for _ in range(2):
            with contextlib.suppress(StoreUnavailable):
                replica.promote(target)
        replica.faults = Faults()
        replica.check()


# -- planted bugs: each must be caught by the power cuts above ------------------------------------


def _floor_after_writes(patch: pytest.MonkeyPatch) -> None:
    """The base is written while points below still read it."""
    real_raise, real_write = promotion._raise_floor, promotion._write_bases

    def raise_floor(journal: Journal, number: int, open_base: promotion.OpenBase, now: str) -> object:
        state = journal.state()
        if not state.bases:
            return real_raise(journal, number, open_base, now)
        import msgspec

        real_write(
            journal,
            msgspec.structs.replace(state, floor=number),
            RING[0],
            open_base,
            promotion.Promoted(number),
        )
        return real_raise(journal, number, open_base, now)

    patch.setattr(promotion, "_raise_floor", raise_floor)


RING: list[KeyRing] = []


def _delete_before_promoted(patch: pytest.MonkeyPatch) -> None:
    """Segments go before the state says that the base holds them."""
    real = promotion._write_bases

    def write(journal: Journal, state: object, *rest: object) -> None:
        for point in journal.points():
            if point.number <= journal.state().floor:
                for segment in point.segments:
                    journal.store.delete(journal.segment_name(segment))
        real(journal, state, *rest)  # type: ignore[arg-type]

    patch.setattr(promotion, "_write_bases", write)


def _no_sync(patch: pytest.MonkeyPatch) -> None:
    """The state says that the base holds what its volume has not kept yet."""
    from secondsite.journal.bases_memory import MemoryBase

    patch.setattr(MemoryBase, "sync", lambda self: None)


def _oldest_wins(patch: pytest.MonkeyPatch) -> None:
    from secondsite.journal.merged_index import Layer

    real = Layer.under
    patch.setattr(Layer, "under", lambda self, newer: real(newer, self))


def _record_before_segments(patch: pytest.MonkeyPatch) -> None:
    """A commit that does not look whether its segments are there."""
    patch.setattr(Journal, "_check_segments", lambda self, proposal: None)


def _sweep() -> bool:
    """A share of the suite above; True when all is right."""
    try:
        for at in range(1, PROMOTION_OPERATIONS + 1, 2):
            replica = prepared(1)
            replica.promote(replica.journal.points()[0].number)
            RING[:] = [replica.ring]
            replica.faults.cut_at = replica.faults.count + at
            try:
                replica.promote(replica.journal.points()[1].number)
            except PowerCut:
                replica.restart(survivors(replica, at))
            replica.check()
        ref = replica.segment(DISKS[0], replica.journal.head().epoch, [(1, 1, "random")])
        replica.store.delete(replica.journal.segment_name(ref))
        try:
            replica.commit(replica.proposal([ref]))
        except Exception:  # noqa: BLE001 - refused, as it must be
            return True
        replica.check()
    except (AssertionError, Exception):  # noqa: BLE001 - whatever the bug broke
        return False
    return False


def test_the_sweep_passes_on_sound_code() -> None:
    assert _sweep()


@pytest.mark.parametrize(
    "plant",
    [_floor_after_writes, _delete_before_promoted, _no_sync, _oldest_wins, _record_before_segments],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert not _sweep(), "the suite let this bug through"
