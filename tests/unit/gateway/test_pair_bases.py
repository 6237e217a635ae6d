"""Everything a target does, by its control socket, whether its journals stand on nothing, raw or qcow2."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.messages.gateway import ExportRequest, ProtectionState
from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover, TestFailoverState
from secondsite.gateway.messages.verdicts import VerificationState, VerifyRequest
from secondsite.gateway.recovery.rescue import Rescue
from secondsite.gateway.target.qcow2 import Qcow2Base
from secondsite.journal.chain import Journal
from secondsite.model.ids import MachineId
from secondsite.nbd.client import NbdClient
from support.bases import gone, using, wait_gone
from support.gateway_pair import B, Pair
from support.until import until

pytestmark = pytest.mark.timeout(240)

# The second one ends within a sub-block.
SIZES = {"vda": 4 * MIB, "vdb": 2 * MIB + 512}


@pytest.fixture(params=["", "raw", "qcow2"], ids=["no-base", "raw", "qcow2"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="gb") as name:  # short: sockets lie below it
        made = Pair(Path(name), bases=request.param)
        yield made
        made.stop_b()
        wait_gone(Path(name))


def read(client: GatewayClient, machine: str) -> dict[str, bytes]:
    """What the machine's export serves."""
    found = {}
    for disk in client.exports(machine)[0].disks:
        with NbdClient.connect_unix(disk.socket_path, disk.id) as nbd:
            found[str(disk.id)] = bytes(nbd.read(0, nbd.size_bytes))
    return found


def kill_hosts(pair: Pair, journal: Journal) -> None:
    for known in journal.state().bases:
        base = Qcow2Base(known.locator, read_only=True)
        number = base.host.process()
        assert number is not None, "the export reads through it"
        os.kill(number, signal.SIGKILL)
        gone(base.host)
        base.close()


def boot_and_clean_up(client: GatewayClient, machine: str, point: int) -> None:
    request = StartTestFailover(point=str(point), network="isolated", requested_by="tester")
    begun = client.start_test_failover(machine, request)
    passing = {TestFailoverState.INITIATED, TestFailoverState.CLEANUP_INITIATED}
    until(lambda: client.operation(begun.id).state not in passing, "the test failover ends")
    assert client.operation(begun.id).state is TestFailoverState.COMPLETED, client.operation(begun.id)
    client.clean_up(machine, CleanUp(notes="fine", cleaned_up_by="tester"))
    until(lambda: client.operation(begun.id).state not in passing, "the clean-up ends")
    assert client.operation(begun.id).state is TestFailoverState.CLEANUP_COMPLETED


def verify(client: GatewayClient, machine: str) -> None:
    client.verify(machine, VerifyRequest(all=True))
    until(
        lambda: client.verification(machine).state is not VerificationState.RUNNING, "the verification ends"
    )
    done = client.verification(machine)
    assert done.state is VerificationState.COMPLETED, done
    assert done.report is not None
    assert (done.report.lost, done.report.damaged) == ((), ()), done.report


def test_points_export_failover_verify_and_rescue(pair: Pair) -> None:
    fabric, other = MemoryFabric(), MemoryFabric()
    machine = MachineId(fabric.add_machine("shop", SIZES))
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    address = pair.start_b(fabric=other)
    a = pair.start_a(address, fabric)
    try:
        pair.protect("shop")
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
            rescue = Rescue(pair.store, pair.root / B / "vault.key")
            journal = Journal(rescue.store, machine, rescue.vault)
            if pair.bases:
                until(lambda: journal.state().promoted > 0, "the first point becomes the bases")
            assert {base.format for base in journal.state().bases} == ({pair.bases} if pair.bases else set())
            fabric.write(machine, "vdb", 4096, b"world" * 1000)
            content = {disk: fabric.content(machine, disk) for disk in SIZES}
            taken = client.take_point("shop").number
            client.unprotect("shop")
    finally:
        a.stop()
    with pair.client_b() as client:
        export = client.start_export(
            machine, ExportRequest(point=str(taken), socket_dir=str(pair.root / "sockets"))
        )
        assert read(client, machine) == content
    if pair.bases == "qcow2":
        assert len(using(pair.root)) == len(SIZES)
        kill_hosts(pair, journal)
    with pair.client_b() as client:
        assert read(client, machine) == content
    # guests stand on the export while the gateway is replaced
    pair.stop_b()
    if pair.bases == "qcow2":
        assert len(using(pair.root)) == len(SIZES)
    pair.start_b(address[1], fabric=other)
    with pair.client_b() as client:
        assert read(client, machine) == content
        client.end_export(machine, export.id)
        boot_and_clean_up(client, machine, taken)
        verify(client, machine)
    pair.stop_b()
    point = rescue.choose(machine, str(taken))
    with rescue.view(machine, point, {}, on_unpinned=lambda error: pytest.fail(str(error))) as view:
        assert {d: v.read(0, v.size_bytes) for d, v in view.disks.items()} == content
    rescue.store.close()
