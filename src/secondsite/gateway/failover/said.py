"""What a person says, word for word, to an operation on a machine that was taken over."""

from __future__ import annotations

from collections.abc import Callable

from secondsite.base.errors import InvalidInput
from secondsite.gateway.messages.failover import (
    FailoverPreview,
    FailoverStatus,
    HeldMachine,
    Removal,
    StartFailover,
)
from secondsite.model import confirmations
from secondsite.model.differences import not_as_asked
from secondsite.model.failover import FailoverKind, HeldEvent


def require_said(request: StartFailover, seen: FailoverPreview) -> None:
    """What a person says to a failover before it begins. Raises ConfirmationMissing."""
    if request.kind is FailoverKind.PLANNED:
        why = "Nothing is lost only if the source was stopped in order and this is its last point."
        wanted = confirmations.stopped(seen.machine_name, seen.writer)
        confirmations.require(seen.machine_name, request.confirm, wanted, why)
        return
    why = (
        "While the link is cut nobody can know that the source stands still. Until its gateway "
        "learns of this it may go on working, and what it writes is not in any point."
    )
    confirmations.require(seen.machine_name, request.confirm, seen.confirm, why)


def require_decided(status: FailoverStatus, said: str, sentence: Callable[[str], str], why: str) -> None:
    """What a person says to what follows from it. Raises ConfirmationMissing."""
    confirmations.require(status.machine_name, said, sentence(status.machine_name), why)


def before_commit(differs: str) -> str:
    """Why a sentence is asked for. differs: the machine from what was asked for; empty where it does not."""
    why = "A commit ends the time in which another point can be chosen, or the failover undone."
    return f"{not_as_asked(differs)} {why}".lstrip()


def label_of(status: FailoverStatus, point: int) -> str:
    """Of what it wrote on a point when it ran there last. Raises InvalidInput where nothing is kept."""
    found = [former.label for former in status.former_writes if former.point == point]
    if not found:
        kept = ", ".join(str(former.point) for former in status.former_writes) or "none"
        why = f"nothing that {status.name} wrote there is kept; it is of: {kept}"
        raise InvalidInput(what=f"point {point} with its writes", why=why)
    return found[-1]


def decision_sentence(held: HeldMachine, event: HeldEvent, remove: Removal) -> tuple[str, str]:
    """What a person says to the release or the discard of a held machine, and why."""
    if event is HeldEvent.RELEASED:
        why = confirmations.why_released(held.claimant, held.epoch)
        return confirmations.released(held.name, held.claimant), why
    why = "It is shut off for good; what it wrote after its last point is on its disks alone."
    return confirmations.discarded(held.name, remove), why
