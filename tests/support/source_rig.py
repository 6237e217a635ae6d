"""A source side over the memory fabric, sending to a real receiver; the view of each point is compared."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.units import GIB, KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.source.cycle import Bench, Furnished
from secondsite.gateway.source.deepverify import DeepVerifier
from secondsite.gateway.source.orders import Orders
from secondsite.gateway.source.pace import Policy
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.status import Board
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.gateway.target.digestservice import DigestService
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, KeyRing, VaultKey, encode_wrapped
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.view import open_view
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import Point
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Link, Peer
from secondsite.transfer.retry import RetryPolicy
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool

US = "gateway-a"
WAIT_SECONDS = 60.0


class Rig:
    """One machine with two disks, one target. `open` starts a source process's worth of objects."""

    def __init__(
        self,
        directory: Path,
        *,
        disks: dict[str, int] | None = None,
        limit_bytes: int = GIB,
        clock: Clock | None = None,
        link: Callable[[GatewayReceiver], Link] | None = None,
    ) -> None:
        self.directory = directory
        self.clock: Clock = clock or SystemClock()
        self.events = EventLog(self.clock)
        self.fabric = MemoryFabric(clock=self.clock)
        self.machine = self.fabric.add_machine("shop", disks or {"vda": 8 * MIB, "vdb": 4 * MIB})
        self.store = MemoryStore()
        self.vault = VaultKey.create()
        self.fingerprints = Fingerprints(
            directory / "fingerprints",
            vault=self.vault,
            bases_of=lambda journal: lambda disk: None,
            clock=self.clock,
            events=self.events,
        )
        self.receiver = GatewayReceiver(
            self.store,
            vault=None,
            peers={US: PeerRule()},
            clock=self.clock,
            events=self.events,
            fingerprints=self.fingerprints.of,
            on_commit=self.fingerprints.committed,
            digests=DigestService(
                self.fingerprints,
                vault=self.vault,
                bases_of=lambda journal: lambda disk: None,
                clock=self.clock,
            ),
        )
        self.memory_link = MemoryLink(self.receiver, Peer(name=US))
        self.link = link(self.receiver) if link is not None else self.memory_link
        self.limit_bytes = limit_bytes
        self.keys: dict[DiskId, DiskKey] = {}
        self.wrapped: dict[KeyId, bytes] = {}
        for disk in self.fabric.open_source(self.machine).machine.disks:
            self._key(disk.id)
        self.rolling_days: float | None = None
        self.orders = Orders()
        self.left_out: tuple[DiskId, ...] = ()
        self.shipper: LinkShipper
        self.tables: dict[DiskId, SubBlockTable]
        self.replication: Replication | None = None
        self.chance = random.Random(7)

    def open(self, *, frequency_seconds: float = 0.05, start: bool = True) -> Replication:
        spool = Spool(
            self.directory / "spool",
            limit_bytes=self.limit_bytes,
            identity=self.directory / "cache-id",
            events=self.events,
        )
        self.shipper = LinkShipper(
            self.link,
            spool,
            clock=self.clock,
            chance=random.Random(3),
            events=self.events,
            spill_seconds=0.05,
            policy=RetryPolicy(first_seconds=0.01, seconds_max=0.05),
        )
        self.tables = {disk: self._table(disk) for disk in self.keys}
        board = Board(
            self.machine,
            "shop",
            "gateway-b",
            frequency_seconds=frequency_seconds,
            clock=self.clock,
            events=self.events,
        )
        bench = Bench(
            machine=self.machine,
            name="shop",
            source=self.fabric.open_source(self.machine, left_out=self.left_out, taken=True),
            shipper=self.shipper,
            vault=self.vault,
            keys=dict(self.keys),
            tables=self.tables,
            clock=self.clock,
            events=self.events,
            furnish=self._furnish,
        )
        self.verifier = bench.beside = DeepVerifier(
            self.machine,
            "shop",
            self.keys,
            self.link,
            state_path=self.directory / "verify.json",
            clock=self.clock,
            events=self.events,
            rolling_days=self.rolling_days,
            slice_bytes=MIB,
        )
        self.replication = Replication(
            bench,
            us=US,
            link=self.link,
            policy=Policy(copy_frequency_seconds=frequency_seconds),
            wrapped_keys=self.wrapped,
            board=board,
            orders=self.orders,
        )
        self.verifier.hurry = self.replication.hurry
        self.verifier.heal_with(bench.mending)
        if start:
            self.replication.start()
        return self.replication

    def _key(self, disk: DiskId) -> DiskKey:
        if disk not in self.keys:
            key = DiskKey.create()
            self.keys[disk] = key
            self.wrapped[key.id] = encode_wrapped(self.vault, self.machine, disk, key)
        return self.keys[disk]

    def _table(self, disk: DiskId) -> SubBlockTable:
        path = self.directory / "subblocks" / f"{disk}.table"
        return SubBlockTable(path, self.machine, disk, on_void=self._void(disk))

    def _furnish(self, disk: DiskId) -> Furnished:
        key = self._key(disk)
        return Furnished(key=key, wrapped={key.id: self.wrapped[key.id]}, table=self._table(disk))

    def _void(self, disk: DiskId) -> Callable[[str], None]:
        def tell(why: str) -> None:
            self.events.emit("capture.table-void", Severity.WARNING, f"{disk}: {why}", machine=self.machine)

        return tell

    def close(self) -> None:
        if self.replication is not None:
            self.shipper.close()
            self.replication.stop()
            self.replication = None

    @property
    def journal(self) -> Journal:
        return Journal(self.store, self.machine, None)

    def points(self) -> list[Point]:
        return self.journal.points()

    def view(self, number: int) -> dict[str, bytes]:
        view = open_view(
            self.journal, number, KeyRing(self.store, self.machine, self.vault), bases=lambda _: None
        )
        return {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}

    def content(self) -> dict[str, bytes]:
        source = self.fabric.open_source(self.machine, taken=True)
        refused = self.fabric._find(self.machine).refused
        disks = [disk.id for disk in source.machine.disks if disk.id not in refused]
        return {disk: self.fabric.content(self.machine, disk) for disk in disks}

    def codes(self) -> list[str]:
        return [event.code for _, event in self.events.since(0, 100_000)]

    def texts(self) -> str:
        return "\n".join(f"{event.code}: {event.text}" for _, event in self.events.since(0, 100_000))

    def until(self, condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        never = threading.Event()
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, f"{what} did not happen:\n{self.texts()}"
            self.clock.wait(never, 0.01)

    def scribble(self, count: int = 20) -> None:
        """Writes of the guest all over its disks."""
        for _ in range(count):
            disk = self.chance.choice(list(self.content()))
            size = len(self.fabric.content(self.machine, disk))
            length = self.chance.choice([512, 4 * KIB, 20 * KIB, 70_000])
            offset = self.chance.randrange((size - length) // 512) * 512
            filler = self.chance.choice([self.chance.randbytes(length), bytes(length), b"abcd" * length])
            self.fabric.write(self.machine, disk, offset, filler[:length])
