"""What a policy asks for, at two whole gateways over mutual TLS: limited, scheduled, changed as they run."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import KIB, MIB
from secondsite.cli.gateway.status import _protection_row
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportState, SeedImportRequest
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.policies import BandwidthWindow, FirstCopyStart, ReplicationPolicy
from secondsite.transfer.desired import WantedReplica
from support.gateway_pair import B, Pair
from support.until import until

CLOCK = SystemClock()
RATE = 64_000.0
ALL_DAY = BandwidthWindow(from_="00:00", until="00:00", bytes_per_second=RATE)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="gp") as name:  # short: sockets lie below it
        made = Pair(Path(name))
        yield made
        made.stop_b()


def wanted(gateway: Gateway, machine: MachineId, policy: ReplicationPolicy) -> None:
    """As a server would say it."""

    def change(now: Protection | None) -> Protection:
        before = now or Protection(machine=machine, name="shop", peer=B, item="item-1")
        return msgspec.structs.replace(before, policy=policy, policy_id="gold", policy_name="Gold")

    assert gateway.protections is not None
    gateway.protections.put(machine, change)


def test_a_limit_holds_from_now_on_without_a_new_start(pair: Pair) -> None:
    fabric, chance = MemoryFabric(), random.Random(1)
    machine = fabric.add_machine("shop", {"vda": 4 * MIB})
    a = pair.start_a(pair.start_b(), fabric)
    try:
        wanted(a, machine, ReplicationPolicy(copy_frequency_seconds=3600))
        assert a.protections is not None
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
            first = client.take_point("shop")
            running = a.protections.handles.running[machine]
            wanted(a, machine, ReplicationPolicy(copy_frequency_seconds=3600, bandwidth=(ALL_DAY,)))
            [limited] = client.status().protections
            assert (limited.limit_bytes_per_second, limited.policy_name) == (RATE, "Gold")
            assert "sends at most 62.5 KiB/s now, by its policy" in str(_protection_row(limited)[-1])
            fabric.write(machine, "vda", 0, chance.randbytes(256 * KIB))
            begun = CLOCK.monotonic()
            client.take_point("shop")
            took = CLOCK.monotonic() - begun
            assert took >= 256 * KIB / RATE - 1.5, "it left faster than it may"
            wanted(a, machine, ReplicationPolicy(copy_frequency_seconds=3600))
            last = client.take_point("shop")
            codes = [event.code for _, event in a.events.since(0, 1000)]
            texts = [event.text for _, event in a.events.since(0, 1000)]
            [shown] = client.status().protections
        assert last.number == first.number + 2, (
            "points follow each other: nothing was copied or claimed again"
        )
        assert a.protections.handles.running[machine] is running
        assert codes.count("bandwidth.changed") == 2
        assert any("of the policy Gold (1 machines) at most 62.5 KiB a second" in text for text in texts)
        assert shown.epoch == 1
    finally:
        a.stop()


def test_a_first_copy_waits_over_a_restart_until_somebody_resumes_it(pair: Pair) -> None:
    fabric = MemoryFabric()
    machine = fabric.add_machine("shop", {"vda": MIB})
    address = pair.start_b()
    a = pair.start_a(address, fabric)
    try:
        hour = (CLOCK.utc().astimezone().hour + 12) % 24
        policy = ReplicationPolicy(first_copy=FirstCopyStart(mode="scheduled", at=f"{hour:02}:00"))
        wanted(a, machine, policy)
        with pair.client_a() as client:
            until(lambda: "waits until" in client.status().protections[0].note, "it waits")
            said = client.status().protections[0].note
        a.stop()
        a = pair.start_a(address, fabric)
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].note == said, "it waits for the same moment")
            [shown] = client.status().protections
            assert (shown.state, shown.health.value) == (ProtectionState.ENABLING, "Normal")
            client.resume("shop", by="maria")
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
            client.unprotect("shop")
        assert list((pair.root / "gateway-a" / "state" / "first-copies").iterdir()) == []
    finally:
        a.stop()


def test_a_server_says_what_stays_of_a_replica(pair: Pair) -> None:
    fabric = MemoryFabric()
    machine = fabric.add_machine("shop", {"vda": MIB})
    a = pair.start_a(pair.start_b(), fabric)
    try:
        wanted(a, machine, ReplicationPolicy())
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
        assert pair.b is not None
        assert pair.b.parts is not None
        desired = pair.b.parts.desired
        kept = WantedReplica(
            item="i", revision=1, machine=machine, name="shop", source="gateway-a", retention="latest+4",
            policy_name="Gold",
        )  # fmt: skip
        with pair.client_b() as client:
            before = client.retention(machine)
            desired.change(lambda now: dataclasses.replace(now, replicas={machine: kept}))
            now = client.retention(machine)
            shown = client.status().replicas[0].retention
            trial = client.retention(machine, "latest")
        assert (before.policy[:11], before.source) == ("every point", "this gateway's configuration")
        assert (now.policy, now.source) == ("one every 1 h for 4 h", "the server's policy Gold")
        assert shown == now.policy
        assert (trial.trial, trial.source) == (True, "")
    finally:
        a.stop()


def test_media_bring_a_first_copy_that_waits_for_them(pair: Pair) -> None:
    fabric, chance = MemoryFabric(), random.Random(1)
    machine = fabric.add_machine("shop", {"vda": 2 * MIB})
    fabric.write(machine, "vda", 0, chance.randbytes(MIB))
    media = pair.root / "media"
    media.mkdir()
    a = pair.start_a(pair.start_b(), fabric)
    try:
        wanted(a, machine, ReplicationPolicy(first_copy=FirstCopyStart(mode="offline")))
        with pair.client_a() as client, pair.client_b() as target:
            until(lambda: "waits for media" in client.status().protections[0].note, "it waits")
            assert client.status().protections[0].total_sent_bytes == 0
            client.export_seed("shop", SeedExportRequest(directory=str(media), anywhere=True))
            until(lambda: client.seed_export("shop").state is SeedExportState.EXPORTED, "the export")
            target.import_seed(SeedImportRequest(directory=str(media)))
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
            number = client.take_point("shop").number
            assert client.status().protections[0].total_sent_bytes < MIB // 4, "it travelled on the media"
        store = LocalStore(pair.root / B / "store")
        view = open_view(
            Journal(store, machine, None), number, KeyRing(store, machine, pair.vault), bases=lambda _: None
        )
        shown = view.disks[DiskId("vda")]
        assert shown.read(0, shown.size_bytes) == fabric.content(machine, "vda")
    finally:
        a.stop()
