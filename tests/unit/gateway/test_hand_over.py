"""A site that has nothing of a machine left lets its store serve who took the machine over from there."""

from __future__ import annotations

import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover.claim import HANDED_OVER, hand_over, writer_of
from secondsite.gateway.messages.failover import HeldMachine
from secondsite.gateway.target.receive import writer_name
from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.failover import DELETED, FAILOVER, NOBODY, REVERSE, HeldState
from secondsite.model.ids import machine_id
from secondsite.model.points import Claim, known_epoch

B, C = "gateway-b", "gateway-c"
MACHINE = machine_id("8f1c2f0e-6f0a-4f3e-9f61-0d7b8a3c5e11")
CLOCK = FakeClock()


class Killed(BaseException):
    """Ends what runs as a kill does: nothing catches it."""


def held(epoch: int) -> HeldMachine:
    return HeldMachine(
        machine=MACHINE, name="shop", state=HeldState.HELD, why="", claimant=C, epoch=epoch, held_at=""
    )


def journal_of(claimant: str, reason: str, above: int = 0) -> Journal:
    journal = Journal(MemoryStore(), MACHINE, VaultKey.create())
    claim = {"name": "shop", "claimant": claimant, "reason": reason, "above": above}
    journal.claim(**claim, clock=CLOCK, expected=journal.head())  # type: ignore[arg-type]
    return journal


def in_force(journal: Journal) -> tuple[int, str, str]:
    claim = journal.head().claim
    assert isinstance(claim, Claim)
    return claim.epoch, claim.claimant, claim.reason


def test_it_is_handed_over_once_above_every_epoch_also_killed_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journal_of(B, FAILOVER)

    def killed(mark: str) -> None:
        if mark == HANDED_OVER:
            raise Killed

    monkeypatch.setattr(failoverclaim, "crash_point", killed)
    with pytest.raises(Killed):
        hand_over(journal, held(4), us=B, clock=CLOCK)
    monkeypatch.undo()
    for _ in range(2):
        assert hand_over(journal, held(4), us=B, clock=CLOCK) is None, "it was made once"
    assert in_force(journal) == (5, C, REVERSE)
    kept = journal.store.get(writer_name(MACHINE, 5), size_bytes_max=100)
    assert (bytes(kept).decode(), writer_of(journal, journal.head())) == (C, C)


@pytest.mark.parametrize(
    ("claimant", "reason", "above"),
    [
        (B, FAILOVER, 7),
        (C, FAILOVER, 0),
        (C, REVERSE, 0),
        ("gateway-a", REVERSE, 7),
        (NOBODY, DELETED, 0),
        ("gateway-a", "first copy", 0),
    ],
)
def test_what_is_newer_or_of_others_stays(claimant: str, reason: str, above: int) -> None:
    journal = journal_of(claimant, reason, above)
    before = in_force(journal)
    assert hand_over(journal, held(4), us=B, clock=CLOCK) is None
    assert in_force(journal) == before
    assert hand_over(Journal(MemoryStore(), MACHINE, VaultKey.create()), held(4), us=B, clock=CLOCK) is None


@pytest.mark.parametrize(("known", "given"), [(3, True), (4, False)])
def test_reversals_taken_back_keep_no_store_from_who_took_over_later(known: int, *, given: bool) -> None:
    """They raised its epoch above the failover's; what they knew is of before, or as far as that."""
    journal = Journal(MemoryStore(), MACHINE, VaultKey.create())
    claim = {"name": "shop", "claimant": "gateway-a", "reason": REVERSE, "above": 8, "known": known}
    journal.claim(**claim, clock=CLOCK, expected=journal.head())  # type: ignore[arg-type]
    made = hand_over(journal, held(4), us=B, clock=CLOCK)
    assert (made is not None, in_force(journal)) == (
        (True, (10, C, REVERSE)) if given else (False, (9, "gateway-a", REVERSE))
    )
    assert made is None or known_epoch(made) == 4


def test_a_store_that_served_who_had_the_machine_before_is_handed_over_as_well() -> None:
    journal = journal_of("gateway-a", REVERSE)
    assert hand_over(journal, held(4), us=B, clock=CLOCK) is not None
    assert in_force(journal) == (5, C, REVERSE)
