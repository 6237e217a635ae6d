"""The store refuses a source that lost its machine, at any receiver; and what a source believes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import blake3
import msgspec
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.gateway.failover.claim import taken_here
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.segment import SegmentWriter
from secondsite.journal.segment_head import SegmentHead
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.failover import DELETED, FAILOVER, NOBODY, REVERSE
from secondsite.model.ids import SegmentId
from secondsite.model.points import SegmentRef
from secondsite.transfer.protocols import ClaimRequest, Peer, SegmentName
from support.failover_twin import DISK, A, Twin

OPERATION = "ab" * 16


@pytest.fixture
def twin() -> Iterator[Twin]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        made = Twin(Path(name))
        made.commit_as_a()
        yield made


def segment(twin: Twin) -> tuple[SegmentRef, bytes]:
    head = SegmentHead(
        machine=twin.machine,
        disk=DISK,
        epoch=1,
        id=SegmentId("c" * 32),
        key_id=twin.key.id,
        disk_size_bytes=1024 * 1024,
    )
    writer = SegmentWriter(head, twin.key)
    writer.add(0, memoryview(b"late" * 1024))
    data, ref = writer.finish()
    return ref, bytes(data)


def test_an_upload_that_was_under_way_makes_no_point_at_any_receiver(twin: Twin) -> None:
    ref, data = segment(twin)
    peer, name = Peer(name=A), SegmentName.of(twin.machine, ref)
    digest = blake3.blake3(data).hexdigest()
    upload = twin.receiver.open_segment(peer, name, size_bytes=len(data), digest=digest)
    assert upload is not None
    upload.append(memoryview(data)[:100])
    twin.failover(OPERATION)
    upload.append(memoryview(data)[100:])
    upload.finish()  # its bytes may arrive: they are an object of a dead epoch, named by nothing
    points = len(twin.journal.points())
    for _ in range(8):  # either receiver, both with heads of before
        assert twin.commit_as_a(late=True) is None
    assert len(twin.journal.points()) == points
    other = SegmentName(machine=name.machine, epoch=1, disk=name.disk, id=SegmentId("d" * 32))
    for receiver in (twin.receiver, twin.other_receiver):
        receiver.head(peer, twin.machine)
        with pytest.raises(SecondsiteError, match=r"epoch 1 was refused|its writer is"):
            receiver.open_segment(peer, other, size_bytes=len(data), digest=digest)
    assert twin.journal.head().epoch == 2


def test_a_source_believes_only_what_its_own_key_opens(twin: Twin) -> None:
    twin.failover(OPERATION)
    assert twin.a is not None
    head = twin.receiver.head(Peer(name=A), twin.machine)
    assert head.claim is not None
    forged = VaultKey.create().log_key(twin.machine)
    body = bytearray(head.claim)
    body[-1] ^= 1
    for lie in (
        msgspec.structs.replace(head, claim=bytes(body)),
        msgspec.structs.replace(head, claim=forged.seal(b"", head.claim) + head.claim),
        msgspec.structs.replace(head, claim=None),
        # an old claim told again, to the writer of now
        msgspec.structs.replace(head, epoch=3, claimant=A),
    ):
        twin.a.saw(twin.machine, "shop", lie)
        assert twin.a.all() == []
        assert twin.a_fabric.runs(twin.machine)
    twin.a.saw(twin.machine, "shop", head)
    assert not twin.a_fabric.runs(twin.machine)


def test_an_old_claim_told_again_does_not_hold_a_machine_that_was_given_back(twin: Twin) -> None:
    twin.failover(OPERATION)
    assert twin.a is not None
    old = twin.receiver.head(Peer(name=A), twin.machine)
    twin.look()
    twin.roll_back(OPERATION)
    twin.look()
    assert twin.a_fabric.runs(twin.machine)
    twin.a.saw(twin.machine, "shop", old)
    assert twin.a_fabric.runs(twin.machine)
    twin.failover("cd" * 16)
    twin.look()
    assert not twin.a_fabric.runs(twin.machine), "another failover holds it anew"


def test_what_was_deleted_and_made_again_takes_nothing_of_an_earlier_time(twin: Twin) -> None:
    journal = twin.journal
    journal.claim(
        name="shop", claimant=NOBODY, reason=DELETED, clock=twin.clock, expected=journal.head(), above=4
    )
    for receiver in (twin.receiver, twin.other_receiver):
        assert receiver.head(Peer(name=A), twin.machine).claimant == NOBODY
    for epoch in (1, 5):  # also by who guesses the deletion's own epoch
        twin.epoch_of_a = epoch
        assert twin.commit_as_a(late=epoch == 1) is None
    twin.claim_as_a()
    assert twin.epoch_of_a == 6
    points = len(twin.journal.points())
    for _ in range(4):
        assert twin.commit_as_a(late=True) is None
    assert len(twin.journal.points()) == points
    assert twin.commit_as_a() is not None


def test_a_claim_of_an_earlier_time_holds_nobody_who_took_the_machine_over_later(twin: Twin) -> None:
    """At the third place it is protected to lies the claim of a failover of long ago."""
    twin.failover(OPERATION)
    assert twin.a is not None
    earlier = twin.receiver.head(Peer(name=A), twin.machine)
    own = Journal(MemoryStore(), twin.machine, twin.vault)
    assert taken_here(own, A) == 0
    claim = own.claim(
        name="shop", claimant=A, reason=FAILOVER, clock=twin.clock, expected=own.head(), above=earlier.epoch
    )
    assert (taken_here(own, A), taken_here(own, "gateway-c")) == (claim.epoch, 0)
    twin.a.taken_here = lambda _: taken_here(own, A)
    twin.a.saw(twin.machine, "shop", earlier)
    assert twin.a_fabric.runs(twin.machine), "the authority by the newer claim"
    assert twin.a.all() == []
    twin.roll_back(OPERATION)
    twin.failover("cd" * 16)  # in epoch 4, above that of A
    twin.look()
    assert not twin.a_fabric.runs(twin.machine)


@pytest.mark.parametrize("promoted", [False, True])
def test_a_source_that_missed_it_all_is_held_however_much_was_claimed_since(
    twin: Twin, promoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine went on to a third site, which protects it to this one and compared everything since."""
    assert twin.a is not None
    twin.failover(OPERATION)
    journal, c = twin.journal, Peer(name="gateway-c")
    journal.claim(name="shop", claimant=c.name, reason=REVERSE, clock=twin.clock, expected=journal.head())
    rules = {A: PeerRule(), c.name: PeerRule()}

    def receiver() -> GatewayReceiver:
        return GatewayReceiver(
            twin.store, vault=twin.vault, peers=rules, clock=twin.clock, events=twin.events
        )

    head = receiver().head(c, twin.machine)
    compared = ClaimRequest(
        machine=twin.machine,
        machine_name="shop",
        reason="resync",
        nonce="ef" * 16,
        expected_number=head.number,
        expected_hash=head.hash,
    )
    assert receiver().claim(c, compared).epoch == head.epoch + 1
    if promoted:  # so far that the chain holds no claim any more
        whole = Journal.head
        monkeypatch.setattr(Journal, "head", lambda self: replace(whole(self), claim=None))
    assert receiver().head(c, twin.machine).claim is None, "who writes is told nothing of before"
    told = receiver().head(Peer(name=A), twin.machine)
    assert told.point is not None
    theirs = msgspec.structs.replace(told.point, number=told.number + 1, epoch=told.epoch)
    twin.a.saw(twin.machine, "shop", msgspec.structs.replace(told, point=theirs))
    assert not twin.a_fabric.runs(twin.machine)
    [held] = twin.a.all()
    assert (held.claimant, held.epoch) == (c.name, head.epoch)
    assert held.last_point is None, "the newest point is of who has it now"
