"""One seed: two sites, a life of writes, faults and commands, then quiet, and the replica must be whole.

    run_seed(seed) -> Result            raises RunFailed with everything needed to run it again

Every run draws its own mix of faults: one that always has all of them finds less than many that have few.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.units import KIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.source import cycle, cycling, tables
from secondsite.gateway.source import firstcopying as seed
from secondsite.gateway.target import retention, upkeep
from secondsite.journal import merge
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped
from secondsite.journal.names import segment_name
from secondsite.model.ids import DiskId, KeyId, machine_id
from secondsite.model.machines import PowerState
from secondsite.model.points import PointProposal
from secondsite.model.retention import RetentionPolicy
from support.sim_devices import Network, SimStore
from support.sim_kernel import RunFailed, SimClock, World, product_modules
from support.sim_oracle import Oracle
from support.sim_source import SourceSite
from support.sim_target import TargetSite

MACHINE = machine_id("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
ROOT = Path(__file__).resolve().parents[2]
# Faults off, everything that waits has its longest wait behind it: a writer that is held looks every 30 s.
CATCH_UP_SECONDS = 240.0

# What is sized for disks of terabytes is made to fit disks of some dozen KiB, so that every path is taken.
SMALL: tuple[tuple[object, str, float], ...] = (
    (cycle, "READ_BYTES", 16 * KIB),
    (seed, "READ_BYTES", 16 * KIB),
    (seed, "SMALL_BYTES", 12 * KIB),
    (seed, "ROOM_BYTES", 32 * KIB),
    (cycling, "ROOM_BYTES_MIN", 16 * KIB),
    (merge, "KEPT_STORED_BYTES_MIN", 6 * KIB),
    (retention, "PASS_SECONDS", 7.0),
    (retention, "RETRY_SECONDS", 5.0),
    (upkeep, "SWEEP_SECONDS", 20.0),
)
SLICE_BYTES = 32 * KIB
LEVELS = (4, 16)  # of pages

# Kinds of trouble; a run draws some.
FAULTS = (
    "partition",
    "lossy",
    "slow",
    "kill-source",
    "kill-target",
    "die-source",
    "die-target",
    "cut-source",
    "cut-target",
    "store",
    "tracking",
    "resize",
    "busy",
    "reads",
    "cache",
    "clock",
    "failover",
    "unprotect",
    "restart",
    "full",
    "vanish",
)


@dataclass
class Result:
    """What a run came to."""

    seed: int
    points: int
    faults: dict[str, int]
    events: int
    seconds: float  # simulated
    checks: int
    trace: str


class Run:
    """The life of one seed."""

    def __init__(self, seed_number: int, directory: Path) -> None:
        self.world = world = World(seed_number)
        chance = world.chance
        self.network = Network(world)
        self.store = SimStore(world)
        self.vault = VaultKey.create(chance.randbytes)
        self.oracle = Oracle(world, self.store, MACHINE, self.vault)
        self.store.on_put = self.oracle.on_put
        policy = None
        if chance.random() < 0.7:
            policy = RetentionPolicy.parse(
                chance.choice(["all:15s,6s:40s", "all:8s", "all:20s,10s:60s", "latest"])
            )
            self.oracle.allowed_floor = None
            self.oracle.reach_seconds = policy.windows[0].reach_seconds if policy.windows else 0.0
        (directory / "gateway-b").mkdir()
        self.target = TargetSite(
            world,
            directory / "gateway-b",
            machine=MACHINE,
            network=self.network,
            oracle=self.oracle,
            vault=self.vault,
            policy=policy,
            fingerprints=chance.random() < 0.3,
        )
        self.sizes = {
            DiskId("vda"): chance.choice([64, 96, 128]) * KIB,
            DiskId("vdb"): chance.choice([16 * KIB, 40 * KIB + 512, 64 * KIB]),
        }
        self.keys = {disk: DiskKey.create(chance.randbytes) for disk in self.sizes}
        self.wrapped: dict[KeyId, bytes] = {
            key.id: encode_wrapped(self.vault, MACHINE, disk, key, chance.randbytes)
            for disk, key in self.keys.items()
        }
        self.oracle.keys = self.keys
        self.chunk_bytes = chance.choice([8, 16]) * KIB
        self.limit_bytes = chance.choice([96, 256, 4096]) * KIB
        self.frequency_seconds = chance.choice([2.0, 5.0])
        self.directory = directory
        self.sources = {"gateway-a": self._source("gateway-a")}
        self.kinds = chance.sample(FAULTS, chance.randint(1, 5))
        self.faults: dict[str, int] = {}
        self.holders = 0
        world.on_crash = self._on_crash

    def _source(self, name: str) -> SourceSite:
        fabric = MemoryFabric(clock=SimClock(self.world), chunk_bytes=self.chunk_bytes)
        machine = fabric.add_machine(
            "shop", {str(disk): size for disk, size in self.sizes.items()}, machine=MACHINE
        )
        directory = self.directory / name
        directory.mkdir()
        return SourceSite(
            self.world,
            name,
            directory,
            fabric=fabric,
            machine=machine,
            network=self.network,
            oracle=self.oracle,
            vault=self.vault,
            keys=self.keys,
            wrapped=self.wrapped,
            limit_bytes=self.limit_bytes,
            frequency_seconds=self.frequency_seconds,
        )

    def _on_crash(self, process: object) -> None:
        for source in self.sources.values():
            if source.gateway is process:
                source.died()

    # -- the run ----------------------------------------------------------------------------------

    def live(self) -> Result:
        """Trouble, then quiet."""
        world, chance = self.world, self.world.chance
        self.source.scribble(12)
        self.target.start()
        self.source.start()
        world.at(chance.random() * 2, self._write)
        world.at(5 + chance.random() * 10, self._trouble)
        world.at(5 + chance.random() * 10, self._command)
        world.at(3.0, self._look)
        world.run(chance.choice([15.0, 30.0, 45.0]))
        self._quiet()
        self.target.check(every=True)
        self._check_resync()
        return Result(
            seed=world.seed,
            points=len(self.oracle.counted),
            faults=self.faults,
            events=world.events,
            seconds=world.now,
            checks=self.oracle.checks,
            trace=world.trace.hexdigest(),
        )

    @property
    def source(self) -> SourceSite:
        """The site whose gateway is the writer in the epoch in force."""
        epoch = self.oracle.epoch
        return self.sources.get(
            self.oracle.claims[epoch].claimant if epoch else "gateway-a", self.sources["gateway-a"]
        )

    def _again(self, seconds: float, event: Callable[[], None]) -> None:
        if not self.over:
            self.world.at(seconds * (0.3 + 1.4 * self.world.chance.random()), event)

    over = False

    def _write(self) -> None:
        for source in self.sources.values():
            source.scribble(self.world.chance.choice([0, 1, 1, 2, 5]))
        self._again(2.0, self._write)

    def _look(self) -> None:
        """Now and then, at a moment nobody chose, all must be true."""
        self.target.check(every=False)
        self._check_lag()
        for source in self.sources.values():
            if not source.running and source.starts and self.world.chance.random() < 0.5:
                source.start()
        if not self.target.running and self.world.chance.random() < 0.5:
            self.target.start()
        self._again(8.0, self._look)

    def _check_lag(self) -> None:
        """L1, by what the gateway shows."""
        for source in self.sources.values():
            newest = self.oracle.newest
            if source.replication is None or newest is None:
                continue
            shown = source.replication.board.rpo_seconds()
            if shown is None:
                continue
            instant = self.oracle.instants[newest.checkpoint]
            true = self.world.now - instant.at
            # what another site, or an earlier process, labelled by a clock that was moved since is as good
            # as that clock
            ours = instant.owner == source.name and source.starts == 1
            moved = any(site.clock.skew for site in self.sources.values())
            if shown < true - 0.5 and (ours or not moved):
                raise RunFailed(f"L1: {source.name} shows a lag of {shown:.1f} s, it is {true:.1f} s")

    def _check_resync(self) -> None:
        """R3: what the source forgets, the target has: only lost tracking makes it read everything again."""
        if self.faults.keys() & {"tracking", "failover", "unprotect", "reads", "resize", "clock"}:
            return
        for source in self.sources.values():
            if "replicate.resync" in source.events.codes:
                raise RunFailed(f"R3: {source.name} had to read everything again")

    # -- commands ---------------------------------------------------------------------------------

    def _command(self) -> None:
        chance, target = self.world.chance, self.target
        points = [point.number for point in self.oracle.journal().points()]
        kinds = ["export", "point"]
        if target.policy is None:
            kinds += ["promote", "merge", "merge", "collect"]
        kind = chance.choice(kinds)
        if kind == "promote" and points:
            target.promote(chance.choice(points[: max(1, len(points) - 2)]))
        elif kind == "merge" and len(points) > 2:
            after = chance.randrange(len(points) - 2)
            target.merge(points[after], points[chance.randrange(after + 2, len(points))])
        elif kind == "export" and points and len(target.held) < 3:
            self.holders += 1
            target.export(chance.choice(points), f"test-{self.holders}", 5 + chance.random() * 40)
        elif kind == "point":
            self.source.take_point()
        elif kind == "collect":
            target.collect()
        self._again(8.0, self._command)

    # -- trouble ----------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if not self.kinds:
            return
        kind = self.world.chance.choice(self.kinds)
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.world.note("trouble", kind)
        getattr(self, "_fault_" + kind.replace("-", "_"))()
        self._again(12.0, self._trouble)

    def _for_a_while(self, seconds: float, undo: Callable[[], None]) -> None:
        self.world.at(seconds * (0.2 + self.world.chance.random()), undo)

    def _fault_partition(self) -> None:
        self.network.up = False
        self._for_a_while(25.0, lambda: setattr(self.network, "up", True))

    def _fault_lossy(self) -> None:
        self.network.lost, self.network.twice = self.world.chance.choice([(0.2, 0.3), (0.05, 0.1)])
        self._for_a_while(25.0, lambda: setattr(self.network, "lost", 0.0))

    def _fault_slow(self) -> None:
        self.network.delay = self.world.chance.choice([0.5, 3.0, 12.0])
        self._for_a_while(25.0, lambda: setattr(self.network, "delay", 0.01))

    def _fault_kill_source(self) -> None:
        self.source.kill()

    def _fault_kill_target(self) -> None:
        self.target.kill()

    def _fault_die_source(self) -> None:
        gateway, chance = self.source.gateway, self.world.chance
        if gateway is not None:
            if chance.random() < 0.5:
                gateway.marks_left = chance.randint(1, 12)
            else:
                gateway.operations_left = chance.randint(1, 6)

    def _fault_die_target(self) -> None:
        gateway, chance = self.target.gateway, self.world.chance
        if gateway is not None:
            if chance.random() < 0.3:
                gateway.marks_left = chance.randint(1, 12)
            else:
                gateway.operations_left = chance.randint(1, 40)

    def _fault_cut_source(self) -> None:
        self.source.power_cut()

    def _fault_cut_target(self) -> None:
        self.target.power_cut()

    def _fault_store(self) -> None:
        self.store.trouble = 0.3
        self._for_a_while(15.0, lambda: setattr(self.store, "trouble", 0.0))

    def _fault_full(self) -> None:
        self.store.full = True
        self._for_a_while(15.0, lambda: setattr(self.store, "full", False))

    def _fault_vanish(self) -> None:
        """A segment goes that no point names yet, as its commit arrives: say an administrator tidies up."""

        def vanish(proposal: PointProposal) -> None:
            if any(point.nonce == proposal.nonce for point in self.oracle.counted.values()):
                return  # the repetition of a commit
            for ref in proposal.segments[:1]:
                self.store.inner.delete(segment_name(MACHINE, ref.epoch, ref.disk, ref.id))
                self.network.before_commit = lambda _: None

        self.network.before_commit = vanish

    def _fault_tracking(self) -> None:
        self.source.fabric.lose_tracking(MACHINE)

    def _fault_resize(self) -> None:
        """Never smaller and larger again unseen: no hypervisor's tracking tells of that (docs/proof.md)."""
        chance, source = self.world.chance, self.source
        newest = self.oracle.newest_of(source.name)
        disk = chance.choice(sorted(self.keys))
        size = chance.choice([12 * KIB, 40 * KIB + 512, 64 * KIB, 100 * KIB, 132 * KIB + 1024])
        if newest is None or len(newest.content[disk]) <= len(source.content()[disk]):
            source.fabric.resize(MACHINE, disk, size)

    def _fault_busy(self) -> None:
        fabric = self.source.fabric
        fabric.set_busy(MACHINE, "another product's backup")
        self._for_a_while(20.0, lambda: fabric.set_busy(MACHINE, ""))

    def _fault_reads(self) -> None:
        fabric, chance = self.source.fabric, self.world.chance
        if chance.random() < 0.5:
            fabric.fail_reads(MACHINE, chance.randint(1, 3))
        else:
            fabric.set_power(MACHINE, PowerState.OFF)
            self._for_a_while(15.0, lambda: fabric.set_power(MACHINE, PowerState.RUNNING))

    def _fault_cache(self) -> None:
        self.source.lose_cache()

    def _fault_clock(self) -> None:
        clock = self.world.chance.choice([self.source.clock, self.target.clock])
        seconds = self.world.chance.choice([-3600.0, -30.0, 30.0, 86400.0])
        clock.skew += seconds
        if clock is self.target.clock and seconds == 30.0:
            self.oracle.reach_seconds = None  # windows are counted by this clock; a large jump it notices

    def _fault_restart(self) -> None:
        self.source.stop()

    def _fault_unprotect(self) -> None:
        source = self.source
        source.unprotect()
        self._for_a_while(20.0, source.protect_again)

    def _fault_failover(self) -> None:
        """The other site's gateway becomes the writer, with a machine that stands on some point."""
        newest = self.oracle.newest
        if newest is None:
            return
        other = "gateway-c" if self.source.name == "gateway-a" else "gateway-a"
        if other not in self.sources:
            made = self.sources[other] = self._source(other)
            for disk, data in self.oracle.instants[newest.checkpoint].content.items():
                made.fabric.resize(MACHINE, disk, len(data))
                made.fabric.write(MACHINE, disk, 0, data)
            made.start()
        self.target.claim(other, "failover")

    # -- quiet ------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.over = True
        self.network.heal()
        self.store.trouble, self.store.full = 0.0, False
        for source in self.sources.values():
            source.fabric.set_busy(MACHINE, "")
            source.fabric.fail_reads(MACHINE, 0)
            source.fabric.set_power(MACHINE, PowerState.RUNNING)
            if source.gateway is not None:
                source.gateway.marks_left = source.gateway.operations_left = 0
        if self.target.gateway is not None:
            self.target.gateway.marks_left = self.target.gateway.operations_left = 0

    def _keep_up(self) -> None:
        """What stands in for the service manager, and for the operator's last word."""
        for source in self.sources.values():
            if not source.running:
                source.start()
            source.protect_again()
        if not self.target.running:
            self.target.start()
        self.world.at(1.0, self._keep_up)

    def _quiet(self) -> None:
        """L2: faults end, the guest writes once more and stops; a point must hold exactly that."""
        self._heal()
        self.world.at(0.0, self._keep_up)
        self.world.run(2.0)
        self._heal()  # what ended of itself meanwhile may have undone some of it
        for source in self.sources.values():
            source.scribble(3)
        if not self.world.run(CATCH_UP_SECONDS, self._caught_up):
            raise RunFailed(f"L2: no point of the last write within {CATCH_UP_SECONDS:.0f} s of quiet")
        for holder in list(self.target.held):
            self.target.end_export(holder)
        self.world.run(1.0)

    def _caught_up(self) -> bool:
        newest, source = self.oracle.newest, self.source
        if newest is None:
            return False
        instant = self.oracle.instants[newest.checkpoint]
        return instant.owner == source.name and instant.content == source.content()


@contextmanager
def _small(run: Run) -> Iterator[None]:
    values: list[tuple[object, str, object]] = [*SMALL, (tables, "boot_id", lambda: run.target.boot)]
    values += [(m, "LEVELS", LEVELS) for n, m in product_modules() if hasattr(m, "LEVELS")]
    changed = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    defaults = seed.Seed.__init__.__kwdefaults__ or {}
    slice_bytes = defaults["slice_bytes"]
    for owner, name, put in values:
        setattr(owner, name, put)
    defaults["slice_bytes"] = SLICE_BYTES
    try:
        yield
    finally:
        defaults["slice_bytes"] = slice_bytes
        for owner, name, value in changed:
            setattr(owner, name, value)


def commit() -> str:
    """What was run."""
    found = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], check=False, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def _open_files() -> set[int]:
    listed = list(Path("/proc/self/fd").iterdir())
    # the listing's own descriptor was among them, and is free again: the first that the run opens
    return {int(path.name) for path in listed if os.path.lexists(path)}


def run_seed(seed_number: int, *, change: Callable[[Run], None] | None = None) -> Result:
    """Run one seed. change: alters the run before it begins (tests of the simulation itself)."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="secondsite-sim-", dir=memory if memory.is_dir() else None))
    before = _open_files()
    collecting = gc.isenabled()
    gc.disable()  # frames of killed processes must not be torn down in the middle of a run
    run = Run(seed_number, directory)
    try:
        with run.world.installed(), _small(run):
            try:
                if change is not None:
                    change(run)
                return run.live()
            except BaseException as error:  # shown with all that is needed, then raised again
                if not isinstance(error, Exception):
                    raise
                raise RunFailed(_tell(run, error)) from error
            finally:
                shutil.rmtree(directory, ignore_errors=True)
                run.world.end()
                shutil.rmtree(directory, ignore_errors=True)  # what unwinding frames made again
    finally:
        for number in _open_files() - before:
            try:
                os.close(number)
            except OSError:
                continue
        if collecting:
            gc.enable()


def _tell(run: Run, error: Exception) -> str:
    lines = [f"seed {run.world.seed} at commit {commit()} failed at {run.world.now:.3f} s: {error}"]
    lines.append(f"again: ./run simulate 1 --seed {run.world.seed}")
    lines += list(run.world.story)[-40:]
    for source in run.sources.values():
        lines += source.events.texts[-12:]
    lines += run.target.events.texts[-8:]
    return "\n".join(lines)
