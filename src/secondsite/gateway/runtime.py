"""All protections of one gateway: the desired state, and the loops that converge to it.

A thread opens what is desired and not running (again and again, where the hypervisor does not answer yet),
and finishes what is to end. What a machine needs besides is made here: data keys, tables, its place in time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.files import remove_file
from secondsite.fabrics.base import Fabric
from secondsite.gateway.cycle import Bench, Furnished, Rekeyed
from secondsite.gateway.deepverify import DeepVerifier
from secondsite.gateway.desired import DesiredState, Protection
from secondsite.gateway.healing import ClockWatch
from secondsite.gateway.keymessages import DataKeysRenewed
from secondsite.gateway.messages import (
    DeepVerification,
    PointTaken,
    ProtectionStatus,
    ProtectRequest,
    SeedExportRequest,
    SeedExportStatus,
)
from secondsite.gateway.replicate import Policy, Replication
from secondsite.gateway.seedexport import SourceSeeds
from secondsite.gateway.sourcekeys import SourceKeys
from secondsite.gateway.status import Board
from secondsite.gateway.subblocks import SubBlockTable
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.states import ItemEvent
from secondsite.transfer.protocols import Link
from secondsite.transfer.sender import LinkShipper

log = logging.getLogger(__name__)

# How often what does not run yet is tried.
CONVERGE_SECONDS = 5.0


class PeerUnknown(SecondsiteError):
    """The configuration names no such peer."""

    code = "gateway.peer-unknown"
    outcome = Outcome.USAGE
    happened = "There is no peer {peer!r} to protect machines at; there is {known}."
    cause = "The name is mistyped, or the configuration does not list the peer."
    action = "Name one that is listed, or add it to the peers of this gateway's configuration."


class NotProtected(SecondsiteError):
    """The machine is not protected here."""

    code = "gateway.not-protected"
    outcome = Outcome.NOT_FOUND
    happened = "The machine {machine} is not protected by this gateway."
    cause = "It was unprotected, or another gateway protects it."
    action = "List protected machines with `secondsite status`."


@dataclass(frozen=True)
class Route:
    """The way to one peer."""

    link: Link
    shipper: LinkShipper


class Protections:
    """Implements the control API's `ProtectionService`. `start` once, `close` at the end."""

    def __init__(
        self,
        *,
        name: str,
        fabric: Fabric,
        routes: Mapping[str, Route],
        vault: VaultKey,
        state_dir: Path,
        cache_dir: Path,
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._name = name
        self._fabric = fabric
        self._routes = routes
        self._vault = vault
        self._state_dir = state_dir
        self._cache_dir = cache_dir
        self._clock = clock
        self._events = events
        self._desired = DesiredState(state_dir / "desired.json")
        self._keys = SourceKeys(state_dir / "keys", vault)
        self._clock_watch = ClockWatch(clock, events)
        # taken for every change of what runs; the statuses need only the dictionaries
        self._change = threading.Lock()
        self._running: dict[MachineId, Replication] = {}
        self._seeds = SourceSeeds(
            state_dir / "seeds",
            us=name,
            vault=vault,
            ours=(cache_dir, state_dir),
            clock=clock,
            events=events,
        )
        self._verifiers: dict[MachineId, DeepVerifier] = {}  # of those that run
        self._boards: dict[MachineId, Board] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._converge_root, name="converge", daemon=True)

    def start(self) -> None:
        """Begin to converge."""
        self._thread.start()

    def close(self) -> None:
        """Stop every loop; all goes on at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._change:
            for route in self._routes.values():
                route.shipper.close()  # ends what waits for the link
            for replication in self._running.values():
                replication.stop()
            self._running.clear()

    # -- ProtectionService ------------------------------------------------------------------------

    def statuses(self) -> Sequence[ProtectionStatus]:
        """See `ProtectionService`."""
        shown = []
        for protection in self._desired.all():
            route = self._routes.get(protection.peer)
            queued = route.shipper.queued_bytes if route else 0
            shown.append(self._board(protection).show(spool_bytes=queued))
        return shown

    def protect(self, machine: MachineId, request: ProtectRequest) -> ProtectionStatus:
        """See `ProtectionService`. Refused before anything is kept when the machine cannot be carried."""
        if request.peer not in self._routes:
            known = ", ".join(sorted(self._routes)) or "none"
            raise PeerUnknown(peer=request.peer, known=known)
        source = self._fabric.open_source(machine, request.disks)
        before = self._desired.get(machine)
        protection = Protection(
            machine=machine,
            name=source.machine.name,
            peer=request.peer,
            disks=request.disks,
            copy_frequency_seconds=request.copy_frequency_seconds,
            application_consistent_frequency_seconds=request.application_consistent_frequency_seconds,
            compression_level=request.compression_level,
            mapping=SiteMapping(
                networks=dict(request.networks), pools=dict(request.pools), default_pool=request.default_pool
            ),
        )
        if before is not None and (before.peer, before.disks) != (protection.peer, protection.disks):
            raise InvalidInput(
                what=f"the change of {protection.name}", why="unprotect it first to change its peer or disks"
            )
        with self._change:
            self._desired.put(protection)
            running = self._running.get(machine)
            if running is not None:
                running.set_policy(_policy(protection))
        self._wake.set()
        return self._status(protection)

    def unprotect(self, machine: MachineId) -> None:
        """See `ProtectionService`. What cannot be removed now (host down) is removed once it answers."""
        protection = self._desired.get(machine)
        if protection is None:
            raise NotProtected(machine=machine)
        ended = msgspec.structs.replace(protection, enabled=False)
        with self._change:
            self._desired.put(ended)
            self._end(ended)

    def take_point(self, machine: MachineId, *, seconds_max: float) -> PointTaken:
        """See `ProtectionService`."""
        with self._change:
            running = self._running.get(machine)
        if running is None:
            raise NotProtected(machine=machine)
        return running.take_point(seconds_max=seconds_max)

    def renew_data_keys(self, machine: MachineId, disks: Sequence[DiskId] | None) -> DataKeysRenewed:
        """See `ProtectionService`. What is on its way is sealed with the old keys and arrives as it is."""
        protection = self._desired.get(machine)
        if protection is None:
            raise NotProtected(machine=machine)
        source = self._fabric.open_source(machine, protection.disks, taken=True)
        known = [disk.id for disk in source.machine.disks]
        unknown = sorted(set(disks or ()) - set(known))
        if unknown:
            raise InvalidInput(what=f"the disk {unknown[0]}", why=f"{protection.name} has {', '.join(known)}")
        with self._change:
            running = self._running.pop(machine, None)
            if running is not None:
                running.stop()  # the loop that is begun instead seals with the new keys
            made = {disk: self._keys.renew(machine, disk) for disk in disks or known}
        self._wake.set()
        text = f"segments of {protection.name} are sealed with new data keys from now on: {', '.join(made)}"
        self._events.emit("key.data-renewed", Severity.INFORMATION, text, machine=machine)
        return DataKeysRenewed(machine=machine, name=protection.name, keys=made)

    def deep_verify(self, machine: MachineId) -> DeepVerification:
        """See `ProtectionService`."""
        return self._verifier(machine).start()

    def deep_verification(self, machine: MachineId) -> DeepVerification:
        """See `ProtectionService`."""
        return self._verifier(machine).show()

    def _verifier(self, machine: MachineId) -> DeepVerifier:
        with self._change:
            found = self._verifiers.get(machine)
        if found is None:
            raise NotProtected(machine=machine)
        return found

    def export_seed(self, machine: MachineId, request: SeedExportRequest) -> SeedExportStatus:
        """See `ProtectionService`. What was copied over the network so far is dropped."""
        protection = self._desired.get(machine)
        if protection is None:
            raise NotProtected(machine=machine)
        source = self._fabric.open_source(machine, protection.disks, taken=True)
        self._seeds.check(source.machine, request, self._status(protection))
        with self._change:
            running = self._running.pop(machine, None)
            if running is not None:
                running.stop()  # the loop that is begun instead finds the wish
            self._seeds.of(protection.machine, protection.name).begin(Path(request.directory))
        self._wake.set()
        return self.seed_export(machine)

    def seed_export(self, machine: MachineId) -> SeedExportStatus:
        """See `ProtectionService`."""
        protection = self._desired.get(machine)
        if protection is None:
            raise NotProtected(machine=machine)
        return self._seeds.of(protection.machine, protection.name).show()

    def cancel_seed(self, machine: MachineId) -> SeedExportStatus:
        """See `ProtectionService`."""
        protection = self._desired.get(machine)
        if protection is None:
            raise NotProtected(machine=machine)
        with self._change:
            running = self._running.pop(machine, None)
            if running is not None:
                running.stop()
            self._seeds.of(protection.machine, protection.name).cancel()
        self._wake.set()
        return self.seed_export(machine)

    # -- converging -----------------------------------------------------------------------------

    def _converge_root(self) -> None:
        while not self._stop.is_set():
            try:
                self._converge()
            except Exception as error:  # a thread's root: told, and tried again
                log.exception("converging to the desired state failed")
                text = f"converging to the desired state failed: {type(error).__name__}: {error}"
                self._events.emit("gateway.internal-error", Severity.CRITICAL, text)
            self._clock.wait(self._wake, CONVERGE_SECONDS)
            self._wake.clear()

    def _converge(self) -> None:
        desired = self._desired.all()
        for index, protection in enumerate(desired):
            if self._stop.is_set():
                return
            with self._change:
                current = self._desired.get(protection.machine)
                if current is None:
                    continue
                try:
                    if not current.enabled:
                        self._end(current)
                    elif current.machine not in self._running:
                        # machines share the host and the link: their cycles are spread over the interval
                        stagger = current.copy_frequency_seconds * index / len(desired)
                        self._begin(current, stagger)
                except SecondsiteError as error:
                    self._board(current).trouble(error, critical=not error.retryable)

    def _begin(self, protection: Protection, stagger_seconds: float) -> None:
        """Open the machine and start its loop; the caller holds `change`."""
        board = self._board(protection)
        route = self._routes.get(protection.peer)
        if route is None:
            raise PeerUnknown(peer=protection.peer, known=", ".join(sorted(self._routes)) or "none")
        source = self._fabric.open_source(protection.machine, protection.disks, taken=True)
        # those named, also ones it does not have now: it may get them again
        disks = protection.disks or tuple(disk.id for disk in source.machine.disks)
        furnished = {disk: self._furnish(protection.machine, disk) for disk in disks}
        bench = Bench(
            machine=protection.machine,
            name=protection.name,
            source=source,
            shipper=route.shipper,
            vault=self._vault,
            keys={disk: made.key for disk, made in furnished.items()},
            tables={disk: made.table for disk, made in furnished.items()},
            clock=self._clock,
            events=self._events,
            furnish=lambda disk: self._furnish(protection.machine, disk),
            rekey=lambda disk, data: self._rekey(protection.machine, disk, data),
            level=protection.compression_level,
            mapping=protection.mapping,
        )
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
            wrapped_keys={key: data for made in furnished.values() for key, data in made.wrapped.items()},
            board=board,
            stagger_seconds=stagger_seconds,
            clock_watch=self._clock_watch,
            media=self._seeds.of(protection.machine, protection.name),
        )
        verifier.hurry = replication.hurry
        verifier.heal_with(bench.mending)
        self._running[protection.machine] = replication
        self._verifiers[protection.machine] = verifier
        replication.start()

    def _end(self, protection: Protection) -> None:
        """Remove a protection; the caller holds `change`. Raises what the source raises; repeatable."""
        machine = protection.machine
        running = self._running.pop(machine, None)
        self._verifiers.pop(machine, None)
        if running is not None:
            running.unprotect()
        else:
            self._board(protection).move(ItemEvent.DISABLED)
            route = self._routes.get(protection.peer)
            for shipment in route.shipper.shipments(machine) if route else ():
                shipment.discard()
            self._fabric.open_source(machine, protection.disks, taken=True).release()
        for path in sorted(self._tables_of(machine).glob("*")):
            remove_file(path)
        (self._state_dir / "verify" / f"{machine}.json").unlink(missing_ok=True)
        self._seeds.drop(machine)
        self._desired.remove(machine)
        self._boards.pop(machine, None)
        text = f"{protection.name} is no longer protected; its points stay at {protection.peer}"
        self._events.emit("item.unprotected", Severity.INFORMATION, text, machine=machine)

    # -- what a machine needs -------------------------------------------------------------------

    def _board(self, protection: Protection) -> Board:
        board = self._boards.get(protection.machine)
        if board is None:
            board = Board(
                protection.machine,
                protection.name,
                protection.peer,
                frequency_seconds=protection.copy_frequency_seconds,
                clock=self._clock,
                events=self._events,
            )
            board = self._boards.setdefault(protection.machine, board)
        return board

    def _status(self, protection: Protection) -> ProtectionStatus:
        return self._board(protection).show(spool_bytes=0)

    def _furnish(self, machine: MachineId, disk: DiskId) -> Furnished:
        """The disk's data key, made at its first start, and its table; the key lies here only wrapped."""
        keys = self._keys.of(machine, disk)
        return Furnished(key=keys.newest, wrapped=keys.wrapped, table=self._table(machine, disk))

    def _rekey(self, machine: MachineId, disk: DiskId, data: bytes) -> Rekeyed:
        """Keep the wrapped key `data` for a disk. Raises WrongKey, ObjectDamaged."""
        keys = self._keys.take_back(machine, disk, data)
        return Rekeyed(key=keys.newest, wrapped=keys.wrapped)

    def _tables_of(self, machine: MachineId) -> Path:
        return self._cache_dir / "subblocks" / machine

    def _table(self, machine: MachineId, disk: DiskId) -> SubBlockTable:
        return SubBlockTable(
            self._tables_of(machine) / f"{disk}.table", machine, disk, on_void=self._teller(machine, disk)
        )

    def _teller(self, machine: MachineId, disk: DiskId) -> Callable[[str], None]:
        def tell(why: str) -> None:
            text = f"what the target holds of disk {disk} is not known, nothing is dropped: {why}"
            self._events.emit("capture.table-void", Severity.WARNING, text, machine=machine)

        return tell


def _policy(protection: Protection) -> Policy:
    return Policy(
        copy_frequency_seconds=protection.copy_frequency_seconds,
        application_consistent_frequency_seconds=protection.application_consistent_frequency_seconds,
    )
