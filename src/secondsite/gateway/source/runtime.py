"""All protections of one gateway: the desired state, and the loops that converge to it.

A thread opens what is desired and not running (again and again, where the hypervisor does not answer yet),
and finishes what is to end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.uploads import UploadFigures
from secondsite.fabrics.base import Fabric, Source
from secondsite.gateway.common.desired import DESIRED, DesiredState, Protection, local_policy
from secondsite.gateway.common.limits import PolicyLimits
from secondsite.gateway.messages.gateway import DeepVerification, PointTaken, ProtectionStatus, ProtectRequest
from secondsite.gateway.messages.keys import DataKeysRenewed
from secondsite.gateway.messages.protecterrors import ItemOfServer, NotProtected
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportStatus
from secondsite.gateway.source.cycle import Fence
from secondsite.gateway.source.deepverify import DeepVerifier
from secondsite.gateway.source.handles import Handles
from secondsite.gateway.source.loops import Loops
from secondsite.gateway.source.protectable import open_protectable
from secondsite.gateway.source.verbs import Verbs, over, tell
from secondsite.gateway.source.ways import Routes
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping as SiteMapping

log = logging.getLogger(__name__)

# How often what does not run yet is tried.
CONVERGE_SECONDS = 5.0


class Protections:
    """Implements the control API's `ProtectionService`. `start` once, `close` at the end."""

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
        desired: DesiredState | None = None,
        fence: Fence | None = None,
        limits: PolicyLimits | None = None,
        of_server: bool = False,
    ) -> None:
        """desired: the file, where others read it too. of_server: items of a server are its to change.

        limits: what policies may send, where the routes obey them.
        """
        self._of_server = of_server
        self._fabric = fabric
        self._routes = routes
        self._clock = clock
        self._events = events
        self._desired = desired or DesiredState(state_dir / DESIRED)
        self._limits = limits or PolicyLimits(clock, events)
        self._loops = Loops(
            name=name,
            fabric=fabric,
            routes=routes,
            vault=vault,
            state_dir=state_dir,
            cache_dir=cache_dir,
            clock=clock,
            events=events,
            desired=self._desired,
            fence=fence,
            limits=self._limits,
        )
        self._change = self._loops.change
        # raises FailoverOpen where a machine runs here by a failover that can be undone
        self.require_settled: Callable[[MachineId], None] = lambda _: None
        self.verbs = Verbs(
            self._desired,
            lambda protection: self._loops.board(protection).state,
            self.put,
            self._loops.status,
            events,
            self.begin_copy,
        )
        self._stop = threading.Event()
        self._wake = threading.Event()
        self.handles = Handles(
            self._desired,
            routes.get,
            self._loops.running,
            self._change,
            self._wake,
            self._loops.keys,
            self._loops.open,
            lambda machine: NotProtected(machine=machine),
        )
        self._thread = threading.Thread(target=self._converge_root, name="converge", daemon=True)

    def start(self) -> None:
        """Begin to converge."""
        for protection in self._desired.all():
            self._loops.limit(protection)
        self._limits.start()
        self._thread.start()

    def close(self) -> None:
        """Stop every loop; all goes on at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._loops.stop_all()
        self._limits.close()

    # -- ProtectionService ------------------------------------------------------------------------

    def statuses(self) -> Sequence[ProtectionStatus]:
        """See `ProtectionService`."""
        return [self._loops.status(protection) for protection in self._desired.all()]

    def uploads(self) -> dict[str, UploadFigures]:
        """What was sent to each peer, by its name."""
        return self._routes.uploads()

    def protect(self, machine: MachineId, request: ProtectRequest) -> ProtectionStatus:
        """See `ProtectionService`. Refused before anything is kept when the machine cannot be carried."""
        before = self._desired.get(machine)
        if before is not None and before.item and before.enabled and self._of_server:
            raise ItemOfServer(machine=before.name, item=before.item)
        source = self.check(machine, request.peer, request.disks, request.left_out)
        policy = local_policy(
            copy_frequency_seconds=request.copy_frequency_seconds,
            application_consistent_frequency_seconds=request.application_consistent_frequency_seconds,
            level=request.compression_level,
        )
        mapping = SiteMapping(
            networks=dict(request.networks), pools=dict(request.pools), default_pool=request.default_pool
        )
        wanted = Protection(
            machine=machine,
            name=source.machine.name,
            peer=request.peer,
            disks=request.disks,
            left_out=request.left_out,
            policy=policy,
            mapping=mapping,
        )
        made = self.put(machine, lambda now: over(now, wanted))
        tell(self._events, before, made, "a command at the gateway")
        return self._loops.status(made)

    def check(
        self,
        machine: MachineId,
        peer: str,
        disks: Sequence[DiskId] | None,
        left_out: Sequence[DiskId],
    ) -> Source:
        """Raise unless the machine can be protected so, at that peer; its source otherwise.

        Raises PeerUnknown, FailoverOpen, InvalidInput, and what the fabric raises.
        """
        self.require_settled(machine)
        before = self._desired.get(machine)
        return open_protectable(
            self._fabric, self._routes, machine, before, peer=peer, disks=disks, left_out=left_out
        )

    def put(self, machine: MachineId, change: Callable[[Protection | None], Protection]) -> Protection:
        """Keep what becomes of a protection (None: there is none yet), and have what runs follow it."""
        with self._change:
            before, now = self._desired.turn(machine, change)
            if before is None:
                self.handles.resting.discard(machine)  # an earlier protection's, which was stopped in order
            self._loops.follow(before, now)
        self._wake.set()
        return now

    def give_way(self, machine: MachineId) -> None:
        """A failover that can be undone is about to run it here: its loop ends, and begins again later."""
        with self._change:
            self._loops.stop(machine)
        self._wake.set()

    def follow(self, before: Protection | None, now: Protection) -> None:
        """Something else is desired of a machine now, and maybe something else again since (a pause)."""
        with self._change:
            newest = self._desired.get(now.machine)
            if newest is not None and newest.enabled:
                self._loops.follow(before, newest)
        self._wake.set()

    def reroute(self, told: Mapping[str, str]) -> None:
        """Peers have moved, or are known now: name -> URL. What is on its way takes the new way."""
        self._loops.reroute(told)
        self._wake.set()

    def unprotect(self, machine: MachineId) -> None:
        """See `ProtectionService`. What cannot be removed now (host down) is removed once it answers."""
        self._loops.known(machine)
        with self._change:
            ended = self._desired.update(machine, lambda p: msgspec.structs.replace(p, enabled=False))
            if ended is not None:
                self._loops.end(ended)

    def take_point(self, machine: MachineId, *, seconds_max: float) -> PointTaken:
        """See `ProtectionService`."""
        with self._change:
            running = self._loops.running.get(machine)
        if running is None:
            raise NotProtected(machine=machine)
        return running.take_point(seconds_max=seconds_max)

    def renew_data_keys(self, machine: MachineId, disks: Sequence[DiskId] | None) -> DataKeysRenewed:
        """See `ProtectionService`. What is on its way is sealed with the old keys and arrives as it is."""
        protection = self._loops.known(machine)
        made = self._loops.renew_data_keys(protection, disks)
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
            found = self._loops.verifiers.get(machine)
        if found is None:
            raise NotProtected(machine=machine)
        return found

    def export_seed(self, machine: MachineId, request: SeedExportRequest) -> SeedExportStatus:
        """See `ProtectionService`. What was copied over the network so far is dropped."""
        protection = self._loops.known(machine)
        source = self._loops.open(protection)
        self._loops.seeds.check(source.machine, request, self._loops.status(protection))
        with self._change:
            self._loops.stop(machine)  # the loop that is begun instead finds the wish
            self._loops.seed(protection).begin(Path(request.directory))
        self._wake.set()
        return self.seed_export(machine)

    def seed_export(self, machine: MachineId) -> SeedExportStatus:
        """See `ProtectionService`."""
        protection = self._loops.known(machine)
        return self._loops.seed(protection).show()

    def cancel_seed(self, machine: MachineId) -> SeedExportStatus:
        """See `ProtectionService`."""
        protection = self._loops.known(machine)
        with self._change:
            self._loops.stop(machine)
            self._loops.seed(protection).cancel()
            self._loops.first_copy(protection).begin()  # over the network after all
        self._wake.set()
        return self.seed_export(machine)

    def begin_copy(self, machine: MachineId) -> None:
        """Let a first copy that waits for its time, or for media, begin now. Raises NotProtected."""
        protection = self._loops.known(machine)
        with self._change:
            self._loops.first_copy(protection).begin()

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
                        self.handles.resting.discard(current.machine)  # a later protection of it begins
                        self._loops.end(current)
                    elif current.machine not in {*self._loops.running, *self.handles.resting}:
                        # one of an earlier time, too, waits for the end of a failover that can be undone
                        self.require_settled(current.machine)
                        # machines share the host and the link: their cycles are spread over the interval
                        stagger = current.policy.copy_frequency_seconds * index / len(desired)
                        self._loops.begin(current, stagger)
                except SecondsiteError as error:
                    self._loops.board(current).trouble(error, critical=not error.retryable)
