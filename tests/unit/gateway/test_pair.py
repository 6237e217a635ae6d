"""Two whole gateways in this process over mutual TLS: protect, points, unprotect, through the control API."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from support.gateway_pair import B, Pair
from support.until import until


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="gp") as name:  # short: sockets lie below it
        made = Pair(Path(name))
        yield made
        made.stop_b()


def test_protect_until_points_then_unprotect_leaves_nothing(pair: Pair) -> None:
    fabric = MemoryFabric()
    machine = fabric.add_machine("shop", {"vda": 4 * MIB, "vdb": 2 * MIB})
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    address = pair.start_b()
    a = pair.start_a(address, fabric)
    try:
        status = pair.protect("shop")
        assert status.state in {ProtectionState.ENABLING, ProtectionState.INITIAL_REPLICATION}
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
            fabric.write(machine, "vdb", 4096, b"world" * 1000)
            content = {disk: fabric.content(machine, disk) for disk in ("vda", "vdb")}
            taken = client.take_point("shop")
        store = LocalStore(pair.root / B / "store")
        journal = Journal(store, machine, None)
        view = open_view(journal, taken.number, KeyRing(store, machine, pair.vault), bases=lambda _: None)
        assert {d: v.read(0, v.size_bytes) for d, v in view.disks.items()} == content
        assert all(disk.fingerprint for disk in journal.point(taken.number).disks)
        with pair.client_a() as client:
            client.unprotect("shop")
            assert client.status().protections == ()
        assert fabric.open_source(machine).checkpoints() == []
        assert journal.points(), "points stay"
    finally:
        a.stop()


def test_a_gateway_without_a_fabric_of_its_own_has_where_to_put_sockets(pair: Pair) -> None:
    pair.start_b()
    sockets = pair.root / B / "state" / "sockets"
    assert sockets.is_dir()
    assert sockets.stat().st_mode & 0o777 == 0o700
