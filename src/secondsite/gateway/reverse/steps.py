"""The steps of a reversal and of taking it back: each may be repeated after a crash. See `reverse`."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.base.crash import mark
from secondsite.fabrics.base import Fabric
from secondsite.fabrics.errors import MachineUnknown
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.failover.claim import ATTEMPTS_MAX, keep_writer
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.messages.adopterrors import AdoptionUnknown
from secondsite.gateway.messages.adoption import ENDED, AdoptionStatus, AdoptRequest
from secondsite.gateway.messages.reverse import ReverseState, ReverseStatus
from secondsite.gateway.messages.reverseerrors import ReverseComplete, ReverseSuperseded
from secondsite.gateway.reverse.checks import written_since
from secondsite.gateway.reverse.record import ReverseRecords
from secondsite.gateway.target.bases import remove_images
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import HeadMoved
from secondsite.journal.drop import bases_removed, delete_dropped, drop_points
from secondsite.journal.state import StateBusy
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import DELETED, NOBODY, REVERSE, HeldState
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState
from secondsite.model.points import Claim, known_epoch
from secondsite.transfer.protocols import Link

SWITCHED_OFF = mark("reverse.switched-off")
UNPROTECTED = mark("reverse.unprotected")
CLAIMED = mark("reverse.claimed")
CLEARED = mark("reverse.cleared")
OFFERED = mark("reverse.offered")
READY = mark("reverse.ready")
BACK_WITHDRAWN = mark("reverse.back-withdrawn")
BACK_CLAIMED = mark("reverse.back-claimed")
BACK_PROTECTED = mark("reverse.back-protected")
BACK_HELD = mark("reverse.back-held")

POLL_SECONDS = 0.2
# What a step is called, what it does (False: the gateway ends, or something else was asked for), its mark.
Named = tuple[str, Callable[[ReverseStatus], bool], str]


class Protecting(Protocol):
    """Of what this gateway protects: what a reversal needs of it (`handles.Handles`)."""

    def protection(self, machine: MachineId) -> Protection | None:
        """As it is now."""

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        """Machine, name and the way to its target."""

    def end(self, machine: MachineId) -> bool:
        """End it, as far as it goes by now; True once nothing of it is left."""

    def put_back(self, protection: Protection) -> None:
        """Protect a machine as it was."""


class Adopting(Protocol):
    """Of `adopt.Adoptions` what a reversal needs."""

    def begin(self, machine: MachineId, name: str, request: AdoptRequest) -> AdoptionStatus:
        """Take images for a machine's first copy."""

    def show(self, machine: MachineId) -> AdoptionStatus:
        """Where it stands. Raises AdoptionUnknown."""

    def cancel(self, machine: MachineId) -> AdoptionStatus:
        """Give it up."""


@dataclass(frozen=True, eq=False)
class ReverseSteps:
    """Not locked: `Reversals` sees to it that one machine is worked on by one thread."""

    fabric: Fabric
    fencing: Fencing
    protecting: Protecting
    adoptions: Adopting
    journal: Callable[[MachineId], Journal]
    forget: Callable[[MachineId], None]
    records: ReverseRecords
    base_dir: Path | None
    clock: Clock
    events: EventSink
    stop: threading.Event

    def forth(self) -> list[Named]:
        """Those of a reversal."""
        return [
            ("switched off and guarded", self._switch_off, SWITCHED_OFF),
            ("its protection here ended", self._unprotect, UNPROTECTED),
            ("claimed for the other site", self._claim, CLAIMED),
            ("former points removed", self._clear, CLEARED),
            ("disks offered", self._offer, OFFERED),
            ("ready", self._be_ready, READY),
        ]

    def back(self) -> list[Named]:
        """Those of taking it back."""
        return [
            ("the other site's claim ended", self._unclaim, BACK_CLAIMED),
            ("disks withdrawn", self._withdraw, BACK_WITHDRAWN),
            ("protected as before", self._protect_again, BACK_PROTECTED),
            ("held as before", self._hold_again, BACK_HELD),
        ]

    def _switch_off(self, status: ReverseStatus) -> bool:
        self.fencing.reverse(status.machine, by=status.requested_by)

        def is_off() -> bool:
            found = [one for one in self.fabric.machines() if one.id == status.machine]
            return bool(found) and found[0].power is PowerState.OFF

        return self._wait(status, is_off, "the machine is being switched off")

    def _unprotect(self, status: ReverseStatus) -> bool:
        what = "its checkpoints and what is on its way to its former target are being removed"
        return self._wait(status, lambda: self.protecting.end(status.machine), what)

    def _claim(self, status: ReverseStatus) -> bool:
        claim = self._claimed(status, claimant=status.writer, reason=REVERSE, nonce=status.operation)
        self.records.tell(status.machine, epoch=claim.epoch)
        return True

    def _claimed(self, status: ReverseStatus, *, claimant: str, reason: str, nonce: str) -> Claim:
        journal, known = self.journal(status.machine), self.records.at_work(status.machine).known
        for _ in range(ATTEMPTS_MAX):
            with contextlib.suppress(HeadMoved):
                head = journal.head()
                seen = status.epoch_floor if known is None else known
                if other := written_since(head, status.writer, seen):
                    raise ReverseSuperseded(
                        machine=status.name, writer=status.writer, other=other, epoch=head.epoch
                    )
                before = head.epoch if head.claim is None else known_epoch(head.claim)
                claim = journal.claim(
                    name=status.name,
                    claimant=claimant,
                    reason=reason,
                    clock=self.clock,
                    expected=head,
                    nonce=nonce,
                    above=status.epoch_floor,
                    known=None if known is None else max(known, before),
                )
                if claimant != NOBODY:
                    keep_writer(journal, claim)
                return claim
        raise StateBusy(machine=status.machine)

    def _clear(self, status: ReverseStatus) -> bool:
        """What this site kept of the machine in an earlier time: its points, and images they stood on."""
        journal = self.journal(status.machine)
        head = journal.head()
        if head.claim is None or head.claim.nonce != status.operation or head.number == 1:
            return True  # nothing was before it, or somebody writes already
        dropped = drop_points(journal, head.claim, clock=self.clock)
        delete_dropped(journal, cancel=self.stop)
        known = [Path(base.locator) for base in dropped.bases]
        left = remove_images(self.base_dir, journal.machine, known, alone=not journal.state().bases)
        bases_removed(journal, lambda _: True)
        self.forget(status.machine)
        if left:
            text = f"Images of {status.name}'s former replica stay: {', '.join(map(str, left))}."
            self.tell("reverse.images-stay", status, text, Severity.INFORMATION)
        return not self.stop.is_set()

    def _offer(self, status: ReverseStatus) -> bool:
        record = self.records.at_work(status.machine)
        if not self.records.move(status.machine, (status.state,), ReverseState.ADOPTING):
            return False  # it is being taken back
        with contextlib.suppress(AdoptionUnknown):
            found = self.adoptions.show(status.machine)
            if found.state not in ENDED and found.begun_at >= status.requested_at[:19]:
                return True  # offered before a crash
            if found.state not in ENDED:
                self.adoptions.cancel(status.machine)
        self.adoptions.begin(status.machine, status.name, AdoptRequest(images=record.images))
        return True

    def _be_ready(self, status: ReverseStatus) -> bool:
        if not self.records.move(status.machine, (ReverseState.ADOPTING,), ReverseState.READY):
            return False
        text = (
            f"{status.name} is off and stays so; {status.writer} may protect it to this site in epoch "
            f"{status.epoch}: its disks are compared with those here, and only differences travel."
        )
        self.tell("reverse.ready", status, text, Severity.WARNING)
        return True

    # back

    def _withdraw(self, status: ReverseStatus) -> bool:
        with contextlib.suppress(AdoptionUnknown):
            if self.adoptions.show(status.machine).state not in ENDED:
                self.adoptions.cancel(status.machine)
        return True

    def _unclaim(self, status: ReverseStatus) -> bool:
        self.require_not_complete(status)
        head = self.journal(status.machine).head()
        if head.claim is not None and head.claim.claimant == status.writer:
            nonce = hashlib.sha256(f"secondsite take back {status.operation}".encode()).hexdigest()[:32]
            if self.records.at_work(status.machine).holding:
                # Where nobody writes, a source that was left behind, and away since, would claim the machine
                # and run on beside its authority: the new epoch refuses what is on its way, and holds it.
                self._claimed(status, claimant=status.writer, reason=REVERSE, nonce=nonce)
            else:
                self._claimed(status, claimant=NOBODY, reason=DELETED, nonce=nonce)
        return True

    def _protect_again(self, status: ReverseStatus) -> bool:
        record = self.records.at_work(status.machine)
        if record.protection is None or not record.protection.enabled:
            return True
        if self.protecting.protection(status.machine) is not None:
            return self._wait(status, lambda: self._is_back(record.protection), "its protection is ending")
        self.protecting.put_back(record.protection)
        return True

    def _is_back(self, wanted: Protection | None) -> bool:
        assert wanted is not None
        found = self.protecting.protection(wanted.machine)
        if found is None:
            self.protecting.put_back(wanted)
        return found is None or found.enabled

    def _hold_again(self, status: ReverseStatus) -> bool:
        held = self.fencing.get(status.machine)
        if held is not None and held.state is HeldState.REVERSED:
            with contextlib.suppress(MachineUnknown):
                self.fencing.take_back(status.machine, by=status.requested_by)
        self.records.tell(status.machine, state=ReverseState.TAKEN_BACK, ended_at=self.now(), note="")
        text = f"The reversal of {status.name} was taken back: it is held as before."
        self.tell("reverse.taken-back", status, text, Severity.WARNING)
        return True

    # small things

    def require_not_complete(self, status: ReverseStatus) -> None:
        """Raise ReverseComplete once the other direction has a point."""
        point = self.journal(status.machine).head().point
        if point is not None and status.epoch is not None and point.epoch >= status.epoch:
            raise ReverseComplete(machine=status.name, writer=status.writer, point=point.number)

    def tell(self, code: str, status: ReverseStatus, text: str, severity: Severity) -> None:
        """Tell it, with whose it is."""
        self.events.emit(code, severity, text, machine=status.machine, operation=status.operation)

    def now(self) -> str:
        """As records carry it."""
        return self.clock.utc().isoformat()

    def _wait(self, status: ReverseStatus, done: Callable[[], bool], what: str) -> bool:
        """Until it is so; False when the gateway ends, or something else was asked for meanwhile."""
        while not self.stop.is_set():
            if done():
                self.records.tell(status.machine, note="")
                return True
            now = self.records.status(status.machine)
            if now.state is not status.state:
                return False
            if now.note != what:
                self.records.tell(status.machine, note=what)
            self.clock.wait(self.stop, POLL_SECONDS)
        return False
