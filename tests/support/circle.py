"""Two whole gateways in this process, each a source and a target, between which a machine goes to and fro."""

from __future__ import annotations

import contextlib
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from secondsite.base.units import MIB
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.fabrics.memory import MemoryFabric
from secondsite.fabrics.memory_machine import MemoryDisk, MemoryMachine
from secondsite.gateway.common.config import load_config
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import fencing
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.failover import (
    CommitFailover,
    FailoverStatus,
    HeldMachine,
    OldMachine,
    PlannedStop,
    StartFailover,
)
from secondsite.gateway.messages.gateway import FileIdentity, ProtectionStatus, ProtectRequest
from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState, ReverseStatus
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState, HeldState
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Machine, PowerState
from secondsite.model.reversals import reversed_onto
from secondsite.nbd.client import NbdClient
from support.exports import end_exports
from support.gateway_pair import A, B, Pair
from support.until import until

DISKS = {"vda": 4 * MIB, "vdb": MIB}
CHUNK = 64 * 1024


class CircleFabric(MemoryFabric):
    """A host whose machines lie in image files while they are off, and whose recovered machines work on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(chunk_bytes=CHUNK)
        self._images = directory
        directory.mkdir(parents=True)

    def image(self, machine: MachineId, disk: str) -> Path:
        return self._images / f"{machine}-{disk}.raw"

    def machines(self) -> list[Machine]:
        return [
            Machine(
                **{name: getattr(found, name) for name in found.__struct_fields__ if name != "disks"},
                disks=tuple(
                    type(disk)(
                        id=disk.id,
                        size_bytes=disk.size_bytes,
                        format="raw",
                        location=str(self.image(found.id, disk.id)),
                    )
                    for disk in found.disks
                ),
            )
            for found in super().machines()
        ]

    def add_machine(self, *args: object, **more: object) -> MachineId:
        machine = super().add_machine(*args, **more)  # type: ignore[arg-type]
        self._write_out(machine)
        return machine

    def set_power(self, machine: MachineId, power: PowerState) -> None:
        found = self._find(machine)
        with found.lock:
            if power is PowerState.OFF and found.power is not PowerState.OFF:
                self._write_out(machine)  # before: whoever sees it off reads them
            super().set_power(machine, power)

    def _write_out(self, machine: MachineId) -> None:
        for disk in self._find(machine).disks.values():
            written = self._images / f"{machine}-{disk.id}.{secrets.token_hex(4)}"
            written.write_bytes(disk.content())
            written.rename(self.image(machine, disk.id))  # several may switch it off at once

    def remove_machine(self, machine: MachineId, *, disks: bool) -> Sequence[str]:
        found = list(self._images.glob(f"{machine}-*.raw"))
        left = super().remove_machine(machine, disks=disks)
        for path in found if disks else ():
            path.unlink()
        return [str(path) for path in found] if left else []

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        for disk in spec.disks:
            image = self.image(self._identity_of(spec), disk.id)
            assert not image.exists(), "as an image of a machine that is there still"
        return super().start_recovered(spec)

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        spec = self._recovered[recovered.id][1] if recovered.id in self._recovered else None
        if spec is not None and recovered.id not in self._machines:
            disks = {}
            for exported in spec.disks:
                disk = disks[DiskId(exported.id)] = MemoryDisk(exported.id, exported.size_bytes, CHUNK)
                client = NbdClient.connect_unix(exported.socket_path, exported.export_name)
                data = bytearray(exported.size_bytes)
                with contextlib.closing(client):
                    client.read_into(0, memoryview(data))
                disk.write(0, memoryview(data))
                for number in [n for n, chunk in disk.chunks.items() if not any(chunk)]:
                    del disk.chunks[number]
            made = MemoryMachine(recovered.id, recovered.name, disks, agent=True, unprotectable=())
            with self._lock:
                self._machines[recovered.id] = made
            self._write_out(recovered.id)
        super().settle_recovered(recovered, autostart=autostart)


class Circle:
    """`root` is short: sockets lie below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pair = Pair(root)
        self.fabrics = {name: CircleFabric(root / name / "images") for name in (A, B)}
        self.ports = {name: _free_port() for name in (A, B)}
        self.gateways: dict[str, Gateway] = {}
        self.machine = self.fabrics[A].add_machine("shop", DISKS)
        for name in (A, B):
            self.start(name)

    # gateways

    def start(self, name: str) -> None:
        other = B if name == A else A
        url = f"https://127.0.0.1:{self.ports[other]}"
        self.pair.store = f"file://{self.root / name}/store"
        path = self.pair.config(name, listen=self.ports[name], peers={other: url})
        self.gateways[name] = Gateway(load_config(path), fabric=self.fabrics[name])
        self.gateways[name].start()

    def stop(self, name: str) -> None:
        gateway = self.gateways.pop(name, None)
        if gateway is not None:
            gateway.stop()

    def client(self, name: str) -> FailoverClient:
        return FailoverClient(self.root / name / "c.sock")

    def journal(self, name: str) -> Journal:
        return Journal(LocalStore(self.root / name / "store"), self.machine, self.pair.vault)

    # what people and guests do

    def write(self, at: str, offset: int, data: bytes, disk: str = "vda") -> None:
        assert self.fabrics[at].runs(self.machine), f"it does not run at {at}"
        self.fabrics[at].write(self.machine, disk, offset, data)

    def content(self, at: str, disk: str = "vda") -> bytes:
        return self.fabrics[at].content(self.machine, disk)

    def protect(self, at: str, *, wait: bool = True) -> ProtectionStatus:
        peer = B if at == A else A
        key_file = self.root / "safe" / "vault.key"
        seen = key_file.stat()
        with GatewayClient(self.root / at / "c.sock") as client:
            question = client.challenge()
            request = ProtectRequest(
                peer=peer,
                nonce=question.nonce,
                proof=self.pair.vault.prove(bytes.fromhex(question.nonce)).hex(),
                key_file=FileIdentity(path=str(key_file), device=seen.st_dev, inode=seen.st_ino),
                copy_frequency_seconds=1.0,
            )
            made = client.protect("shop", request)
            if wait:
                self.until(lambda: self.protection(at).last_point is not None, f"a point of {at}")
        return made

    def protection(self, at: str) -> ProtectionStatus:
        with self.client(at) as client:
            return client.status().protections[0]

    def take_point(self, at: str) -> int:
        with self.client(at) as client:
            return client.take_point("shop").number

    def stop_in_order(self, at: str) -> None:
        with self.client(at) as client:
            client.stop_in_order("shop", PlannedStop(operation=secrets.token_hex(16), seconds_max=60))
            self.until(lambda: client.planned_stop("shop").state == "Completed", "stopped")

    def fail_over(
        self, to: str, *, planned: bool = False, old: OldMachine | None = None, operation: str = ""
    ) -> FailoverStatus:
        source = B if to == A else A
        words = confirmations.stopped("shop", source) if planned else confirmations.taken_over("shop", source)
        request = StartFailover(
            operation=operation or secrets.token_hex(16),
            point="latest",
            confirm=words,
            kind=FailoverKind.PLANNED if planned else FailoverKind.UNPLANNED,
            old_machine=old,
        )
        with self.client(to) as client:
            client.start_failover("shop", request)
        return self.wait_failover(to, request.operation, FailoverState.COMPLETED)

    def commit(self, at: str, operation: str) -> FailoverStatus:
        with self.client(at) as client:
            client.commit_failover(operation, CommitFailover(confirm=confirmations.kept("shop")))
        self.wait_failover(at, operation, FailoverState.COMMITTED)
        self.until(lambda: self._failover(at, operation).points_deleted_at is not None, "deleted")
        return self._failover(at, operation)

    def _failover(self, at: str, operation: str) -> FailoverStatus:
        with self.client(at) as client:
            return client.failover(operation)

    def wait_failover(self, at: str, operation: str, wanted: FailoverState) -> FailoverStatus:
        def look() -> bool:
            status = self._failover(at, operation)
            assert status.error is None, status.error
            return status.state is wanted

        self.until(look, str(wanted))
        return self._failover(at, operation)

    def held(self, at: str) -> HeldMachine:
        with self.client(at) as client:
            [found] = client.held()
        return found

    def wait_held(self, at: str, state: HeldState = HeldState.HELD) -> None:
        def look() -> bool:
            with self.client(at) as client:
                return [found.state for found in client.held()] == [state]

        self.until(look, f"{state} at {at}")

    def reverse(self, at: str, operation: str = "", *, wait: bool = True) -> ReverseStatus:
        request = ReverseRequest(
            operation=operation or secrets.token_hex(16), confirm=reversed_onto("shop"), requested_by="tester"
        )
        with self.client(at) as client:
            status = client.reverse("shop", request)
        return self.wait_reverse(at, ReverseState.READY) if wait else status

    def reversal(self, at: str) -> ReverseStatus:
        with self.client(at) as client:
            return client.reversal("shop")

    def wait_reverse(self, at: str, wanted: ReverseState) -> ReverseStatus:
        def look() -> bool:
            status = self.reversal(at)
            assert status.error is None, status.error
            return status.state is wanted

        self.until(look, f"{wanted} at {at}")
        return self.reversal(at)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.evidence()}") from error

    def evidence(self) -> str:
        """What the gateways told last."""
        told = []
        for name in self.gateways:
            with self.client(name) as client:
                told += [f"{name}: {entry.event.code}: {entry.event.text}" for entry in client.events()[-25:]]
        return "\n".join(told)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def circle() -> Iterator[Circle]:
    """Both up; everything ended afterwards."""
    often = mock.patch.multiple(fencing, ASK_SECONDS=0.5, KEEP_SECONDS=0.2)
    with often, tempfile.TemporaryDirectory(prefix="ci") as name:  # short: sockets lie below it
        made = Circle(Path(name))
        try:
            yield made
        finally:
            for site in (A, B):
                made.stop(site)
            end_exports(Path(name))
