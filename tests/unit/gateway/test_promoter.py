"""The first point becomes the base in the background, and replication goes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway import promoter as module
from secondsite.gateway.fingerprints import Fingerprints
from secondsite.gateway.promoter import Promoter, wanted
from secondsite.gateway.receive import GatewayReceiver, PeerRule
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.state import State
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId
from secondsite.model.points import Point
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Peer
from support.replica import ReplicaSource
from support.transfer import DISK, MACHINE, Events

PEER = Peer(name="gateway-a")


@dataclass
class Rig:
    source: ReplicaSource
    receiver: GatewayReceiver
    promoter: Promoter
    events: Events
    vault: VaultKey

    @property
    def journal(self) -> Journal:
        return self.receiver.journal(MACHINE)

    def read(self, number: int) -> bytes:
        keys = KeyRing(self.journal.store, MACHINE, self.vault)
        self.journal.pin(number, "a reader", "a test")
        try:
            with open_view(self.journal, number, keys, bases=self.base_of) as view:
                return view.disks[DISK].read(0, len(self.source.model))
        finally:
            self.journal.unpin("a reader")

    def base_of(self, disk: DiskId) -> BaseImage | None:
        known = self.journal.state().base(disk)
        return RawBase(Path(known.locator), read_only=True) if known else None


def _bases(journal: Journal, disk: DiskId) -> BaseImage | None:
    known = journal.state().base(disk)
    return RawBase(Path(known.locator), read_only=True) if known else None


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    events, vault, clock = Events(), VaultKey.create(), SystemClock()
    promoter = Promoter(tmp_path / "pool", vault=vault, clock=clock, events=events, keep_points=3)
    fingerprints = Fingerprints(
        tmp_path / "tables",
        vault=vault,
        bases_of=lambda journal: lambda disk: _bases(journal, disk),
        clock=clock,
        events=events,
    )

    def on_commit(journal: Journal, point: Point) -> None:
        fingerprints.committed(journal, point)
        promoter.committed(journal, point)

    receiver = GatewayReceiver(
        MemoryStore(),
        peers={PEER.name: PeerRule()},
        clock=clock,
        events=events,
        fingerprints=fingerprints.of,
        on_commit=on_commit,
    )
    source = ReplicaSource(MemoryLink(receiver, PEER), vault, size_bytes=4 * MIB)
    source.begin()
    yield Rig(source, receiver, promoter, events, vault)
    promoter.close()
    fingerprints.close()


def test_the_first_point_becomes_the_base_and_replication_goes_on(rig: Rig) -> None:
    first = rig.source.point()
    rig.events.wait_for("promote.done")
    state = rig.journal.state()
    assert state.promoted == first.number
    base = rig.base_of(DISK)
    assert base is not None
    found = bytearray(len(rig.source.model))
    base.read_into(0, memoryview(found))
    assert found == rig.source.model
    for _ in range(8):
        point = rig.source.point()
        assert point.disks[0].fingerprint == rig.source.fingerprint()
        assert rig.read(point.number) == rig.source.model
    assert "fingerprint.unknown" not in rig.events.codes()
    assert "promote.failed" not in rig.events.codes()


def test_a_table_is_made_again_from_base_and_journal(rig: Rig) -> None:
    for _ in range(6):
        rig.source.point()
    rig.events.wait_for("promote.done")
    # lose the table while the first points are in the base only
    fingerprints = rig.receiver._fingerprints
    assert fingerprints is not None
    tables = fingerprints.__self__._tables(rig.journal)  # type: ignore[attr-defined]
    tables._drop(DISK)
    assert rig.source.point().disks[0].fingerprint is None
    rig.events.wait_for("fingerprint.rebuilt")
    assert rig.source.point().disks[0].fingerprint == rig.source.fingerprint()
    assert "fingerprint.mismatch" not in rig.events.codes()


def test_without_room_nothing_is_begun(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_BYTES_MIN", 1 << 60)
    rig.source.point()
    assert "free" in rig.events.wait_for("promote.no-room")
    assert rig.journal.state().floor == 0


def test_what_is_promoted(rig: Rig) -> None:
    rig.source.point(1)
    some = rig.journal.points()[0]
    for floor, promoted, points, keep, expected in (
        (0, 0, [], None, None),
        (0, 0, [2], None, 2),
        (0, 0, [2, 3, 4], 1, 2),
        (2, 0, [2, 3], None, 2),
        (2, 2, [2, 3, 4], None, None),
        (2, 2, [2, 3, 4], 3, None),
        (2, 2, [2, 3, 4], 2, 3),
        (2, 2, [2, 3, 4, 5, 6], 1, 3),
        (5, 2, [5, 6], 9, 5),
    ):
        made = [msgspec.structs.replace(some, number=number) for number in points]
        assert wanted(State(machine=MACHINE, floor=floor, promoted=promoted), made, keep) == expected
