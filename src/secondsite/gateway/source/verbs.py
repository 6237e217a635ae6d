"""What is done with a standing protection besides changing how it is made: pause, resume, resync.

Each is kept in the desired state first, so that it survives whatever happens to the gateway, and each may be
asked for twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.messages.gateway import ProtectionStatus
from secondsite.gateway.messages.protecterrors import NotProtected
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.states import ItemEvent, ItemState, after

Change = Callable[[Protection | None], Protection]


@dataclass(frozen=True)
class Verbs:
    """Of one gateway. Thread-safe."""

    desired: DesiredState
    state: Callable[[Protection], ItemState]
    put: Callable[[MachineId, Change], Protection]  # keeps what a protection becomes, and follows it
    show: Callable[[Protection], ProtectionStatus]
    events: EventSink
    begin_copy: Callable[[MachineId], None]  # a first copy that waits begins

    def pause(self, machine: MachineId, *, by: str) -> ProtectionStatus:
        """Capture nothing until `resume`; what was captured is sent, and changes go on being tracked.

        The first who paused it stays named. Raises NotProtected, IllegalTransition.
        """
        return self._turn(
            machine,
            ItemEvent.PAUSED,
            lambda now: now if now.paused_by else msgspec.structs.replace(now, paused_by=by),
            by,
        )

    def resume(self, machine: MachineId, *, by: str) -> ProtectionStatus:
        """Capture again; of a machine that is not paused, begin the first copy that waits for its time.

        Raises NotProtected, IllegalTransition.
        """
        found = self.desired.get(machine)
        if found is not None and found.enabled and not found.paused_by:
            self.begin_copy(machine)
        return self._turn(
            machine, ItemEvent.PAUSED, lambda now: msgspec.structs.replace(now, paused_by=""), by
        )

    def resync(self, machine: MachineId, *, by: str, number: int | None = None) -> ProtectionStatus:
        """Compare everything with the target, once for each number; older points stay valid.

        number: None: the one that is asked for and not done yet, else the next. Raises NotProtected,
        IllegalTransition.
        """

        def ask(now: Protection) -> Protection:
            wanted = number if number is not None else max(now.resync, now.resynced + 1)
            return msgspec.structs.replace(now, resync=max(now.resync, wanted))

        return self._turn(machine, ItemEvent.RESYNC_BEGUN, ask, by)

    def _turn(
        self, machine: MachineId, event: ItemEvent, change: Callable[[Protection], Protection], by: str
    ) -> ProtectionStatus:
        found = self.desired.get(machine)
        if found is None:
            raise NotProtected(machine=machine)
        after(self.state(found) if found.enabled else ItemState.DISABLING, event)

        def apply(now: Protection | None) -> Protection:
            if now is None or not now.enabled:  # ended meanwhile
                raise NotProtected(machine=machine)
            return change(now)

        made = self.put(machine, apply)
        tell(self.events, found, made, by)
        return self.show(made)


def tell(events: EventSink, before: Protection | None, now: Protection, by: str) -> None:
    """One event for each thing that changed."""
    if before is None or not now.enabled:
        return
    said = []
    if now.paused_by and not before.paused_by:
        text = f"{now.name} is paused by {by}: nothing is captured, changes go on being tracked"
        said.append(("item.paused", text))
    if before.paused_by and not now.paused_by:
        said.append(("item.resumed", f"{now.name} is resumed by {by}, it was paused by {before.paused_by}"))
    if now.resync > before.resync:
        said.append(
            (
                "item.resync-asked",
                f"everything of {now.name} is to be compared, {by} asked (resync {now.resync})",
            )
        )
    if (before.disks, before.left_out) != (now.disks, now.left_out):
        said.append(
            ("item.disks-changed", f"{now.name} is protected with other disks: {_disks(now)}, by {by}")
        )
    if before.policy != now.policy:
        said.append(("item.policy-changed", f"{now.name} is replicated by another policy, by {by}"))
    for code, text in said:
        events.emit(code, Severity.INFORMATION, text, machine=now.machine)


def _disks(protection: Protection) -> str:
    chosen = "all" if protection.disks is None else ", ".join(protection.disks)
    without = f" without {', '.join(protection.left_out)}" if protection.left_out else ""
    return chosen + without


def over(before: Protection | None, wanted: Protection) -> Protection:
    """What is asked for here, over what is known of the machine."""
    if before is None or not before.enabled:
        return wanted
    kept = {"paused_by": before.paused_by, "resync": before.resync, "resynced": before.resynced}
    return msgspec.structs.replace(wanted, **kept)
