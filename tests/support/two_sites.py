"""Two whole gateways in this process, each with a host of its own, between which a machine fails over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import fencing
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.failover import FailoverStatus, StartFailover
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model.failover import FailoverState, HeldState
from secondsite.model.ids import MachineId
from secondsite.nbd.client import NbdClient
from support.exports import end_exports
from support.gateway_pair import A, B, Pair
from support.until import until

OPERATION = "0123456789abcdef" * 2
SURE = f"shop may still run at {A}"
LOST = "what shop wrote here is lost"
KEPT = "shop stays here and has no other point to turn to"


@dataclass
class Two:
    """Site A with a machine and its gateway, site B with a gateway and a host of its own."""

    pair: Pair
    a_fabric: MemoryFabric = field(default_factory=MemoryFabric)
    b_fabric: MemoryFabric = field(default_factory=MemoryFabric)
    a: Gateway | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.machine: MachineId = self.a_fabric.add_machine("shop", {"vda": 2 * MIB, "vdb": MIB})
        self.start_b()
        self.start_a()

    def start_a(self) -> None:
        self.a = self.pair.start_a(("127.0.0.1", self.port), self.a_fabric)

    def stop_a(self) -> None:
        if self.a is not None:
            self.a.stop()
            self.a = None

    def start_b(self) -> None:
        self.port = self.pair.start_b(self.port, self.b_fabric)[1]

    def end_exports(self) -> None:
        """End the processes that serve points at B, as a restart of its host does."""
        end_exports(self.pair.root)

    def at_a(self) -> FailoverClient:
        return FailoverClient(self.pair.root / A / "c.sock")

    def at_b(self) -> FailoverClient:
        return FailoverClient(self.pair.root / B / "c.sock")

    @property
    def journal(self) -> Journal:
        return Journal(LocalStore(self.pair.root / B / "store"), self.machine, self.pair.vault)

    def protect(self) -> None:
        self.pair.protect("shop")
        with self.at_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")

    def take_point(self, content: bytes) -> int:
        self.a_fabric.write(self.machine, "vda", 64 * 1024, content)
        with self.at_a() as client:
            return client.take_point("shop").number

    def ended(self, wanted: FailoverState, operation: str = OPERATION) -> FailoverStatus:
        with self.at_b() as client:

            def look() -> bool:
                status = client.failover(operation)
                assert status.error is None, status.error
                return status.state is wanted

            until(look, f"{wanted}")
            return client.failover(operation)

    def start(self, point: str = "latest", confirm: str = SURE, operation: str = OPERATION) -> FailoverStatus:
        with self.at_b() as client:
            request = StartFailover(operation=operation, point=point, confirm=confirm, requested_by="tester")
            return client.start_failover("shop", request)

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """What the recovered machine's disk reads beneath its own writes."""
        [recovered] = self.b_fabric.recovered()
        found = next(d for d in self.b_fabric.recovered_spec(recovered).disks if d.id == disk)
        client = NbdClient.connect_unix(found.socket_path, found.export_name)
        try:
            data = bytearray(length)
            client.read_into(offset, memoryview(data))
            return bytes(data)
        finally:
            client.close()

    def wait_held(self, state: HeldState = HeldState.HELD) -> None:
        with self.at_a() as client:
            # isolated, or let go again, a moment after it is noted
            wanted = [(state, state is HeldState.HELD)]
            until(
                lambda: [(held.state, held.isolated_at is not None) for held in client.held()] == wanted,
                f"{state}",
            )


@contextmanager
def two_sites() -> Iterator[Two]:
    """Both up and the machine protected; everything ended afterwards."""
    # what a gateway does every few seconds: often enough here
    often = mock.patch.multiple(fencing, ASK_SECONDS=0.5, KEEP_SECONDS=0.2)
    with often, tempfile.TemporaryDirectory(prefix="fo") as name:  # short: sockets lie below it
        pair = Pair(Path(name))
        made = Two(pair)
        try:
            made.protect()
            yield made
        finally:
            made.stop_a()
            pair.stop_b()
            made.end_exports()
