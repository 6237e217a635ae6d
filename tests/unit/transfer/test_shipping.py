"""Shipments over a link in memory: kept up with, cut, full, restarted, refused."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.names import segment_name
from secondsite.journal.store import StoreFull
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.points import SegmentRef
from secondsite.transfer.errors import CacheFull, PeerNotAllowed, ShipmentLost, TransferCancelled
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Peer, error_code
from secondsite.transfer.retry import RetryPolicy
from secondsite.transfer.sender import LinkShipper, _Shipment
from secondsite.transfer.spool import Batch, Spool
from support.transfer import MACHINE, Events, Made, Maker

PEER = Peer(name="gateway-a")
QUICK = RetryPolicy(first_seconds=0.01, seconds_max=0.05)


@dataclass
class Site:
    """A target in memory and, at the source, directories that survive a restart."""

    directory: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    events: Events = field(default_factory=Events)
    maker: Maker = field(default_factory=Maker)
    limit_bytes: int = 8 * MIB
    memory_bytes_max: int = 2 * MIB
    shippers: list[LinkShipper] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.receiver = GatewayReceiver(
            self.store, vault=None, peers={PEER.name: PeerRule()}, clock=SystemClock(), events=self.events
        )
        self.link = MemoryLink(self.receiver, PEER)
        self.maker.claim(self.link)

    def spool(self) -> Spool:
        return Spool(
            self.directory / "cache",
            limit_bytes=self.limit_bytes,
            identity=self.directory / "cache.known",
            events=self.events,
        )

    def start(self) -> LinkShipper:
        shipper = LinkShipper(
            self.link,
            self.spool(),
            clock=SystemClock(),
            chance=random.Random(1),
            events=self.events,
            memory_bytes_max=self.memory_bytes_max,
            spill_seconds=0.05,
            policy=QUICK,
        )
        self.shippers.append(shipper)
        return shipper

    def holds(self, made: Made) -> bool:
        try:
            key = segment_name(MACHINE, made.ref.epoch, made.ref.disk, made.ref.id)
            return self.store.get(key, size_bytes_max=10**9) == made.data
        except SecondsiteError:
            return False

    def cached(self) -> list[str]:
        return sorted(p.name for p in (self.directory / "cache").rglob("*.seg"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for shipper in site.shippers:
        shipper.close()


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    tick, clock = threading.Event(), SystemClock()
    end = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < end, "the condition did not come true"
        clock.wait(tick, 0.005)


def test_a_link_that_keeps_up_leaves_the_cache_untouched(site: Site) -> None:
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(12)]
    for one in made:
        shipment.add(one.ref, one.data, wait=True)
        assert site.cached() == []
    shipment.seal(site.maker.proposal(*made))
    point = shipment.commit()
    assert point.number == 2
    assert all(site.holds(one) for one in made)
    assert shipper.shipments(MACHINE) == []
    assert shipper.sent_bytes == 12 * MIB
    assert shipper.queued_bytes == 0


def test_a_cut_link_fills_memory_then_the_cache_then_says_so(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    added: list[Made] = []

    def fill() -> None:
        for _ in range(20):
            one = site.maker.segment(MIB)
            shipment.add(one.ref, one.data)
            added.append(one)

    with pytest.raises(CacheFull) as caught:
        fill()
    assert len(added) == 10  # 2 in memory, 8 in the cache
    assert "8.0 MiB" in str(caught.value)
    assert not shipper.has_room(1)
    with pytest.raises(CacheFull):
        shipper.begin(MACHINE, 1)
    site.link.heal()
    _until(lambda: shipper.queued_bytes == 0)
    assert shipper.has_room(8 * MIB)
    shipment.seal(site.maker.proposal(*added))
    shipment.commit()
    assert all(site.holds(one) for one in added)
    assert "ship.link-trouble" in site.events.codes()
    assert "ship.link-back" in site.events.codes()


def test_waiting_for_room_ends_when_the_link_is_back_or_somebody_cancels(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(14)]
    cancel, done = threading.Event(), threading.Event()

    def add_all() -> None:
        for one in made:
            shipment.add(one.ref, one.data, wait=True, cancel=cancel)
        done.set()

    thread = threading.Thread(target=add_all)
    thread.start()
    _until(lambda: len(site.cached()) == 8)
    assert not done.is_set()
    site.link.heal()
    assert done.wait(20)
    thread.join()
    site.link.cut()
    _until(lambda: shipper.queued_bytes == 0 or not shipper.link_is_up)
    cancel.set()
    with pytest.raises(TransferCancelled):
        shipment.add(site.maker.segment().ref, b"", wait=True, cancel=cancel)


def test_a_sealed_shipment_survives_a_restart_and_is_committed(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(3)]
    for one in made:
        shipment.add(one.ref, one.data)
    proposal = site.maker.proposal(*made)
    shipment.seal(proposal)
    assert len(site.cached()) == 3
    shipper.close()
    site.link.heal()
    (again,) = site.start().shipments(MACHINE)
    assert again.proposal == proposal
    assert again.refs == proposal.segments
    assert again.commit().nonce == proposal.nonce
    assert all(site.holds(one) for one in made)
    assert site.cached() == []


def test_an_open_shipment_keeps_what_its_note_says(site: Site) -> None:
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    first = [site.maker.segment(MIB) for _ in range(2)]
    for one in first:
        shipment.add(one.ref, one.data)
    shipment.set_note(b"slices 0..1")
    site.link.cut()
    late = site.maker.segment(MIB)
    shipment.add(late.ref, late.data)  # only in memory: lost with the process
    shipper.close()
    site.link.heal()
    restarted = site.start()
    (again,) = restarted.shipments(MACHINE)
    assert again.proposal is None
    assert again.note == b"slices 0..1"
    assert set(again.refs) >= {one.ref for one in first}
    assert late.ref not in again.refs
    more = site.maker.segment(MIB)
    again.add(more.ref, more.data)
    again.seal(site.maker.proposal(*first, more))
    again.commit()
    assert again.refs == tuple(one.ref for one in (*first, more))


def test_a_lost_answer_to_a_commit_does_not_commit_twice(site: Site) -> None:
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = site.maker.segment()
    shipment.add(made.ref, made.data)
    proposal = site.maker.proposal(made)
    shipment.seal(proposal)
    site.receiver.commit(PEER, proposal)  # what a commit with a lost answer leaves behind
    assert shipment.commit().number == 2
    assert len(site.receiver.journal(MACHINE).points()) == 1


def test_a_refusal_for_good_ends_the_shipment_and_not_the_others(site: Site) -> None:
    shipper = site.start()
    stale = shipper.begin(MACHINE, 1)
    made = site.maker.segment()
    stale.add(made.ref, made.data)
    stale.seal(site.maker.proposal(made))
    journal = site.receiver.journal(MACHINE)
    journal.claim(
        name="web-1", claimant=PEER.name, reason="resync", clock=SystemClock(), expected=journal.head()
    )
    with pytest.raises(SecondsiteError) as caught:
        stale.commit()
    assert error_code(caught.value) == "journal.epoch-superseded"
    assert shipper.shipments(MACHINE) == [stale]
    stale.discard()
    site.receiver.head(PEER, MACHINE)
    fresh = shipper.begin(MACHINE, 2)
    other = site.maker.segment(epoch=2)
    fresh.add(other.ref, other.data)
    fresh.seal(site.maker.proposal(other, epoch=2))
    assert fresh.commit().epoch == 2
    assert site.cached() == []


def test_a_target_that_lost_segments_gets_them_again_or_the_shipment_is_lost(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(2)]
    for one in made:
        shipment.add(one.ref, one.data)
    shipment.seal(site.maker.proposal(*made))  # now they are in the cache
    site.link.heal()
    _until(lambda: shipper.queued_bytes == 0)
    key = segment_name(MACHINE, 1, made[0].ref.disk, made[0].ref.id)
    site.store.delete(key)
    assert shipment.commit().number == 2
    assert site.holds(made[0])

    direct = shipper.begin(MACHINE, 1)
    site.maker.parent = None
    gone = site.maker.segment(MIB)
    direct.add(gone.ref, gone.data)
    direct.seal(site.maker.proposal(gone))  # went straight from memory
    site.store.delete(segment_name(MACHINE, 1, gone.ref.disk, gone.ref.id))
    with pytest.raises(ShipmentLost):
        direct.commit()


def test_a_full_target_is_waited_for(site: Site) -> None:
    full = threading.Event()
    full.set()
    real = site.store.stage

    def stage(key: str) -> object:
        if full.is_set():
            raise StoreFull(store="memory", key=key)
        return real(key)

    site.store.stage = stage  # type: ignore[method-assign, assignment]
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = site.maker.segment()
    shipment.add(made.ref, made.data)
    assert "no room" in site.events.wait_for("ship.link-trouble")
    full.clear()
    shipment.seal(site.maker.proposal(made))
    assert shipment.commit().number == 2


def test_closing_ends_every_wait(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = site.maker.segment()
    shipment.add(made.ref, made.data)
    shipment.seal(site.maker.proposal(made))
    outcome: list[BaseException] = []

    def commit() -> None:
        try:
            shipment.commit(threading.Event())
        except SecondsiteError as error:
            outcome.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    site.events.wait_for("ship.link-trouble")
    shipper.close()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(outcome[0], TransferCancelled)


def test_a_cache_volume_that_was_replaced_is_recognised(site: Site) -> None:
    site.start().close()
    assert not site.spool().lost
    cache = site.directory / "cache"
    cache.rename(site.directory / "old")
    cache.mkdir()
    spool = site.spool()
    assert spool.lost
    assert "spool.lost" in site.events.codes()
    assert spool.batches() == []
    assert not site.spool().lost


def test_damage_in_the_cache_is_found_before_it_is_sent(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = site.maker.segment(MIB)
    shipment.add(made.ref, made.data)
    shipment.seal(site.maker.proposal(made))
    shipper.close()
    (path,) = (site.directory / "cache").rglob("*.seg")
    damaged = bytearray(made.data)
    damaged[4711] ^= 0x10
    path.write_bytes(damaged)
    site.link.heal()
    (again,) = site.start().shipments(MACHINE)
    with pytest.raises(ShipmentLost):
        again.commit()
    again.discard()
    assert not site.holds(made)
    assert site.cached() == []


@pytest.mark.parametrize("what", ["truncated", "gone"])
def test_a_sealed_shipment_with_a_hole_is_dropped_with_an_event(site: Site, what: str) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(2)]
    for one in made:
        shipment.add(one.ref, one.data)
    shipment.seal(site.maker.proposal(*made))
    shipper.close()
    path = next((site.directory / "cache").rglob(f"{made[1].ref.id}.seg"))
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(made[1].data[:-1])
    spool = site.spool()
    assert spool.batches() == []
    assert spool.used_bytes == 0
    assert "spool.shipment-lost" in site.events.codes()
    assert site.cached() == []


def test_a_torn_last_line_of_the_log_costs_only_its_segment(site: Site) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(4)]
    for one in made:
        shipment.add(one.ref, one.data)
    shipper.close()
    kept = len(site.cached())
    assert kept == 2
    (log,) = (site.directory / "cache").rglob("segments.log")
    log.write_bytes(log.read_bytes()[:-5])
    (batch,) = site.spool().batches()
    assert len(batch.entries()) == kept - 1
    assert len(site.cached()) == kept - 1


@pytest.mark.parametrize("what", ["truncated", "gone"])
def test_an_open_shipment_that_lost_what_its_note_speaks_of_is_dropped(site: Site, what: str) -> None:
    """A power cut may take unsynced bytes: the copy would go on after a slice that is not whole."""
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(2)]
    for one in made:
        shipment.add(one.ref, one.data)
    shipment.set_note(b"slices 0..1")
    late = [site.maker.segment(MIB) for _ in range(3)]
    for one in late:
        shipment.add(one.ref, one.data)  # one of them goes to the cache
    shipper.close()
    for one in late:
        for path in (site.directory / "cache").rglob(f"{one.ref.id}.seg"):
            path.unlink()
    (batch,) = site.spool().batches()
    assert set(batch.entries().values()) == {one.ref for one in made}, "what came after the note may go"
    path = next((site.directory / "cache").rglob(f"{made[0].ref.id}.seg"))
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    spool = site.spool()
    assert spool.batches() == []
    assert spool.used_bytes == 0
    assert "spool.shipment-lost" in site.events.codes()


@pytest.mark.parametrize("short", [False, True])
def test_an_acknowledgement_the_full_cache_could_not_note_is_noted_before_the_note(
    site: Site, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = site.maker.segment(MIB)
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if short:
            return write(fd, data[:7])
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("secondsite.transfer.spool.os.write", full)
    shipment.add(made.ref, made.data)
    _until(lambda: site.holds(made) and shipper.queued_bytes == 0)
    with pytest.raises(CacheFull):
        shipment.set_note(b"slice 0")
    monkeypatch.undo()
    shipment.set_note(b"slice 0")
    shipper.close()
    (batch,) = site.spool().batches()
    assert list(batch.entries().values()) == [made.ref]


def test_a_note_is_not_kept_over_a_segment_refused_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.link.cut()
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    made = [site.maker.segment(MIB) for _ in range(2)]
    for one in made:
        shipment.add(one.ref, one.data)
    assert isinstance(shipment, _Shipment)
    second = shipment.waiting[1]
    keep = Batch.keep

    def refused_meanwhile(batch: Batch, order: int, ref: SegmentRef, data: bytes) -> None:
        keep(batch, order, ref, data)
        shipper._failed(second, PeerNotAllowed(peer="b", machine=MACHINE, why="its list was changed"))

    monkeypatch.setattr(Batch, "keep", refused_meanwhile)
    with pytest.raises(PeerNotAllowed):
        shipment.set_note(b"slices 0..1")
    shipper.close()
    (batch,) = site.spool().batches()
    assert batch.note == b""


def test_an_open_shipment_refused_for_good_is_gone_on_with_once_it_is_allowed(site: Site) -> None:
    shipper = site.start()
    shipment = shipper.begin(MACHINE, 1)
    first = site.maker.segment(MIB)
    shipment.add(first.ref, first.data)
    shipment.set_note(b"slice 0")
    site.receiver.set_peers({})
    late = site.maker.segment(MIB)
    shipment.add(late.ref, late.data)
    _until(lambda: shipper.queued_bytes == 0)
    with pytest.raises(SecondsiteError):
        shipment.set_note(b"slices 0..1")
    site.receiver.set_peers({PEER.name: PeerRule()})
    again = shipper.reopen(shipment)
    assert shipper.shipments(MACHINE) == [again]
    assert (again.note, again.refs) == (b"slice 0", (first.ref,))
    more = site.maker.segment(MIB)
    again.add(more.ref, more.data)
    again.seal(site.maker.proposal(first, more))
    again.commit()
    assert site.holds(more)
