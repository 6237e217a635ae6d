"""What runs for each machine that a gateway protects, and what that needs: data keys, tables, orders.

Nothing here decides when: `runtime.Protections` does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.fabrics.base import Fabric, Source
from secondsite.fabrics.errors import MachineUnknown
from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.common.firstcopy import FirstCopy
from secondsite.gateway.common.limits import PolicyLimits
from secondsite.gateway.keys.sourcekeys import SourceKeys
from secondsite.gateway.messages.gateway import Health, ProtectionStatus
from secondsite.gateway.messages.protecterrors import NotProtected, PeerUnknown
from secondsite.gateway.source.cycle import Fence
from secondsite.gateway.source.deepverify import DeepVerifier
from secondsite.gateway.source.furnishing import Furnisher
from secondsite.gateway.source.healing import ClockWatch
from secondsite.gateway.source.orders import Orders
from secondsite.gateway.source.pace import Policy
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.seedexport import SeedExport, SourceSeeds
from secondsite.gateway.source.status import CANNOT_ASK, Board, of_another
from secondsite.gateway.source.ways import Routes
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.model.states import ItemEvent

log = logging.getLogger(__name__)

_GONE = (
    "{name} is not at its hypervisor any more: its checkpoints went with it; bitmaps in its images, if those "
    "were kept, and files of a capture that was open were not removed"
)


class Loops:
    """Of one gateway. Whoever changes what runs holds `change`; the statuses need only the dictionaries."""

    def __init__(
        self,
        *,
        name: str,
        fabric: Fabric,
        routes: Routes,
        vault: VaultKey,
        state_dir: Path,
        cache_dir: Path,
        clock: Clock,
        events: EventSink,
        desired: DesiredState,
        fence: Fence | None,
        limits: PolicyLimits,
    ) -> None:
        """See `runtime.Protections`."""
        self._name = name
        self._fabric = fabric
        self._routes = routes
        self._state_dir = state_dir
        self._clock = clock
        self._events = events
        self._desired = desired
        self._limits = limits
        self._fence = fence
        self.keys = SourceKeys(state_dir / "keys", vault)
        self._furnisher = Furnisher(self.keys, cache_dir, vault, clock, events, fence)
        self._clock_watch = ClockWatch(clock, events)
        self.change = threading.Lock()
        self.running: dict[MachineId, Replication] = {}
        self.seeds = SourceSeeds(
            state_dir / "seeds",
            us=name,
            vault=vault,
            ours=(cache_dir, state_dir),
            clock=clock,
            events=events,
        )
        self.verifiers: dict[MachineId, DeepVerifier] = {}  # of those that run
        self._boards: dict[MachineId, Board] = {}
        self._first_copies: dict[MachineId, FirstCopy] = {}

    def stop_all(self) -> None:
        """All goes on at the next start."""
        with self.change:
            self._routes.stop_shipping()  # ends what waits for the link
            for replication in self.running.values():
                replication.stop()
            self.running.clear()

    def stop(self, machine: MachineId) -> None:
        """Stop its loop, if one runs; the caller holds `change`. Another is begun instead."""
        running = self.running.pop(machine, None)
        if running is not None:
            running.stop()

    def reroute(self, told: Mapping[str, str]) -> None:
        """Peers have moved, or are known now: name -> URL. What is on its way takes the new way."""
        with self.change:
            moved = dict(self._routes.tell(told))
            for protection in self._desired.all():
                running = self.running.get(protection.machine)
                if protection.peer in moved and running is not None:
                    moved[protection.peer].shipper.close()
                    self.running.pop(protection.machine).stop()
            for route in moved.values():
                route.close()

    def renew_data_keys(self, protection: Protection, disks: Sequence[DiskId] | None) -> dict[DiskId, KeyId]:
        """New ones of these disks, or of all: disk -> key. Raises InvalidInput and what the fabric raises."""
        source, machine = self.open(protection), protection.machine
        known = [disk.id for disk in source.machine.disks]
        unknown = sorted(set(disks or ()) - set(known))
        if unknown:
            raise InvalidInput(what=f"the disk {unknown[0]}", why=f"{protection.name} has {', '.join(known)}")
        with self.change:
            self.stop(machine)  # the loop that is begun instead seals with the new keys
            return {disk: self.keys.renew(machine, disk) for disk in disks or known}

    def follow(self, before: Protection | None, now: Protection) -> None:
        """The caller holds `change`. With other disks or another mapping the loop is begun anew."""
        board = self.board(now)
        board.paused_by, board.rpo_threshold_seconds = now.paused_by, _policy(now).rpo_threshold_seconds
        self.limit(now)
        running = self.running.get(now.machine)
        if running is None or before is None:
            return
        running.set_policy(_policy(now))
        running.set_orders(paused_by=now.paused_by, resync=now.resync)
        if (before.disks, before.left_out, before.mapping) != (now.disks, now.left_out, now.mapping):
            self.running.pop(now.machine).stop()
            log.info("the replication of %s begins anew with other disks or another mapping", now.name)

    def begin(self, protection: Protection, stagger_seconds: float) -> None:
        """Open the machine and start its loop; the caller holds `change`."""
        board = self.board(protection)
        route = self._routes.get(protection.peer)
        if route is None:
            raise PeerUnknown(peer=protection.peer, known=", ".join(sorted(self._routes)) or "none")
        source = self.open(protection)
        bench, wrapped = self._furnisher.bench(protection, source, route.shipper)
        verifier = bench.beside = DeepVerifier(
            protection.machine,
            protection.name,
            bench.keys,
            route.link,
            state_path=self._state_dir / "verify" / f"{protection.machine}.json",
            clock=self._clock,
            events=self._events,
        )
        replication = Replication(
            bench,
            us=self._name,
            link=route.link,
            policy=_policy(protection),
            wrapped_keys=wrapped,
            board=board,
            stagger_seconds=stagger_seconds,
            clock_watch=self._clock_watch,
            media=self.seed(protection),
            orders=Orders(
                paused_by=protection.paused_by,
                resync=protection.resync,
                resynced=protection.resynced,
                keep=lambda number: self._compared(protection.machine, number),
                first_copy=self.first_copy(protection),
            ),
        )
        verifier.hurry = replication.hurry
        verifier.heal_with(bench.mending)
        self.running[protection.machine] = replication
        self.verifiers[protection.machine] = verifier
        replication.start()

    def end(self, protection: Protection) -> None:
        """Remove a protection; the caller holds `change`. Raises what the source raises; repeatable."""
        machine = protection.machine
        left = self._release(protection)
        self._furnisher.remove_tables(machine)
        (self._state_dir / "verify" / f"{machine}.json").unlink(missing_ok=True)
        self.seeds.drop(machine)
        self.first_copy(protection).remove()
        self._first_copies.pop(machine)
        self._desired.remove(machine, left=left)
        self._limits.forget(machine)
        self._boards.pop(machine, None)
        text = f"{protection.name} is no longer protected; its points stay at {protection.peer}"
        severity = Severity.WARNING if left else Severity.INFORMATION
        self._events.emit("item.unprotected", severity, f"{text}. {left}".rstrip(". "), machine=machine)

    def _release(self, protection: Protection) -> str:
        """Have the source let go. Returns what could not be removed there, for good; raises what may pass."""
        running = self.running.pop(protection.machine, None)
        self.verifiers.pop(protection.machine, None)
        try:
            if running is not None:
                running.unprotect()
            else:
                self.board(protection).move(ItemEvent.DISABLED)
                route = self._routes.get(protection.peer)
                for shipment in route.shipper.shipments(protection.machine) if route else ():
                    shipment.discard()
                self.open(protection).release()
        except SecondsiteError:
            if not self._is_gone(protection):
                raise
            return _GONE.format(name=protection.name)
        return ""

    def _is_gone(self, protection: Protection) -> bool:
        """Whether the hypervisor answers, and knows no such machine: nothing of ours is with it any more."""
        try:
            self.open(protection)
        except MachineUnknown:
            return True
        except SecondsiteError:
            return False
        return False

    def board(self, protection: Protection) -> Board:
        """What is shown of it."""
        board = self._boards.get(protection.machine)
        if board is None:
            board = Board(
                protection.machine,
                protection.name,
                protection.peer,
                frequency_seconds=protection.policy.copy_frequency_seconds,
                clock=self._clock,
                events=self._events,
            )
            board.rpo_threshold_seconds = _policy(protection).rpo_threshold_seconds
            board = self._boards.setdefault(protection.machine, board)
        return board

    def first_copy(self, protection: Protection) -> FirstCopy:
        """When it may begin; the caller holds `change`."""
        found = self._first_copies.get(protection.machine)
        if found is None:
            path = self._state_dir / "first-copies" / f"{protection.machine}.json"
            found = FirstCopy(path, protection.name, self._clock)
            self._first_copies[protection.machine] = found
        return found

    def limit(self, protection: Protection) -> None:
        """Have what it sends count for its policy. Without a server its policy is its own."""
        key = protection.policy_id or f"machine {protection.machine}"
        name = protection.policy_name or f"of {protection.name}"
        self._limits.assign(protection.machine, key, name, protection.policy)

    def known(self, machine: MachineId) -> Protection:
        """What is desired of it. Raises NotProtected."""
        found = self._desired.get(machine)
        if found is None:
            raise NotProtected(machine=machine)
        return found

    def open(self, protection: Protection) -> Source:
        """Of a machine under protection. Raises what the fabric raises."""
        return self._fabric.open_source(
            protection.machine, protection.disks, left_out=protection.left_out, taken=True
        )

    def status(self, protection: Protection) -> ProtectionStatus:
        """As of now."""
        route = self._routes.get(protection.peer)
        shown = self.board(protection).show(spool_bytes=route.shipper.queued_bytes if route else 0)
        if (taken := self._taken(protection.machine)) is not None:
            shown = of_another(shown, *taken)
        elif self._fence is not None and (why := self._fence.unasked(protection.machine)):
            shown = msgspec.structs.replace(shown, health=Health.CRITICAL, code=CANNOT_ASK, note=why)
        return msgspec.structs.replace(
            shown,
            item=protection.item,
            revision=protection.revision,
            left_out=protection.left_out,
            paused_by=protection.paused_by,
            policy_name=protection.policy_name,
            limit_bytes_per_second=self._limits.rate(protection.machine),
            resync=protection.resync,
            resynced=protection.resynced,
        )

    def _taken(self, machine: MachineId) -> tuple[str, int] | None:
        """Who took it over, and the epoch, while it is held here. A damaged record is told of by itself."""
        with contextlib.suppress(SecondsiteError):
            return self._fence.elsewhere(machine) if self._fence is not None else None
        return None

    def _compared(self, machine: MachineId, number: int) -> None:
        """Everything was compared, as that number asked for; called by the machine's loop."""
        self._desired.update(machine, lambda p: msgspec.structs.replace(p, resynced=max(p.resynced, number)))

    def seed(self, protection: Protection) -> SeedExport:
        """Its first copy on media."""
        return self.seeds.of(protection.machine, protection.name)


def _policy(protection: Protection) -> Policy:
    wanted = protection.policy
    return Policy(
        copy_frequency_seconds=wanted.copy_frequency_seconds,
        application_consistent_frequency_seconds=wanted.application_consistent_frequency_seconds,
        level=wanted.compression_level,
        first_copy=wanted.first_copy,
        # without a server nobody said one: three copy frequencies are what is told of then
        rpo_threshold_seconds=wanted.rpo_threshold_seconds if protection.item else None,
    )
