"""Freezing a guest's file systems for one instant, and what that earned (architecture's rule 14).

libvirt's own calls are used, not raw agent commands: those mark the machine as tainted for its whole run.
The status after the instant is read from the thaw itself: the agent answers how many file systems it thawed,
and answers 0 when they were not frozen any more, which says what the kernel did rather than what the agent
remembers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.libvirt.errors import words
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency

# Windows' shadow copy service gives up a freeze after 10 s by itself; file systems are not held longer on
# any guest. Normal is 0.2 s (measured: freeze 50 to 111 ms, backup begin 90 to 134, thaw 7 to 28).
FREEZE_SECONDS_MAX = 10.0
# How long the agent may be silent while its hooks flush applications; less than the freeze's limit, so that
# what comes after fits as well.
AGENT_SECONDS_MAX = 8
# libvirt's words, "QEMU guest agent is not connected", where nobody has opened the port as far as it knows.
_NOT_CONNECTED = "not connected"


class Lease(Protocol):
    """Something the guard ends in our place if we do not."""

    def renew(self) -> None:
        """Count its deadline from now again."""

    def release(self) -> None:
        """It has ended; may be called twice."""


class Guard(Protocol):
    """What captures need of the guard."""

    def job(self, machine: MachineId, *, seconds: float) -> Lease:
        """Ask for the machine's backup job to be aborted `seconds` from now, or when this process dies."""

    def freeze(self, machine: MachineId, *, seconds: float) -> Lease:
        """Ask for a thaw `seconds` from now, or when this process dies."""

    def held_elsewhere(self, machine: MachineId) -> bool:
        """Whether another living process holds a job on the machine."""


@dataclass
class Freeze:
    """A freeze that was asked for."""

    lease: Lease
    asked_at: float  # monotonic
    count: int  # file systems that were frozen; 0: nothing was
    problem: str = ""
    reached: bool = True  # whether the guest may have been told at all


@dataclass(frozen=True)
class Earned:
    """What a point may be called."""

    consistency: Consistency
    frozen_seconds: float | None
    note: str


def freeze(domain: Any, machine: MachineId, guard: Guard, clock: Clock) -> Freeze:
    """Ask the guest's agent to run its hooks and freeze. The guard knows before the guest does."""
    lease = guard.freeze(machine, seconds=FREEZE_SECONDS_MAX)
    asked_at = clock.monotonic()
    try:
        # libvirt's default is to wait for ever for a freeze.
        domain.agentSetResponseTimeout(AGENT_SECONDS_MAX, 0)
        return Freeze(lease, asked_at, int(domain.fsFreeze(None, 0)))
    except libvirt.libvirtError as error:
        return Freeze(lease, asked_at, 0, problem=words(error), reached=not _never_reached(error))


def thaw(domain: Any, frozen: Freeze, clock: Clock, *, instant_given: bool) -> Earned:
    """Thaw, release the guard's lease only when that is certain, and judge.

    A thaw that fails keeps the lease: the guard goes on trying, from a connection of its own.
    """
    if not frozen.reached:
        frozen.lease.release()
        return judge(frozen, thawed=0, seconds=0.0, instant_given=instant_given)
    try:
        thawed = int(domain.fsThaw(None, 0))
    except libvirt.libvirtError as error:
        seconds = clock.monotonic() - frozen.asked_at
        if not frozen.problem and frozen.count:
            note = f"the guest's agent did not confirm the thaw: {words(error)}"
            return Earned(Consistency.FILE_SYSTEM, seconds, note)
        return Earned(Consistency.CRASH, None, f"the guest could not be frozen: {frozen.problem}")
    seconds = clock.monotonic() - frozen.asked_at
    frozen.lease.release()
    return judge(frozen, thawed=thawed, seconds=seconds, instant_given=instant_given)


def judge(frozen: Freeze, *, thawed: int, seconds: float, instant_given: bool) -> Earned:
    """What a freeze earned. Pure.

    Args:
        frozen: how it began.
        thawed: file systems that still were frozen after the instant.
        seconds: from asking for the freeze until the thaw was confirmed.
        instant_given: whether the host gave the instant at all.
    """
    if frozen.problem:
        return Earned(Consistency.CRASH, None, f"the guest could not be frozen: {frozen.problem}")
    if frozen.count <= 0:
        return Earned(Consistency.CRASH, None, "the guest's agent found no file system to freeze")
    if thawed <= 0 or seconds >= FREEZE_SECONDS_MAX:
        note = f"the guest was thawed by its timer, not after the instant ({seconds:.1f} s)"
        return Earned(Consistency.CRASH, seconds, note)
    if thawed < frozen.count:
        note = f"only {thawed} of {frozen.count} file systems were still frozen after the instant"
        return Earned(Consistency.FILE_SYSTEM, seconds, note)
    if not instant_given:
        return Earned(Consistency.CRASH, seconds, "the host did not give the instant")
    return Earned(Consistency.APPLICATION, seconds, "")


def advice(note: str) -> str:
    """What to do about a note, as a further sentence; empty where that says all. Pure."""
    if _NOT_CONNECTED not in note:
        return ""
    # libvirt forgets that an agent came while a job was open for long, see `jobs._notice_end`
    return (
        " If the agent runs in the guest, restart it there, or restart libvirt's daemon at the host (guests"
        " run on): it may have missed the agent's start."
    )


def _never_reached(error: libvirt.libvirtError) -> bool:
    # No agent is configured, or none has opened its end of the channel: nothing was sent. Every other error
    # may have come after the agent got the command.
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
        return _NOT_CONNECTED in words(error)
    return code in {
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    }


def reset(domain: Any) -> None:
    """Give the agent libvirt's default time again."""
    with contextlib.suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
