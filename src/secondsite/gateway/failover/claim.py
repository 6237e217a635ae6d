"""Claims of a failover in the store: taking a machine over, and giving it back (architecture's rule 2).

A claim is made on the head that was looked at, and once by its nonce. So what is asked again after a crash
finds the claim of before, and a point that came in between is seen and chosen anew: nothing that the source
has committed when it lost its authority is passed over unasked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.messages.failover import HeldMachine
from secondsite.gateway.messages.failovererrors import AlreadyTakenOver
from secondsite.gateway.target.receive import WRITER_BYTES_MAX, writer_name
from secondsite.journal.chain import Head, Journal
from secondsite.journal.chain_errors import HeadMoved
from secondsite.journal.keys import VaultKey
from secondsite.journal.manifest import decode_record
from secondsite.journal.state import StateBusy
from secondsite.journal.store import ObjectExists, ObjectMissing
from secondsite.model.failover import (
    FAILOVER,
    MOVED,
    NOBODY,
    REVERSE,
    ROLL_BACK,
    hand_over_nonce,
    roll_back_nonce,
)
from secondsite.model.points import Claim, known_epoch
from secondsite.transfer.protocols import TargetHead

BEFORE_CLAIM = mark("failover.before-claim")
AFTER_CLAIM = mark("failover.after-claim")
HANDED_OVER = mark("held.handed-over")

# A source that commits a point each second is passed at once; more attempts mean that something is wrong.
ATTEMPTS_MAX = 50


def writer_of(journal: Journal, head: Head) -> str:
    """Who writes in the epoch in force; empty when nobody does, or it is not known any more."""
    if head.claim is not None:
        return head.claim.claimant
    with contextlib.suppress(ObjectMissing):
        name = writer_name(journal.machine, head.epoch)
        return journal.store.get(name, size_bytes_max=WRITER_BYTES_MAX).decode()
    return ""


def claim_of(journal: Journal, nonce: str) -> Claim | None:
    """The claim made with a nonce, if it was made and counts."""
    for record in journal.records():
        if isinstance(record, Claim) and record.nonce == nonce:
            return record
    return None


def take_over(
    journal: Journal, *, us: str, operation: str, name: str, clock: Clock, choose: Callable[[Head], None]
) -> Claim:
    """Make this site the machine's authority, durably, on a head for which `choose` has fixed the point.

    choose: fixes and pins the point to boot, as of the head it is given; called again when that moved.

    Raises what `choose` raises, AlreadyTakenOver, StateBusy; then nothing was claimed.
    """
    for _ in range(ATTEMPTS_MAX):
        earlier, head = claim_of(journal, operation), journal.head()
        if earlier is not None and earlier.epoch == head.epoch:
            return earlier
        check_free(head, name)
        choose(head)
        crash_point(BEFORE_CLAIM)
        with contextlib.suppress(HeadMoved):
            claim = journal.claim(
                name=name, claimant=us, reason=FAILOVER, clock=clock, expected=head, nonce=operation
            )
            crash_point(AFTER_CLAIM)
            keep_writer(journal, claim)
            return claim
    raise StateBusy(machine=journal.machine)


def believed(head: TargetHead, vault: VaultKey | None, *, us: str) -> Claim | None:
    """What a target told `us` of whose a machine is, opened with our own key; None where that says nothing.

    It is of the epoch in force, or of an earlier one where another gateway writes now. Raises what a foreign
    or damaged record raises.
    """
    if head.claim is None:
        return None
    record = decode_record(head.claim, vault.log_key(head.machine) if vault is not None else None)
    if not isinstance(record, Claim) or record.machine != head.machine:
        return None
    others = head.claimant not in (None, NOBODY, us)
    return record if record.epoch == head.epoch or (others and record.epoch < head.epoch) else None


def taken_here(journal: Journal, us: str) -> int:
    """The epoch in which a failover of `us` took the machine over, while that is in force here; else 0.

    Also where the store cannot be read: a copy that stands still in vain harms less than two that run.
    """
    with contextlib.suppress(SecondsiteError):
        claim = journal.head().claim
        if claim is not None and claim.reason in MOVED and claim.claimant == us:
            return claim.epoch
    return 0


def check_free(head: Head, name: str) -> None:
    """Raise AlreadyTakenOver where a failover is the claim in force."""
    claim = head.claim
    if claim is not None and claim.reason in MOVED:
        raise AlreadyTakenOver(
            machine=name, claimant=claim.claimant, epoch=claim.epoch, claimed_at=claim.claimed_at
        )


def give_back(journal: Journal, *, to: str, operation: str, name: str, clock: Clock) -> Claim:
    """Make the source of before the authority again: a new claim, since epochs never go back."""
    nonce = roll_back_nonce(operation)
    for _ in range(ATTEMPTS_MAX):
        with contextlib.suppress(HeadMoved):
            claim = journal.claim(
                name=name, claimant=to, reason=ROLL_BACK, clock=clock, expected=journal.head(), nonce=nonce
            )
            keep_writer(journal, claim)
            return claim
    raise StateBusy(machine=journal.machine)


def hand_over(journal: Journal, held: HeldMachine, *, us: str, clock: Clock) -> Claim | None:
    """Where nothing of a machine is left at this site, let its store serve who took it over from there.

    Until then it says that this site is the authority, by a failover of before, or that another one is, who
    was it since: who is it now could never be protected to here. Sources of before are held by the new claim
    as by the old one. None: the store says something else already. Raises HeadMoved, and as the store does.
    """
    head = journal.head()
    claim = head.claim
    nonce = hand_over_nonce(held.machine, held.epoch)
    if claim is not None and claim.nonce == nonce:
        keep_writer(journal, claim)  # a kill may have come in between
        return None
    if claim is None:
        return None
    ours = claim.reason in MOVED and claim.claimant == us
    # a reversal for who had the machine before, which was taken back
    former = claim.reason == REVERSE and claim.claimant != held.claimant
    # its epoch does not say it: reversals that are taken back raise that
    if known_epoch(claim) + former > held.known() or not (ours or former):
        return None
    made = journal.claim(
        name=held.name,
        claimant=held.claimant,
        reason=REVERSE,
        clock=clock,
        expected=head,
        nonce=nonce,
        above=held.epoch,
        known=held.known(),
    )
    crash_point(HANDED_OVER)
    keep_writer(journal, made)
    return made


def keep_writer(journal: Journal, claim: Claim) -> None:
    """As the receiver does, for when the chain no longer holds the claim."""
    with contextlib.suppress(ObjectExists):
        journal.store.put(writer_name(claim.machine, claim.epoch), claim.claimant.encode())
