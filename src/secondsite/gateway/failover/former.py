"""A machine's former copy at the site that takes it over again: it makes room between the claim and the boot.

Only a copy that was reversed onto (`reverse`) does: a person gave its last writes up then. Whether its images
go with it is asked for, there is no default. Any other machine with the id or the name is in the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.messages.failover import Check, HeldMachine, OldMachine
from secondsite.model.failover import HeldState
from secondsite.model.ids import MachineId

OLD_MACHINE = "old-machine"


class Former(Protocol):
    """Of `fencing.Fencing` what a failover needs."""

    def get(self, machine: MachineId) -> HeldMachine | None:
        """A held machine, or one that was."""

    def make_room(self, machine: MachineId, *, disks: bool) -> None:
        """Remove what was reversed onto; nothing isolates the machine any more. May be repeated."""


def about_former(
    checks: tuple[Check, ...], fabric: Fabric | None, former: Former | None, machine: MachineId, name: str
) -> tuple[Check, ...]:
    """The checks, where what was reversed onto is not in the way by itself: how it goes has to be said."""
    if fabric is None or former is None:
        return checks
    try:
        held = former.get(machine)
        found = [one for one in fabric.machines() if one.id == machine or one.name == name]
    except SecondsiteError:
        return checks  # one of them says why
    if not any(one.id == machine for one in found) or held is None:
        return checks
    return tuple(_instead(checks, held, alone=len(found) == 1))


def _instead(checks: tuple[Check, ...], held: HeldMachine, *, alone: bool) -> Iterator[Check]:
    for check in checks:
        if check.name != "identity" or check.passed:
            yield check
        elif held.state is HeldState.REVERSED:
            if not alone:
                yield check
        else:
            action = (
                f"It is {held.state.value.lower()} here: reverse onto it (`secondsite held reverse`), or "
                "discard and remove it (`secondsite held discard --remove`)."
            )
            yield msgspec.structs.replace(check, action=action)
    if held.state is HeldState.REVERSED:
        yield Check(
            name=OLD_MACHINE,
            passed=False,
            cause=f"the former copy of {held.name} is here, off and guarded, and has to make room",
            action="Say how it goes: --old-machine remove, or remove-with-disks.",
        )


def answered(checks: tuple[Check, ...], old: OldMachine | None) -> tuple[Check, ...]:
    """The checks, once it was said how the former copy goes."""
    if old is None:
        return checks
    return tuple(
        msgspec.structs.replace(check, passed=True, action="") if check.name == OLD_MACHINE else check
        for check in checks
    )
