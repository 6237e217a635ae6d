"""Isolating a source whose machine was taken over elsewhere (architecture's rule 3), and letting it go again.

What a source is told is a record of the store itself, sealed with the vault key: this gateway opens it, and
believes nothing else. A claim that makes another site the authority holds the machine (a failover; a reversal
or a roll-back for another one, of which a source learns that was away until then): links down, paused, kept
so by the host's guard. Nothing of its disks, checkpoints or cache is deleted: its last writes are there for a
person to look at, who releases or discards it, or gives its disks to the other direction (`reverse`). A
roll-back at the other site, a person's word as well, returns it. Other claims (a first copy, a comparison,
another key) hold nothing. A failover of this very site takes the place of what was reversed onto
(`make_room`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.fabrics.errors import MachineUnknown
from secondsite.gateway.failover.asking import Asking
from secondsite.gateway.failover.claim import believed
from secondsite.gateway.failover.heldrecord import HeldRecords, known_after
from secondsite.gateway.failover.said import decision_sentence
from secondsite.gateway.messages.failover import Decide, HeldMachine
from secondsite.gateway.messages.failovererrors import (
    DecidedOnAnother,
    HeldRecordDamaged,
    MachineNotHeld,
)
from secondsite.journal.keys import VaultKey
from secondsite.model import confirmations
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import (
    AUTHORITY,
    HELD_TABLE,
    MIGRATED,
    MOVED,
    ROLL_BACK,
    HeldEvent,
    HeldState,
)
from secondsite.model.ids import MachineId
from secondsite.model.points import Claim, known_epoch
from secondsite.transfer.protocols import Link, TargetHead

log = logging.getLogger(__name__)

HELD_INTENDED = mark("held.intended")
HELD_ISOLATED = mark("held.isolated")
DECIDED = mark("held.decided")
DECISION_DONE = mark("held.decision-done")
REMOVED = mark("removal.removed")
ROOM_MADE = mark("removal.room-made")

# How often what is held is made sure of; the host's guard does so each second by itself.
KEEP_SECONDS = 2.0
# A source is asked for at its target so long after it heard from it last (a commit, a head).
ASK_SECONDS = 5.0
# Who was not the authority by the last claim seen: its epoch was not made for this site's own writes.
_ELSEWHERE = frozenset(HeldState) - {HeldState.RETURNED}
_DECIDABLE = (HeldState.HELD, HeldState.RELEASED, HeldState.DISCARDED)
# Those in which this copy was the authority, by the last claim seen.
_OURS = (HeldState.RETURNED, HeldState.REPLACED)
_ISOLATED = (HeldState.HELD, HeldState.REVERSED)


class Fencing:
    """Of one gateway. Thread-safe; `start` once, `close` at the end."""

    def __init__(
        self,
        *,
        us: str,
        fabric: Fabric,
        vault: VaultKey | None,
        state_dir: Path,
        clock: Clock,
        events: EventSink,
        autostart: bool = False,
    ) -> None:
        """us: as claims name this gateway. autostart: machines may be kept from starting with their host.

        vault: what opens claims; None: claims are not sealed (tests).
        """
        self._us = us
        self._fabric = fabric
        self._vault = vault
        self._clock = clock
        self._events = events
        self._autostart = autostart
        self._records = HeldRecords(state_dir / "held")
        self._lock = threading.RLock()
        self._heard_at: dict[MachineId, float] = {}
        self._asking = Asking(clock, events)
        self._told: dict[MachineId, str] = {}
        self._returned: set[MachineId] = set()  # whose replication is to look at its target anew
        self._begin_again: Callable[[MachineId], None] = lambda _: None
        # ends a machine's protection here; True once nothing of it is left
        self.unprotect: Callable[[MachineId], bool] = lambda _: True
        # the epoch of a machine in this gateway's own store, unless the head with that hash is its own: then
        # both gateways have the same store
        self.epoch_here: Callable[[MachineId, str], int] = lambda _machine, _hash: 0
        # the epoch in which a failover of this site took the machine over, while that is in force; else 0
        self.taken_here: Callable[[MachineId], int] = lambda _machine: 0
        # nothing of a held machine is left here: its journal here is for who took it over
        self.hand_over: Callable[[HeldMachine], Claim | None] = lambda _: None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._keep_root, name="fencing", daemon=True)]

    def start(
        self,
        protected: Callable[[], Sequence[tuple[MachineId, str, Link]]],
        begin_again: Callable[[MachineId], None] = lambda _: None,
    ) -> None:
        """Isolate again what is held, and ask for those that hear nothing of their target by themselves.

        protected: machine, name and the way to its target, of all that are protected now.
        begin_again: lets the replication of a machine that was given back look at its target at once.
        """
        self._begin_again = begin_again
        for error in self._records.all()[1]:
            self._events.emit(error.code, Severity.CRITICAL, " ".join(error.sentences()))
        ask = threading.Thread(target=self._ask_root, args=(protected,), name="fencing asks", daemon=True)
        self._threads.append(ask)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; what is isolated stays so."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(10)

    # what is learnt

    def committed(self, machine: MachineId) -> None:
        """The target took a point: this gateway is its writer."""
        self._heard_at[machine] = self._clock.monotonic()

    def saw(self, machine: MachineId, name: str, head: TargetHead) -> None:
        """Where the machine's journal stands, as its target says. Never raises; quick if nothing is new."""
        self._heard_at[machine] = self._clock.monotonic()
        self._asking.answered(machine, name)
        if head.claim is None:
            return
        try:
            claim = believed(head, self._vault, us=self._us)
            if claim is None:
                return
            with self._lock:
                self._learn(machine, name, claim, head)
        except SecondsiteError as error:
            self._tell_once(machine, f"A claim on {name} was not believed: {error}")
        except OSError as error:  # it was isolated all the same; seen again, it is written down
            self._tell_once(machine, f"What was learnt of {name} could not be written down: {error}")

    def _learn(self, machine: MachineId, name: str, claim: Claim, head: TargetHead) -> None:
        held = self._known(machine, name, claim)
        if held is not None and claim.epoch <= held.epoch:
            return  # known; what a person decided about it stands
        if claim.reason in AUTHORITY and claim.claimant != self._us:
            # not by its epoch, which reversals that are taken back raise
            if known_epoch(claim) < self.taken_here(machine):
                return  # of an earlier time at a place it is protected to: the machine here took over later
            if claim.reason in MOVED or held is None or held.state in _OURS:
                self._hold(held, name, claim, head)
            else:  # what is held, or was decided about it, stands: the failover before was seen
                self._records.change(machine, epoch=claim.epoch, known_epoch=known_after(held, claim))
        elif claim.reason == ROLL_BACK and claim.claimant == self._us and held is not None:
            row = HELD_TABLE[held.state]
            if HeldEvent.RETURNED in row:
                text = f"{name} was given back in epoch {claim.epoch}: it runs on, and replication goes on."
                state = row[HeldEvent.RETURNED]
                self._decide(held, state, by=claim.claimant, note=text, epoch=claim.epoch, code="returned")
                self._returned.add(machine)

    def _known(self, machine: MachineId, name: str, claim: Claim) -> HeldMachine | None:
        """What is on record of it. A record that cannot be read lets no machine run that was taken over."""
        try:
            return self._records.get(machine)
        except HeldRecordDamaged as error:
            if claim.reason not in AUTHORITY or claim.claimant == self._us:
                raise
            text = f"{name} is held anew, whatever was decided about it: {error}"
            self._events.emit(error.code, Severity.CRITICAL, text, machine=machine)
            return None

    def _hold(self, known: HeldMachine | None, name: str, claim: Claim, head: TargetHead) -> None:
        machine, final = claim.machine, claim.reason == MIGRATED
        state = HELD_TABLE[known.state][HeldEvent.SEEN] if known is not None else HeldState.HELD
        same = known is not None and final and known.claimant == claim.claimant
        if known is not None and (state is HeldState.REVERSED or (same and known.state in _DECIDABLE)):
            # what a person decided about it stands
            more = known_after(known, claim)
            known = self._records.change(machine, epoch=claim.epoch, known_epoch=more, final=final)
            if final:
                text = f"{name} moved to {claim.claimant} for good: nothing is reversed onto its copy here."
                self._emit("held.final", Severity.WARNING, text, known)
            return
        why = (
            f"{claim.claimant} took it over in epoch {claim.epoch} ({claim.claimed_at}); this copy is held "
            "until a person decides"
        )
        # the newest may be a point of who has the machine now
        point = head.point if head.point is not None and head.point.epoch < claim.epoch else None
        held = HeldMachine(
            machine=machine,
            name=name,
            state=state,
            why=why,
            claimant=claim.claimant,
            epoch=claim.epoch,
            claimed_at=claim.claimed_at,
            held_at=self._now(),
            last_point=point.number if point else None,
            last_point_at=point.given_at if point else None,
            final=final,
            known_epoch=known_epoch(claim),
        )
        try:
            self._records.save(held)
        except OSError:  # a full disk: to stand still needs no room
            self._fabric.isolate(machine, why=why, autostart=self._autostart)
            raise
        crash_point(HELD_INTENDED)
        self._isolate(held)

    # doing it

    def _isolate(self, held: HeldMachine) -> None:
        """Isolate it, or make sure that it is; tried again by the thread where the hypervisor is away."""
        try:
            changed = self._fabric.isolate(held.machine, why=held.why, autostart=self._autostart)
        except MachineUnknown:
            self._records.change(held.machine, note="it is not at this host")
            try:
                self._hand_over(held)
            except SecondsiteError as error:  # tried again by the thread
                self._tell_once(held.machine, f"The store here still says that {held.name} is here: {error}")
            return
        except SecondsiteError as error:
            self._tell_once(held.machine, f"{held.name} could not be isolated yet: {error}")
            return
        crash_point(HELD_ISOLATED)
        self._told.pop(held.machine, None)
        if held.isolated_at is None:
            self._records.change(held.machine, isolated_at=self._now(), note="")
            since = f" What it wrote after point {held.last_point} is kept." if held.last_point else ""
            text = f"{held.name} is isolated, links down and paused: {held.why}.{since}"
            self._emit("held.isolated", Severity.CRITICAL, text, held)
        elif changed:
            text = f"{held.name} had been let run while it is held; it is isolated again."
            self._emit("held.isolated-again", Severity.CRITICAL, text, held)

    def _converge(self, held: HeldMachine) -> None:
        if held.state in (HeldState.HELD, HeldState.REVERSED):
            self._isolate(held)
            if held.state is HeldState.REVERSED:
                with contextlib.suppress(MachineUnknown):
                    self._fabric.power_off(held.machine)
        elif held.state is HeldState.DISCARDED:
            if held.isolated_at is not None:
                self._give_up(held)
        elif held.isolated_at is not None:
            self._fabric.lift_isolation(held.machine, run=True)
            self._records.change(held.machine, isolated_at=None)
        crash_point(DECISION_DONE)

    def _give_up(self, held: HeldMachine) -> None:
        """Off, and gone where that was asked for; what is not done yet is done by the thread."""
        removing, left = held.remove != "nothing", ""
        with contextlib.suppress(MachineUnknown):
            # isolated as well, so that it does no harm if it is started by mistake
            self._fabric.isolate(held.machine, why=held.why, autostart=self._autostart)
            self._fabric.power_off(held.machine)
            if removing and not self.unprotect(held.machine):
                return
            if removing:
                left = ", ".join(
                    self._fabric.remove_machine(held.machine, disks=held.remove == "machine-and-disks")
                )
                crash_point(REMOVED)
        if removing:
            self._hand_over(held)
            self._records.change(held.machine, isolated_at=None, removed_at=self._now())
            kept = f"; these images stay: {left}" if left else ""
            self._emit("held.removed", Severity.WARNING, f"{held.name} is removed from its host{kept}.", held)
        else:
            self._records.change(held.machine, isolated_at=None)

    def _hand_over(self, held: HeldMachine) -> None:
        claim = self.hand_over(held)
        if claim is not None:
            text = (
                f"Nothing of {held.name} is left here: the store here is for {claim.claimant}, who took it "
                f"over, from epoch {claim.epoch} on."
            )
            self._emit("held.handed-over", Severity.INFORMATION, text, held)

    # what people decide

    def all(self) -> list[HeldMachine]:
        """Held machines and past ones, by name."""
        return self._records.all()[0]

    def is_held(self, machine: MachineId) -> bool:
        """Whether it is isolated, or about to be."""
        held = self._records.get(machine)
        return held is not None and held.state is HeldState.HELD

    def elsewhere(self, machine: MachineId) -> tuple[str, int] | None:
        """See `cycle.Fence`. Raises HeldRecordDamaged."""
        held = self._records.get(machine)
        return (held.claimant, held.epoch) if held is not None and held.state in _ISOLATED else None

    def unasked(self, machine: MachineId) -> str:
        """See `cycle.Fence`."""
        return self._asking.why_not(machine)

    def release(self, machine: MachineId, request: Decide) -> HeldMachine:
        """Let it run again, although it is not the authority.

        Raises MachineNotHeld, DecidedOnAnother, ConfirmationMissing.
        """
        return self._by_person(machine, request, HeldEvent.RELEASED)

    def discard(self, machine: MachineId, request: Decide) -> HeldMachine:
        """Shut it off; what goes with it is asked for. Raises as `release`."""
        return self._by_person(machine, request, HeldEvent.DISCARDED)

    def get(self, machine: MachineId) -> HeldMachine | None:
        """A held machine, or one that was. Raises HeldRecordDamaged."""
        return self._records.get(machine)

    def floor(self, machine: MachineId, head: TargetHead) -> int:
        """See `cycle.Fence`. Raises HeldRecordDamaged."""
        held = self._records.get(machine)
        seen = 0 if held is None else held.epoch if held.state in _ELSEWHERE else held.epoch - 1
        return max(seen, self.epoch_here(machine, head.hash))

    def reverse(self, machine: MachineId, *, by: str) -> HeldMachine:
        """Switch it off and keep it so: its disks are the other direction's. Raises MachineNotHeld."""
        return self._move(machine, HeldEvent.REVERSED, by=by)

    def take_back(self, machine: MachineId, *, by: str) -> HeldMachine:
        """Hold it as before it was reversed onto. Raises MachineNotHeld."""
        return self._move(machine, HeldEvent.TAKEN_BACK, by=by)

    def _move(self, machine: MachineId, event: HeldEvent, *, by: str) -> HeldMachine:
        with self._lock:
            held = self._records.get(machine)
            state = HELD_TABLE[held.state].get(event) if held is not None else None
            if held is None or state is None:
                raise MachineNotHeld(machine=held.name if held is not None else machine)
            if held.state is state:
                return held  # asked again
            code = event.name.lower().replace("_", "-")
            return self._decide(held, state, by=by, note="", epoch=held.epoch, code=code)

    def make_room(self, machine: MachineId, *, disks: bool) -> None:
        """A failover of this site takes its place: what was reversed onto is removed, nothing isolates it.

        May be repeated. disks: with its images. Raises what the fabric raises.
        """
        with self._lock:
            held = self._records.get(machine)
            if held is None or held.state is HeldState.REPLACED:
                return
            left: Sequence[str] = ()
            if held.state is HeldState.REVERSED:
                left = self._fabric.remove_machine(machine, disks=disks)
            crash_point(ROOM_MADE)
            state = HELD_TABLE[held.state][HeldEvent.REPLACED]
            self._records.change(machine, state=state, isolated_at=None, decided_at=self._now(), note="")
            kept = f" Its images stay: {', '.join(left)}." if left else ""
            text = f"{held.name} is taken over here: its former copy made room.{kept}"
            self._emit("held.replaced", Severity.WARNING, text, held)

    def _by_person(self, machine: MachineId, request: Decide, event: HeldEvent) -> HeldMachine:
        with self._lock:
            held = self._records.get(machine)
            if held is None:
                raise MachineNotHeld(machine=machine)
            state = HELD_TABLE[held.state].get(event)
            if state is None:
                if (event, held.state) == (HeldEvent.RELEASED, HeldState.RELEASED):
                    return held  # asked again
                raise MachineNotHeld(machine=held.name)
            if request.epoch != held.epoch:
                if (state, request.remove) == (held.state, held.remove):
                    return held  # asked again, and a claim came since that changed nothing of it
                raise DecidedOnAnother(
                    machine=held.name, decided=request.epoch, epoch=held.epoch, claimant=held.claimant
                )
            wanted, why = decision_sentence(held, event, request.remove)
            confirmations.require(held.name, request.confirm, wanted, why)
            if event is HeldEvent.DISCARDED:
                held = msgspec.structs.replace(held, remove=request.remove)
            return self._decide(
                held, state, by=request.by, note="", epoch=held.epoch, code=event.name.lower()
            )

    def _decide(
        self, held: HeldMachine, state: HeldState, *, by: str, note: str, epoch: int, code: str
    ) -> HeldMachine:
        now = self._now()
        # Set until it was carried out, also where the isolation had not been noted yet, or was lifted before.
        decided = msgspec.structs.replace(
            held,
            state=state,
            decided_at=now,
            decided_by=by,
            note=note,
            epoch=epoch,
            isolated_at=held.isolated_at or now,
        )
        self._records.save(decided)
        crash_point(DECIDED)
        with contextlib.suppress(SecondsiteError):  # the thread tries again
            self._converge(decided)
        text = note or f"{held.name} was {state.value.lower()} by {by or 'a person'}."
        self._emit(f"held.{code}", Severity.WARNING, text, held)
        found = self._records.get(held.machine)
        assert found is not None
        return found

    # threads

    def _keep_root(self) -> None:
        while not self._stop.is_set():
            try:
                while self._returned:  # here, since the loop that learnt of it cannot end itself
                    self._begin_again(self._returned.pop())
                for held in self._records.all()[0]:
                    self._keep(held)
            except Exception:  # a thread's root: told, and tried again
                log.exception("keeping what is held failed")
            self._clock.wait(self._stop, KEEP_SECONDS)

    def _keep(self, held: HeldMachine) -> None:
        try:
            with self._lock:
                current = self._records.get(held.machine)
                if current is not None and (current.state in _ISOLATED or current.isolated_at):
                    self._converge(current)
        except SecondsiteError as error:
            self._tell_once(held.machine, f"{held.name} is not yet as decided: {error}")
        except Exception as error:  # part of a thread's root: told, and tried again
            log.exception("keeping %s isolated failed", held.name)
            self._tell_once(held.machine, f"keeping {held.name} failed: {type(error).__name__}: {error}")

    def _ask_root(self, protected: Callable[[], Sequence[tuple[MachineId, str, Link]]]) -> None:
        while not self._clock.wait(self._stop, ASK_SECONDS / 5):
            try:
                self._ask(protected())
            except Exception:  # a thread's root: told, and tried again
                log.exception("asking for what is protected failed")

    def _ask(self, protected: Sequence[tuple[MachineId, str, Link]]) -> None:
        silent: dict[int, SecondsiteError] = {}  # links that are down: one question each round
        for machine, name, link in protected:
            heard = self._heard_at.get(machine)
            if self._stop.is_set():
                return
            if heard is not None and self._clock.monotonic() - heard < ASK_SECONDS:
                continue
            try:
                if id(link) not in silent:
                    self.saw(machine, name, link.head(machine))
            except SecondsiteError as error:
                silent[id(link)] = error
            except Exception:  # part of a thread's root: told, and tried again
                log.exception("asking for %s failed", name)
            if (why := silent.get(id(link))) is not None:
                self._asking.refused(machine, name, why)

    # small things

    def _now(self) -> str:
        return self._clock.utc().isoformat()

    def _tell_once(self, machine: MachineId, text: str) -> None:
        if self._told.get(machine) != text:
            self._told[machine] = text
            self._events.emit("held.trouble", Severity.CRITICAL, text, machine=machine)

    def _emit(self, code: str, severity: Severity, text: str, held: HeldMachine) -> None:
        self._events.emit(code, severity, text, machine=held.machine, epoch=held.epoch)
