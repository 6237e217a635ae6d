"""The target site in the simulation: the receiving gateway, its store and bases, exports, an operator."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Callable
from pathlib import Path

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB
from secondsite.gateway.target.digestservice import DigestService
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.gateway.target.retention import Retention
from secondsite.journal.bases import BaseImage
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import HeadMoved, PointUnknown
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.merge import Cancelled, NotMergeable, merge
from secondsite.journal.promote import OpenBase, promote
from secondsite.journal.state import BaseState
from secondsite.journal.store import StoreFull, StoreUnavailable
from secondsite.journal.sweep import delete_promoted, delete_retired, garbage
from secondsite.journal.view import BaseOf, open_view
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Point
from secondsite.model.retention import Policies, RetentionPolicy
from support.sim_devices import Network, SimBase, SimStore
from support.sim_kernel import Process, RunFailed, SimClock, World
from support.sim_oracle import Oracle
from support.sim_source import Events

PEERS = {"gateway-a": PeerRule(), "gateway-c": PeerRule()}


class TargetSite:
    """Everything at the target."""

    def __init__(
        self,
        world: World,
        directory: Path,
        *,
        machine: MachineId,
        network: Network,
        oracle: Oracle,
        vault: VaultKey,
        policy: RetentionPolicy | None,
        fingerprints: bool,
    ) -> None:
        """policy: of the retention; None: there is none, merges and promotions are asked for."""
        self.world, self.machine, self.network = world, machine, network
        self.oracle, self.vault = oracle, vault
        self.directory, self.policy, self.with_fingerprints = directory, policy, fingerprints
        self.boots = random.Random(world.seed)
        self.boot = self._new_boot()
        self.store: SimStore = oracle.store
        self.bases: dict[str, MemoryBase] = {}  # by identity
        self.clock = SimClock(world)
        self.events = Events(world, "gateway-b")
        self.gateway: Process | None = None
        self.exports: dict[str, Process] = {}  # by holder of its pin
        self.held: dict[str, int] = {}  # holder -> the point it must be able to read
        self.tasks = 0

    # -- bases ------------------------------------------------------------------------------------

    def _new_boot(self) -> bytes:
        return uuid.UUID(int=self.boots.getrandbits(128)).bytes

    def open_base(self, disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        """See `promote.OpenBase`."""
        if known is not None:
            return SimBase(self.world, self.bases[known.identity], self._look_between)
        made = MemoryBase(size_bytes)
        self.bases[made.identity] = made
        return SimBase(self.world, made, self._look_between)

    def _look_between(self) -> None:
        """Now and then all must be true between two writes to a base."""
        if self.world.chance.random() < 0.02:
            self.world.at(0.0, lambda: self.check(every=False))

    def bases_of(self, journal: Journal) -> BaseOf:
        """See `view.BaseOf`."""

        def base_of(disk: DiskId) -> BaseImage | None:
            known = journal.state().base(disk)
            return SimBase(self.world, self.bases[known.identity]) if known else None

        return base_of

    def ring_of(self, journal: Journal) -> KeyRing:
        """The machine's data keys."""
        return KeyRing(self.store, journal.machine, self.vault)

    def check(self, *, every: bool) -> None:
        """Hold the replica against the oracle, now."""
        self.oracle.check(self.bases_of(self.oracle.journal()), every=every)

    # -- the gateway's process --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.gateway is not None and self.gateway.alive

    def start(self) -> None:
        """A new process; exports whose process is gone are served again from their pins."""
        assert not self.running, "one at a time"
        self.world.note("starts", "gateway-b")
        self.gateway = self.world.process("gateway-b", self.clock)
        self.gateway.spawn(self._main, "main")

    def _main(self) -> None:
        gateway = self.gateway
        assert gateway is not None
        self._open()
        # only now: who asks meanwhile finds nobody
        self.network.server, self.network.receiver = gateway, self.receiver
        self._restore_exports()

    def _open(self) -> None:
        def opener(journal: Journal) -> OpenBase:
            return self.open_base

        fingerprints = retention = None
        if self.with_fingerprints:
            fingerprints = Fingerprints(
                self.directory,
                vault=self.vault,
                bases_of=self.bases_of,
                clock=self.clock,
                events=self.events,
            )
        if self.policy is not None:
            retention = Retention(
                self.store,
                Policies(default=self.policy),
                vault=self.vault,
                open_base=opener,
                clock=self.clock,
                events=self.events,
            )

        def committed(journal: Journal, point: Point) -> None:
            if fingerprints is not None:
                fingerprints.committed(journal, point)
            if retention is not None:
                retention.committed(journal, point)

        digests = None
        if fingerprints is not None:
            digests = DigestService(fingerprints, vault=self.vault, bases_of=self.bases_of, clock=self.clock)
        self.receiver = GatewayReceiver(
            self.store,
            vault=self.vault,
            peers=PEERS,
            clock=self.clock,
            events=self.events,
            fingerprints=fingerprints.of if fingerprints is not None else None,
            on_commit=committed,
            digests=digests,
        )
        if retention is not None:
            retention.start()

    def kill(self) -> None:
        """SIGKILL; the store and the bases keep what they were given."""
        if self.running:
            assert self.gateway is not None
            self.gateway.kill()

    def power_cut(self) -> None:
        """The site's machine lost power: every process, staged bytes, unsynced writes of bases."""
        world = self.world
        world.note("power cut")
        if self.gateway is not None:
            self.gateway.alive = False
        for process in self.exports.values():
            process.alive = False
        self.exports.clear()
        self.boot = self._new_boot()
        self.store.power_cut()
        for identity, base in sorted(self.bases.items()):
            count = base.unsynced_count
            kept = frozenset(n for n in range(count) if world.chance.random() < 0.5)
            self.bases[identity] = base.restarted(kept)

    def work(self, what: str, do: Callable[[Journal], None]) -> None:
        """What the gateway does with the journal, in a task of its own; a full or failing store ends it."""
        gateway = self.gateway
        if gateway is None or not gateway.alive or self.network.server is not gateway:
            return
        journal = self.receiver.journal(self.machine)
        self.world.note("command", "gateway-b", what)

        def run() -> None:
            try:
                do(journal)
            except (StoreFull, StoreUnavailable, HeadMoved, NotMergeable, Cancelled):
                return
            except PointUnknown as error:
                self.world.note("too late", what, error.fields.get("number"))

        gateway.spawn(run, what)

    # -- what it does -----------------------------------------------------------------------------

    def promote(self, number: int) -> None:
        """Bring the bases up to a point."""
        self.oracle.allowed_floor = max(self.oracle.allowed_floor or 0, number)

        def do(journal: Journal) -> None:
            keys = KeyRing(self.store, self.machine, self.vault)
            done = promote(journal, number, keys, self.open_base, clock=self.clock)
            self.world.note("promoted", done.floor)

        self.work("promote", do)

    def merge(self, after: int, last: int) -> None:
        """Make one point of several."""

        def do(journal: Journal) -> None:
            keys = KeyRing(self.store, self.machine, self.vault)
            done = merge(journal, after, last, keys, clock=self.clock)
            self.world.note("merged", done.first, done.last, done.points)
            delete_retired(journal, clock=self.clock)

        self.work("merge", do)

    def collect(self) -> None:
        """Remove garbage."""

        def do(journal: Journal) -> None:
            for name in garbage(journal):
                self.store.delete(name)
            delete_promoted(journal, clock=self.clock)
            delete_retired(journal, clock=self.clock)

        self.work("collect", do)

    def claim(self, claimant: str, reason: str) -> None:
        """Another writer becomes the authority."""

        def do(journal: Journal) -> None:
            journal.claim(
                name="shop", claimant=claimant, reason=reason, clock=self.clock, expected=journal.head()
            )

        self.work("claim", do)

    # -- exports ----------------------------------------------------------------------------------

    def export(self, number: int, holder: str, seconds: float) -> None:
        """Pin a point and serve it for a while from a process of its own, which reads and compares."""

        def do(journal: Journal) -> None:
            journal.pin(number, holder, "a test")
            self.held[holder] = number
            self._serve(holder, number)

        self.work("export", do)
        self.world.at(seconds, lambda: self.end_export(holder))

    def end_export(self, holder: str) -> None:
        """Clean up; asked again while no gateway answers."""
        if not self.running or self.network.server is not self.gateway:
            self.world.at(5.0, lambda: self.end_export(holder))
            return
        process = self.exports.pop(holder, None)
        if process is not None:
            process.alive = False
        self.held.pop(holder, None)

        def do(journal: Journal) -> None:
            with contextlib.suppress(SecondsiteError):
                journal.unpin(holder)
                return
            self.world.at(5.0, lambda: self.end_export(holder))

        self.work("unpin", do)

    def _serve(self, holder: str, number: int) -> None:
        process = self.world.process(f"export {holder}", self.clock)
        self.exports[holder] = process
        process.spawn(lambda: self._read_on(process, holder, number), "read")

    def _restore_exports(self) -> None:
        journal = self.receiver.journal(self.machine)
        for holder, number in sorted(self.held.items()):
            if holder not in self.exports:
                while True:
                    try:
                        journal.pin(number, holder, "a test")
                    except (StoreFull, StoreUnavailable):
                        self.world.block(1.0)
                        continue
                    break
                self._serve(holder, number)

    def _read_on(self, process: Process, holder: str, number: int) -> None:
        """Read the point for as long as it is held; every byte must be that of its instant."""
        journal = Journal(self.store, self.machine, self.vault)
        content = self.oracle.instants[self.oracle.counted[number].checkpoint].content
        chance = self.world.chance
        keys = KeyRing(self.store, self.machine, self.vault)
        try:
            view = open_view(journal, number, keys, bases=self.bases_of(journal))
        except SecondsiteError as error:
            raise RunFailed(f"J4: pinned point {number} cannot be opened for {holder}: {error}") from error
        while holder in self.held:
            disk = chance.choice(sorted(view.disks))
            expected = content[disk]
            start = chance.randrange(len(expected))
            length = min(len(expected) - start, chance.choice([1, 512, 4 * KIB, 30 * KIB]))
            try:
                found = view.disks[disk].read(start, length)
            except SecondsiteError as error:
                raise RunFailed(f"J4: reading pinned point {number}: {error}") from error
            if holder in self.held:
                self.oracle.same(number, disk, start, found, expected[start : start + length])
            self.world.block(chance.random() * 4.0)
