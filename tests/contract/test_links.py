"""One suite for every link: in memory, and mutual TLS to a real listener; both end in a real receiver."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.failover.stopped import stopped_on
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.chain import Journal
from secondsite.journal.names import log_name, segment_name, wrapped_key_name
from secondsite.journal.store import ObjectMissing
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import KeyId
from secondsite.model.points import ZERO_HASH
from secondsite.transfer import wire
from secondsite.transfer.errors import DigestsNotReady
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import (
    ClaimRequest,
    DigestAnswer,
    DigestQuery,
    Link,
    Peer,
    Receiver,
    StopNote,
    error_code,
)
from support.transfer import DISK, KEY, MACHINE, OTHER_MACHINE, Certificates, Events, Made, Maker, new_machine

PEER = "gateway-a.site-a"
THIRD = "gateway-c.site-c"
TARGET = "gateway-b.site-b"


@dataclass
class Rig:
    """A link and what is behind it."""

    link: Link
    other: Link  # the same target, as the peer THIRD
    store: MemoryStore
    receiver: GatewayReceiver
    events: Events


def _links(kind: str, receiver: Receiver, events: Events, directory: Path) -> Iterator[tuple[Link, Link]]:
    if kind == "memory":
        yield MemoryLink(receiver, Peer(name=PEER)), MemoryLink(receiver, Peer(name=THIRD))
        return
    certificates = Certificates(directory)
    server = IngestServer(
        receiver,
        certificates.of(TARGET),
        ("127.0.0.1", 0),
        name=TARGET,
        clock=SystemClock(),
        events=events,
    )
    host, port = server.start()
    links = [
        HttpsLink(f"https://{host}:{port}", TARGET, certificates.of(name), clock=SystemClock())
        for name in (PEER, THIRD)
    ]
    yield links[0], links[1]
    for link in links:
        link.close()
    server.close()


@pytest.fixture(params=["memory", "tls"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    events = Events()
    store = MemoryStore()
    receiver = GatewayReceiver(
        store,
        vault=None,
        peers={PEER: PeerRule(frozenset({MACHINE})), THIRD: PeerRule()},
        clock=SystemClock(),
        events=events,
    )
    for link, other in _links(request.param, receiver, events, tmp_path):
        yield Rig(link, other, store, receiver, events)


def _key(made: Made, machine: str = MACHINE) -> str:
    return segment_name(MACHINE, made.ref.epoch, made.ref.disk, made.ref.id)


def _refused(call: object, code: str, *, retryable: bool = False) -> SecondsiteError:
    assert callable(call)
    with pytest.raises(SecondsiteError) as caught:
        call()
    assert error_code(caught.value) == code, caught.value
    assert caught.value.retryable is retryable
    assert all(caught.value.sentences())
    return caught.value


def test_a_new_machine_has_an_empty_head_and_gets_its_first_claim_from_the_target(rig: Rig) -> None:
    maker = Maker()
    head = rig.link.head(MACHINE)
    assert (head.number, head.epoch, head.hash, head.point, head.claimant) == (0, 0, ZERO_HASH, None, None)
    assert maker.claim(rig.link) == 1
    head = rig.link.head(MACHINE)
    assert (head.number, head.epoch, head.claimant) == (1, 1, PEER)
    assert rig.receiver.journal(MACHINE).head().hash == head.hash


def test_segments_then_a_point(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    segments = [maker.segment(size) for size in (1_000, 70_000, 3_000_000)]
    rig.link.put_key(MACHINE, KEY, b"wrapped")
    for made in segments:
        rig.link.send_segment(MACHINE, made.ref, made.data)
    point = rig.link.commit(maker.proposal(*segments))
    assert point.number == 2
    assert rig.link.head(MACHINE).point_in_epoch == point
    for made in segments:
        assert rig.store.get(_key(made), size_bytes_max=10**9) == made.data
    assert rig.store.get(wrapped_key_name(MACHINE, KEY), size_bytes_max=100) == b"wrapped"
    journal = rig.receiver.journal(MACHINE)
    assert [s.id for s in journal.point(2).segments] == [made.ref.id for made in segments]
    assert "receive.committed" in rig.events.codes()


def test_a_segment_from_a_file_and_from_memory_are_the_same(rig: Rig, tmp_path: Path) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment(2_500_000)
    path = tmp_path / "segment"
    path.write_bytes(made.data)
    rig.link.send_segment(MACHINE, made.ref, path)
    rig.link.send_segment(MACHINE, made.ref, bytearray(made.data))
    assert rig.store.get(_key(made), size_bytes_max=10**9) == made.data


def test_a_repeated_segment_is_accepted_and_one_with_other_bytes_is_refused(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment()
    for _ in range(3):
        rig.link.send_segment(MACHINE, made.ref, made.data)
    other = maker.segment()
    for same_name in (
        msgspec.structs.replace(other.ref, id=made.ref.id),  # of the same size
        msgspec.structs.replace(maker.segment(1_000).ref, id=made.ref.id),
    ):
        data = other.data[: same_name.stored_bytes]
        for _ in range(2):  # also when the link asks first how much is there
            _refused(
                lambda r=same_name, d=data: rig.link.send_segment(MACHINE, r, d), "link.segment-conflict"
            )
    assert rig.store.get(_key(made), size_bytes_max=10**9) == made.data


def test_bytes_that_do_not_have_their_hash_are_dropped_and_can_be_sent_again(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment(2_000_000)
    damaged = bytearray(made.data)
    damaged[1_500_000] ^= 1
    _refused(lambda: rig.link.send_segment(MACHINE, made.ref, damaged), "link.hash-mismatch", retryable=True)
    with pytest.raises(ObjectMissing):
        rig.store.size(_key(made))
    assert "receive.hash-mismatch" in rig.events.codes()
    rig.link.send_segment(MACHINE, made.ref, made.data)
    assert rig.store.get(_key(made), size_bytes_max=10**9) == made.data


def test_a_segment_under_another_name_than_its_own_is_refused(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment(3_000_000)
    for change in ({"id": "ab" * 16}, {"disk": "vdb"}):
        ref = msgspec.structs.replace(made.ref, **change)
        error = _refused(lambda r=ref: rig.link.send_segment(MACHINE, r, made.data), "link.segment-refused")
        assert made.ref.id in str(error)
    noise = msgspec.structs.replace(made.ref, stored_bytes=100, hash="0" * 64)
    _refused(lambda: rig.link.send_segment(MACHINE, noise, b"x" * 100), "link.segment-refused")
    assert "receive.segment-refused" in rig.events.codes()
    assert not list(rig.store.list("machines/" + MACHINE + "/segments/"))


def test_parallel_and_out_of_order(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    segments = [maker.segment(200_000 + i) for i in range(24)]
    order = segments * 2  # each twice, some at the same time
    maker.chance.shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(rig.link.send_segment, MACHINE, m.ref, m.data) for m in order]:
            error = future.exception()
            # the other upload of the same segment may have taken over
            assert error is None or (isinstance(error, SecondsiteError) and error.retryable), error
    for made in segments:
        rig.link.send_segment(MACHINE, made.ref, made.data)
    rig.link.commit(maker.proposal(*segments))
    for made in segments:
        assert rig.store.get(_key(made), size_bytes_max=10**9) == made.data


def test_a_commit_before_its_segments_is_refused_and_names_what_is_missing(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    here, missing = maker.segment(), maker.segment()
    rig.link.send_segment(MACHINE, here.ref, here.data)
    proposal = maker.proposal(here, missing)
    error = _refused(lambda: rig.link.commit(proposal), "journal.segments-missing", retryable=True)
    assert missing.ref.id in str(error)
    assert here.ref.id not in str(error)
    assert rig.link.head(MACHINE).point is None
    rig.link.send_segment(MACHINE, missing.ref, missing.data)
    assert rig.link.commit(proposal).number == 2


def test_a_proposal_is_committed_once(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment()
    rig.link.send_segment(MACHINE, made.ref, made.data)
    proposal = maker.proposal(made)
    first = rig.link.commit(proposal)
    assert rig.link.commit(proposal) == first
    assert len(rig.receiver.journal(MACHINE).points()) == 1


def test_a_claim_is_made_once_and_only_at_the_head_it_saw(rig: Rig) -> None:
    request = ClaimRequest(
        machine=MACHINE,
        machine_name="web-1",
        reason="first copy",
        nonce="ab" * 16,
        expected_number=0,
        expected_hash=ZERO_HASH,
    )
    first = rig.link.claim(request)
    assert rig.link.claim(request) == first
    _refused(lambda: rig.link.claim(msgspec.structs.replace(request, nonce="cd" * 16)), "journal.head-moved")
    assert rig.link.head(MACHINE).epoch == 1


def test_a_source_of_an_older_epoch_is_told_so_everywhere(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment()
    rig.link.send_segment(MACHINE, made.ref, made.data)
    proposal = maker.proposal(made)
    journal = rig.receiver.journal(MACHINE)
    journal.claim(
        name="web-1", claimant=TARGET, reason="failover", clock=SystemClock(), expected=journal.head()
    )
    late = maker.segment()
    error = _refused(lambda: rig.link.commit(proposal), "journal.epoch-superseded")
    assert "failover" in error.sentences()[1]
    rig.receiver.head(Peer(name=PEER), MACHINE)  # segments are judged by a head a second old at most
    _refused(lambda: rig.link.send_segment(MACHINE, late.ref, late.data), "journal.epoch-superseded")
    _refused(lambda: maker.claim(rig.link, "resync"), "link.claim-refused")
    head = rig.link.head(MACHINE)
    assert (head.epoch, head.claimant, head.point) == (2, TARGET, None)


def test_a_peer_writes_only_what_it_may(rig: Rig) -> None:
    maker = Maker()
    stranger = Maker(2, OTHER_MACHINE)
    made = stranger.segment()
    for call in (
        lambda: rig.link.head(OTHER_MACHINE),
        lambda: stranger.claim(rig.link),
        lambda: rig.link.send_segment(OTHER_MACHINE, made.ref, made.data),
        lambda: rig.link.put_key(OTHER_MACHINE, KEY, b"x"),
        lambda: rig.link.commit(stranger.proposal(made)),
    ):
        _refused(call, "link.peer-not-allowed")
    # a peer that may write anything still may not write what another one writes
    maker.claim(rig.link)
    mine = maker.segment()
    for call in (
        lambda: rig.other.send_segment(MACHINE, mine.ref, mine.data),
        lambda: rig.other.put_key(MACHINE, KEY, b"x"),
        lambda: rig.other.commit(maker.proposal(mine)),
    ):
        _refused(call, "link.peer-not-allowed")
    _refused(lambda: maker.claim(rig.other), "link.claim-refused")
    assert Maker(3, fresh := new_machine()).claim(rig.other) == 1
    assert rig.other.head(fresh).claimant == THIRD


def test_a_stop_counts_on_the_newest_record_until_it_is_void(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    note = StopNote(machine=MACHINE, operation="5" * 32, point=1)
    _refused(lambda: rig.link.note_stop(note), "link.stop-refused")  # a claim holds nothing
    made = maker.segment()
    rig.link.send_segment(MACHINE, made.ref, made.data)
    last = msgspec.structs.replace(note, point=rig.link.commit(maker.proposal(made)).number)
    journal = rig.receiver.journal(MACHINE)
    for _ in range(2):
        rig.link.note_stop(last)
        assert stopped_on(journal, last.point) is not None
    assert stopped_on(journal, last.point + 1) is None
    _refused(lambda: rig.other.note_stop(last), "link.peer-not-allowed")
    _refused(lambda: rig.link.note_stop(msgspec.structs.replace(last, operation="x")), "link.protocol")
    for _ in range(2):
        rig.link.note_stop(msgspec.structs.replace(last, point=0))
        assert stopped_on(journal, last.point) is None
    _refused(lambda: rig.link.note_stop(last), "link.stop-refused")  # it was on its way
    assert stopped_on(journal, last.point) is None


def test_a_wrapped_key_never_changes(rig: Rig) -> None:
    Maker().claim(rig.link)
    rig.link.put_key(MACHINE, KEY, b"wrapped")
    rig.link.put_key(MACHINE, KEY, b"wrapped")
    _refused(lambda: rig.link.put_key(MACHINE, KEY, b"other"), "link.segment-conflict")
    assert rig.link.get_key(MACHINE, KEY) == b"wrapped"
    _refused(lambda: rig.other.get_key(MACHINE, KEY), "link.peer-not-allowed")
    _refused(lambda: rig.link.get_key(MACHINE, KeyId("e" * 32)), "store.object-missing")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epoch": 0}, "link.protocol"),
        ({"nonce": "x"}, "link.protocol"),
        ({"disks": ()}, "link.protocol"),
        ({"machine_name": "x" * 300}, "link.protocol"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_proposals_are_refused(rig: Rig, change: dict[str, object], code: str) -> None:
    maker = Maker()
    maker.claim(rig.link)
    proposal = msgspec.structs.replace(maker.proposal(), **change)
    _refused(lambda: rig.link.commit(proposal), code)
    assert rig.link.head(MACHINE).point is None


def test_the_link_can_be_used_again_after_every_refusal(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    for _ in range(3):
        made = maker.segment(3_000_000)
        damaged = made.data[:-1] + b"?"
        with pytest.raises(SecondsiteError):
            rig.link.send_segment(MACHINE, made.ref, damaged)
        with pytest.raises(SecondsiteError):
            rig.link.head(OTHER_MACHINE)
        rig.link.send_segment(MACHINE, made.ref, made.data)
    assert made.ref.disk == DISK


def test_the_writer_is_still_known_when_promotion_took_its_claim_away(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    made = maker.segment()
    rig.link.send_segment(MACHINE, made.ref, made.data)
    rig.link.commit(maker.proposal(made))
    journal = rig.receiver.journal(MACHINE)
    head = journal.head()
    assert head.point is not None
    journal.update_state(
        lambda state: msgspec.structs.replace(
            state, floor=head.number, floor_hash=head.hash, promoted=head.number
        )
    )
    rig.store.delete(log_name(MACHINE, 1))
    restarted = GatewayReceiver(
        rig.store,
        vault=None,
        peers={PEER: PeerRule(), THIRD: PeerRule()},
        clock=SystemClock(),
        events=rig.events,
    )
    assert restarted.journal(MACHINE).head().claim is None
    assert restarted.head(Peer(name=PEER), MACHINE).claimant == PEER
    third = MemoryLink(restarted, Peer(name=THIRD))
    late = maker.segment()
    _refused(lambda: maker.claim(third, "resync"), "link.claim-refused")
    _refused(lambda: third.send_segment(MACHINE, late.ref, late.data), "link.peer-not-allowed")
    MemoryLink(restarted, Peer(name=PEER)).send_segment(MACHINE, late.ref, late.data)


def _query(**changes: object) -> DigestQuery:
    fields = {
        "machine": MACHINE,
        "disk": DISK,
        "key_id": KEY,
        "point": 2,
        "level": "sums",
        "count": 64,
        **changes,
    }
    return DigestQuery(**fields)  # type: ignore[arg-type]


def test_digests_are_asked_for_and_answered(rig: Rig) -> None:
    asked: list[DigestQuery] = []
    answer = DigestAnswer(point=2, size_bytes=5, used=b"\x01\x00", digests=bytes(range(16)))

    def answers(journal: Journal, query: DigestQuery) -> DigestAnswer:
        assert journal.machine == MACHINE
        asked.append(query)
        return answer

    maker = Maker()
    maker.claim(rig.link)
    rig.receiver._digests = answers
    queries = [
        _query(),
        _query(first=wire.SUMS_MAX, count=wire.SUMS_MAX),
        _query(level="values", count=0, ranges=tuple(range(0, 2 * wire.VALUES_MAX, 2))),
        _query(level="values", count=0, ranges=(2**43 - 1,), reread=True),
    ]
    for query in queries:
        assert rig.link.digests(query) == answer
    assert asked == queries


def test_digests_of_another_state_or_not_there_yet_are_refused_as_what_they_are(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    _refused(lambda: rig.link.digests(_query()), "digests.other-state")

    def not_ready(journal: Journal, query: DigestQuery) -> DigestAnswer:
        raise DigestsNotReady(disk=query.disk, point=query.point, why="a test")

    rig.receiver._digests = not_ready
    _refused(lambda: rig.link.digests(_query()), "digests.not-ready", retryable=True)
    _refused(lambda: rig.link.digests(_query(count=0)), "link.protocol")
    _refused(lambda: rig.link.digests(_query(count=wire.SUMS_MAX + 1)), "link.protocol")
    _refused(lambda: rig.link.digests(_query(disk="../..")), "input.invalid")


def test_digests_are_for_the_writer_alone(rig: Rig) -> None:
    maker = Maker()
    maker.claim(rig.link)
    _refused(lambda: rig.other.digests(_query()), "link.peer-not-allowed")
    _refused(lambda: rig.link.digests(_query(machine=OTHER_MACHINE)), "link.peer-not-allowed")
