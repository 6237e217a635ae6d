"""Fingerprints counted on from changes equal those of the whole disk, whatever happens to the tables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import KIB, MIB
from secondsite.gateway.source.tables import DigestTable, Stamp
from secondsite.gateway.target import machinetables as module
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.journal.state import Pin
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import KeyId
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import CommittedPoint, Peer
from support.replica import ReplicaSource
from support.transfer import MACHINE, Events

PEER = Peer(name="gateway-a")
KEY = KeyId("ab" * 16)


@dataclass
class Target:
    directory: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    events: Events = field(default_factory=Events)
    vault: VaultKey = field(default_factory=VaultKey.create)
    running: Fingerprints | None = None

    def start(self) -> MemoryLink:
        """The receiver as after a (re)start."""
        self.running = Fingerprints(
            self.directory / "tables",
            vault=self.vault,
            bases_of=lambda journal: lambda disk: None,
            clock=SystemClock(),
            events=self.events,
        )
        receiver = GatewayReceiver(
            self.store,
            vault=None,
            peers={PEER.name: PeerRule()},
            clock=SystemClock(),
            events=self.events,
            fingerprints=self.running.of,
            on_commit=self.running.committed,
        )
        return MemoryLink(receiver, PEER)

    def stop(self) -> None:
        if self.running is not None:
            self.running.close()
            self.running = None


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path)
    yield target
    target.stop()


def _source(target: Target, size_bytes: int = 4 * MIB) -> ReplicaSource:
    source = ReplicaSource(target.start(), target.vault, size_bytes=size_bytes)
    source.begin()
    return source


def _of(point: CommittedPoint) -> str | None:
    return point.disks[0].fingerprint


def test_every_point_has_the_fingerprint_of_the_whole_disk(target: Target) -> None:
    source = _source(target)
    seen = set()
    for _ in range(8):
        assert _of(source.point()) == source.fingerprint()
        seen.add(source.fingerprint())
    assert len(seen) == 8
    source.point(0)
    assert _of(source.point(0)) == source.fingerprint()
    assert "fingerprint.unknown" not in target.events.codes()


def test_a_large_point_is_written_ahead_and_the_next_one_counts_on(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OVERLAY_SUB_BLOCKS_MAX", 10)
    source = _source(target)
    for count in (60, 1, 60, 60, 0, 2):
        assert _of(source.point(count)) == source.fingerprint()


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
def test_tables_survive_a_restart(target: Target, clean: bool) -> None:
    source = _source(target)
    source.point()
    if clean:
        target.stop()
    source.link = target.start()
    assert _of(source.point()) == source.fingerprint()
    assert "fingerprint.unknown" not in target.events.codes()


def test_a_table_of_another_boot_is_void_unless_it_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clean in (True, False):
        table = DigestTable.create(tmp_path / f"{clean}", Stamp(1 * MIB, KEY, number=3))
        if clean:
            table.close()
    monkeypatch.setattr("secondsite.gateway.source.tables.boot_id", lambda: b"another boot, yes"[:16])
    opened = DigestTable.open(tmp_path / "True")
    assert opened is not None
    assert opened.stamp.number == 3
    assert DigestTable.open(tmp_path / "False") is None


def test_a_damaged_header_is_void(tmp_path: Path) -> None:
    path = tmp_path / "table"
    DigestTable.create(path, Stamp(1 * MIB, KEY)).close()
    for position in range(0, 100, 9):
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        (tmp_path / "damaged").write_bytes(data)
        assert DigestTable.open(tmp_path / "damaged") is None
    assert DigestTable.open(path) is not None


def test_a_lost_table_costs_one_fingerprint_and_is_made_again(target: Target) -> None:
    source = _source(target)
    for _ in range(3):
        source.point()
    target.stop()
    for path in (target.directory / "tables").rglob("*.digests"):
        path.unlink()
    source.link = target.start()
    point = source.point()
    assert _of(point) is None
    target.events.wait_for("fingerprint.unknown")
    target.events.wait_for("fingerprint.rebuilt")
    assert _of(source.point()) == source.fingerprint()
    assert "fingerprint.mismatch" not in target.events.codes()


def test_making_tables_again_finds_content_that_does_not_fit_its_fingerprint(target: Target) -> None:
    source = _source(target)
    source.point()
    assert target.running is not None
    table = target.running._machines[MACHINE]._open["vda"]  # type: ignore[index]
    # a wrong sum in the table: the next manifest carries it, and reading the disk brings it to light
    table.set_stamp(Stamp(table.stamp.size_bytes, table.stamp.key, table.stamp.number, 0, (1, 2)))
    assert _of(source.point()) != source.fingerprint()
    receiver_journal = target.running._machines[MACHINE]._journal
    target.running.rebuild(receiver_journal)
    assert "reads as" in target.events.wait_for("fingerprint.mismatch")


def test_a_proposal_that_was_not_committed_leaves_no_trace(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(target)
    source.point()
    assert target.running is not None
    journal = target.running._machines[MACHINE]._journal
    for ahead in (False, True):
        monkeypatch.setattr(module, "OVERLAY_SUB_BLOCKS_MAX", 1 if ahead else 10**6)
        before = bytes(source.model)
        made = source.segments(source.writes(20))
        for one in made:
            source.link.send_segment(MACHINE, one.ref, one.data)
        assert target.running is not None
        target.running.of(journal)(source.proposal(made), journal.head())
        source.model[:] = before
        point = source.point()
        if _of(point) is None:  # the table was written ahead, so it had to be made again
            assert ahead
            target.events.wait_for("fingerprint.rebuilt")
            point = source.point()
        assert _of(point) == source.fingerprint()


def test_growing_and_shrinking_by_whole_sub_blocks(target: Target) -> None:
    source = _source(target, 1 * MIB)
    source.point()
    for size_bytes in (2 * MIB, 512 * KIB, 512 * KIB + 8 * KIB, 3 * MIB):
        source.model = source.model[:size_bytes] + bytearray(max(0, size_bytes - len(source.model)))
        assert _of(source.point()) == source.fingerprint()


def test_a_disk_that_ends_within_a_sub_block(target: Target) -> None:
    source = _source(target, 1 * MIB + 512)
    data = source.chance.randbytes(512)
    source.model[1 * MIB :] = data
    made = source.segments([*source.writes(10), (1 * MIB, data)])
    source.model[1 * MIB :] = data
    for one in made:
        source.link.send_segment(MACHINE, one.ref, one.data)
    assert _of(source.link.commit(source.proposal(made))) == source.fingerprint()
    source.model += bytearray(512)
    assert _of(source.point()) is None  # such a size voids the table
    target.events.wait_for("fingerprint.rebuilt")
    assert _of(source.point()) == source.fingerprint()


def test_a_new_data_key_makes_the_table_again(target: Target) -> None:
    source = _source(target)
    source.point()
    source.key = DiskKey(KeyId("cd" * 16), b"n" * 32)
    source.begin()
    # whatever was there before has digests of the old key; a view reads both
    assert _of(source.point()) is None


def test_a_segment_that_does_not_open_costs_the_fingerprint_only(target: Target) -> None:
    source = _source(target)
    source.point()
    made = source.maker.segment()  # a header and noise
    source.link.send_segment(MACHINE, made.ref, made.data)
    point = source.link.commit(source.proposal([made]))
    assert _of(point) is None
    assert "sealed with the key" in target.events.wait_for("fingerprint.unknown")


@pytest.mark.parametrize("end", [MIB, MIB + 512])
def test_a_disk_that_shrank_while_it_was_copied_ends_where_its_point_says(target: Target, end: int) -> None:
    """Slices from before hold blocks beyond the end; an end inside one of them leaves nothing to know."""
    source = _source(target)
    before = source.segments([(MIB - 4 * KIB, b"a" * 12 * KIB), (3 * MIB, b"b" * 64 * KIB)])
    source.model[MIB - 4 * KIB : end] = b"a" * (end - MIB + 4 * KIB)
    del source.model[end:]
    after = source.segments([(64 * KIB, b"c" * 4 * KIB)])
    source.model[64 * KIB : 68 * KIB] = b"c" * 4 * KIB
    for one in [*before, *after]:
        source.link.send_segment(MACHINE, one.ref, one.data)
    point = source.link.commit(source.proposal([*before, *after]))
    assert _of(point) == (source.fingerprint() if end == MIB else None)
    assert ("fingerprint.unknown" in target.events.codes()) == (end != MIB)


def test_a_clock_that_jumps_does_not_unpin_what_is_read_and_a_restart_takes_old_pins_away(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(target)
    source.point()
    assert target.running is not None
    journal = target.running._machines[MACHINE]._journal
    reading, pins = threading.Event(), list[Pin]()

    def read(*_: object, **__: object) -> None:
        pins.extend(journal.state().pins_at("9999-12-31T23:59:59+00:00"))
        reading.set()

    monkeypatch.setattr(target.running._machines[MACHINE], "fill", read)
    target.running.rebuild(journal)
    assert reading.wait(30)
    assert [pin.holder for pin in pins] == ["fingerprints"]
    target.stop()
    assert journal.state().pins == ()
    journal.pin(journal.points()[-1].number, "fingerprints", "of a process that was killed")
    journal.pin(journal.points()[-1].number, "export:x", "of another")
    target.start()
    assert target.running is not None
    target.running.let_go([journal])
    assert [pin.holder for pin in journal.state().pins] == ["export:x"]
