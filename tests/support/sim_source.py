"""A source site in the simulation: a machine, its host with a guard, and the gateway that replicates it."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from secondsite.base.units import KIB
from secondsite.fabrics.base import Quiesce, Source
from secondsite.fabrics.memory import MemoryCapture, MemoryFabric, MemorySource
from secondsite.gateway.source.cycle import Bench
from secondsite.gateway.source.pace import Policy
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.status import Board
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.gateway.source.wishes import PointNotTaken
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.transfer.retry import RetryPolicy
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool
from support.sim_devices import Network, SimLink
from support.sim_kernel import Process, RunFailed, SimClock, SimLock, World
from support.sim_oracle import Oracle

GUARD_SECONDS = 3.0  # after which it ends the job of a gateway that died


class Events:
    """An `EventSink`: events go into the trace, and some must never come."""

    def __init__(self, world: World, who: str) -> None:
        self._world, self._who = world, who
        self.codes: list[str] = []
        self.texts: list[str] = []

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        self.codes.append(code)
        self.texts.append(f"{self._world.now:9.3f} {self._who} {code}: {text}")
        self._world.note("event", self._who, code)
        if code.endswith("internal-error"):
            self._world.fail(f"{self._who}: {text}", sys.exc_info()[1])  # emitted where it was caught


class SimSource:
    """A `Source` each call to which may be the gateway's last; the oracle sees its instants."""

    def __init__(self, world: World, inner: MemorySource, site: SourceSite) -> None:
        self._world, self._inner, self._site = world, inner, site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> MemoryCapture:
        def effect() -> MemoryCapture:
            made = self._inner.capture(since=since, checkpoint=checkpoint, quiesce=quiesce)
            if checkpoint is not None:
                content = self._site.content()
                self._site.oracle.captured(checkpoint, self._site.name, content)
                self._site.captured.append(content)
            return made

        found: MemoryCapture = self._world.operation("capture", effect)
        self._world.pause()
        return found

    def forget(self, checkpoint: str) -> None:
        self._world.operation("forget", lambda: self._inner.forget(checkpoint))

    def release(self) -> None:
        self._world.operation("release", self._inner.release)


class SourceSite:
    """Everything at one source. `gateway` is the process while one runs."""

    def __init__(
        self,
        world: World,
        name: str,
        directory: Path,
        *,
        fabric: MemoryFabric,
        machine: MachineId,
        network: Network,
        oracle: Oracle,
        vault: VaultKey,
        keys: dict[DiskId, DiskKey],
        wrapped: dict[KeyId, bytes],
        limit_bytes: int,
        frequency_seconds: float,
    ) -> None:
        self.world, self.name, self.directory = world, name, directory
        self.fabric, self.machine, self.network, self.oracle = fabric, machine, network, oracle
        self.vault, self.keys, self.wrapped = vault, keys, wrapped
        self.limit_bytes, self.frequency_seconds = limit_bytes, frequency_seconds
        self.clock = SimClock(world)
        self.events = Events(world, name)
        self.gateway: Process | None = None
        self.replication: Replication | None = None
        self.shipper: LinkShipper | None = None
        self.protected = True
        self.starts = 0
        self.captured: list[dict[DiskId, bytes]] = []
        self.asked = 0  # points asked for, and given
        self.given = 0
        self._change = SimLock(world)  # commands that begin or end protection come one after the other

    # -- the guest --------------------------------------------------------------------------------

    def content(self) -> dict[DiskId, bytes]:
        """Every disk, now."""
        return {disk: self.fabric.content(self.machine, disk) for disk in self.keys}

    def scribble(self, count: int) -> None:
        """Writes of the guest."""
        chance = self.world.chance
        for _ in range(count):
            disk = chance.choice(sorted(self.keys))
            size = len(self.fabric.content(self.machine, disk))
            length = min(size, chance.choice([512, 512, 4 * KIB, 4 * KIB, 5 * KIB, 12 * KIB]))
            offset = chance.randrange((size - length) // 512 + 1) * 512
            kind = chance.random()
            if kind < 0.1:
                self.fabric.discard(self.machine, disk, offset, length)
                continue
            if kind < 0.3 and self.captured:
                # what was there at an earlier instant: a stale hash of it must not be taken for the target's
                before = chance.choice(self.captured[-6:])[DiskId(disk)][offset : offset + length]
                data = before.ljust(length, b"\0")
            elif kind < 0.4:
                data = self.fabric.content(self.machine, disk)[offset : offset + length]  # the same again
            elif kind < 0.5:
                data = bytes(length)
            elif kind < 0.65:
                data = (b"text %d " % chance.randrange(5) * length)[:length]
            else:
                data = chance.randbytes(length)
            self.fabric.write(self.machine, disk, offset, data)

    # -- the gateway's process --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a gateway runs."""
        return self.gateway is not None and self.gateway.alive

    def start(self) -> None:
        """A new process."""
        assert not self.running, "one at a time"
        self.starts += 1
        self.world.note("starts", self.name)
        self.gateway = self.world.process(self.name, self.clock)
        self.replication, self.shipper = None, None
        self._change = SimLock(self.world)
        self.gateway.spawn(self._main)

    def _main(self) -> None:
        world = self.world
        link = SimLink(self.network, self.name, self.oracle.was_acknowledged)
        spool = Spool(
            self.directory / "spool",
            limit_bytes=self.limit_bytes,
            identity=self.directory / "cache-id",
            events=self.events,
        )
        self.shipper = LinkShipper(
            link,
            spool,
            clock=self.clock,
            chance=random.Random(world.chance.random()),
            events=self.events,
            connections=2,
            memory_bytes_max=64 * KIB,
            policy=RetryPolicy(seconds_max=10.0),
        )
        self.link = link
        if self.protected:
            with self._change:
                self.protect()

    def protect(self) -> None:
        """Begin replication, in a task of the gateway."""
        world = self.world
        assert self.shipper is not None
        tables = {
            disk: SubBlockTable(
                self.directory / "subblocks" / f"{disk}.table", self.machine, disk, on_void=self._void(disk)
            )
            for disk in self.keys
        }
        board = Board(
            self.machine,
            "shop",
            "gateway-b",
            frequency_seconds=self.frequency_seconds,
            clock=self.clock,
            events=self.events,
        )
        bench = Bench(
            machine=self.machine,
            name="shop",
            source=cast("Source", SimSource(world, self.fabric.open_source(self.machine), self)),
            shipper=self.shipper,
            vault=self.vault,
            keys=self.keys,
            tables=tables,
            clock=self.clock,
            events=self.events,
        )
        self.replication = Replication(
            bench,
            us=self.name,
            link=self.link,
            policy=Policy(copy_frequency_seconds=self.frequency_seconds),
            wrapped_keys=self.wrapped,
            board=board,
        )
        self.replication.start()

    def _void(self, disk: DiskId) -> Callable[[str], None]:
        def tell(why: str) -> None:
            self.events.emit("capture.table-void", Severity.WARNING, f"{disk}: {why}", machine=self.machine)

        return tell

    def kill(self) -> None:
        """SIGKILL of the gateway; the guard ends its job a little later."""
        if self.running:
            assert self.gateway is not None
            self.died()
            self.gateway.kill()

    def died(self) -> None:
        """Called as the process dies."""
        self.replication = None
        capture: Any = self.fabric._find(self.machine).capture
        if capture is not None:
            self.world.at(GUARD_SECONDS * (0.5 + self.world.chance.random()), capture.close)

    def stop(self) -> None:
        """An orderly end, in the background; `running` tells when it is over."""
        gateway, shipper = self.gateway, self.shipper
        if gateway is None or not gateway.alive or shipper is None:
            return

        def work() -> None:
            with self._change:
                shipper.close()
                if self.replication is not None:
                    self.replication.stop()
                self.replication = None
            self.world.note("stopped", self.name)
            gateway.alive = False

        gateway.spawn(work, "stop")

    def power_cut(self) -> None:
        """The gateway's machine lost power: what was not synced of its cache may be torn."""
        self.kill()
        chance = self.world.chance
        for path in sorted((self.directory / "spool").rglob("*.seg")):
            kind = chance.random()
            if kind < 0.2:
                path.write_bytes(b"")
            elif kind < 0.4:
                path.unlink()
            elif kind < 0.6:
                data = path.read_bytes()
                path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        for path in sorted((self.directory / "spool").rglob("segments.log")):
            data = path.read_bytes()
            synced = data.rfind(b'\n"noted"') + 9 if b'\n"noted"' in data else 0
            path.write_bytes(data[: chance.randint(synced, len(data))] if synced <= len(data) else data)

    def lose_cache(self) -> None:
        """The cache volume is gone."""
        self.kill()
        shutil.rmtree(self.directory / "spool", ignore_errors=True)
        shutil.rmtree(self.directory / "subblocks", ignore_errors=True)

    # -- what an operator asks --------------------------------------------------------------------

    def in_gateway(self, what: str, work: Callable[[Replication], None]) -> None:
        """A command to the gateway, when one is there to take it."""
        replication, gateway = self.replication, self.gateway
        if replication is not None and gateway is not None and gateway.alive:
            self.world.note("command", self.name, what)
            gateway.spawn(lambda: work(replication), what)

    def take_point(self) -> None:
        """``points now``."""

        def work(replication: Replication) -> None:
            self.asked += 1
            try:
                taken = replication.take_point(seconds_max=30.0)
            except PointNotTaken:
                return
            self.given += 1
            if taken.number not in self.oracle.counted:
                raise RunFailed(f"J1: point {taken.number} was given and is not in the log")

        self.in_gateway("take point", work)

    def unprotect(self) -> None:
        """``unprotect``; everything of ours must be gone afterwards."""

        def work(replication: Replication) -> None:
            with self._change:
                if replication is not self.replication:
                    return
                self.protected = False
                self.replication = None
                replication.unprotect()
            assert self.shipper is not None
            left = self.fabric.open_source(self.machine).checkpoints()
            if left or self.shipper.shipments(self.machine):
                raise RunFailed(f"R2: unprotect left checkpoints {left} or shipments")
            self.world.note("unprotected", self.name)

        if self.protected:
            self.in_gateway("unprotect", work)

    def protect_again(self) -> None:
        """``protect``, after an `unprotect` that is over."""
        gateway = self.gateway
        if self.protected or self.replication is not None or gateway is None or not gateway.alive:
            return
        if self.shipper is None:
            return

        def work() -> None:
            with self._change:
                if self.replication is None and not self.protected:
                    self.protected = True
                    self.protect()

        self.world.note("command", self.name, "protect")
        gateway.spawn(work, "protect")
