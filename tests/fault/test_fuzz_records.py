"""Decoders of records, states, pages, wire and local files against hostile bytes.

Each gives a value or one of its declared errors, and uses memory in proportion to what it was given. Where a
checksum or seal stands before the parser it is made right again: who holds the key may still be wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import blake3
import msgspec
import numpy as np
import pytest
import xxhash
import zstandard

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.messages import failover as failovermessages
from secondsite.gateway.messages import gateway as messages
from secondsite.gateway.messages import retention as retentionmessages
from secondsite.gateway.messages import seeding as seedmessages
from secondsite.gateway.messages import testfailover as testmessages
from secondsite.gateway.source import subblocks, tables
from secondsite.gateway.source.firstcopying import read_note
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.gateway.source.tables import DigestTable
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal import pages
from secondsite.journal.base_sums import put_sums, read_rows, read_sums
from secondsite.journal.chain import Journal
from secondsite.journal.format import RECORD_SPAN
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.manifest import decode_record, decode_span, encode_span, frame
from secondsite.journal.names import base_sums_prefix, state_name
from secondsite.journal.state import HEADER as STATE_HEADER
from secondsite.journal.state import State, decode_state, encode_state
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId, KeyId, SegmentId, disk_id, key_id, machine_id, segment_id
from secondsite.model.points import PointProposal, SegmentRef, Span
from secondsite.model.retention import RetentionPolicy
from secondsite.transfer import wire
from secondsite.transfer.http import Wire, parse_head
from secondsite.transfer.protocols import ClaimRequest, DigestAnswer, DigestQuery, Peer
from secondsite.transfer.spool import Spool
from support.format_samples import KEY, LOG_KEY, MACHINE, golden_objects
from support.hostile import changed, mutated, mutated_json
from support.journal_model import Replica
from support.transfer import MACHINE as WIRE_MACHINE
from support.transfer import Events, Maker

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]
TIMES = 300
GOLDEN = golden_objects()
DISK = DiskId("vda")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def jsonable(value: object) -> Any:
    return json.loads(msgspec.json.encode(value))


def bounded(
    decode: Callable[[bytes], object], data: bytes, *errors: type[BaseException], bytes_max: int = 4 * MIB
) -> None:
    """Decode; only these errors, and memory for at most a multiple of the data and the format's own limit."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    with contextlib.suppress(*errors):
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < bytes_max + 64 * len(data), f"{(peak - before) >> 20} MiB for {len(data)} bytes"


@pytest.fixture
def watched() -> Iterator[None]:
    """Memory is traced."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


# -- the journal's objects ------------------------------------------------------------------------


def sample_span() -> Span:
    ref = SegmentRef(
        disk=DISK, id=SegmentId("ab" * 16), epoch=1, stored_bytes=5000, data_bytes=8192, hash="cd" * 32
    )
    return Span(
        machine=MACHINE,
        id="0000000000000002-0000000000000009-01234567",
        first=2,
        last=9,
        segments=(ref,),
        points=4,
        arrived_bytes=77,
        made_at="2026-01-01T00:00:00.000000+00:00",
    )


def sealed_state(body: bytes) -> bytes:
    """A state record around any body, sealed."""
    good = encode_state(State(machine=MACHINE, generation=3), LOG_KEY)
    magic, version, flags, _, _, vault, _ = STATE_HEADER.unpack_from(good)
    head = STATE_HEADER.pack(magic, version, flags, len(body), blake3.blake3(body).digest(), vault, bytes(32))
    head = head[:-32]
    return head + LOG_KEY.seal(head, body) + body


def test_spans(watched: None) -> None:
    chance = random.Random(1)
    good, body = encode_span(sample_span(), LOG_KEY), jsonable(sample_span())
    assert decode_span(good, LOG_KEY) == sample_span()
    for _ in range(TIMES):
        bounded(lambda data: decode_span(data, LOG_KEY), mutated(good, chance), SecondsiteError)
        hostile = frame(RECORD_SPAN, 9, mutated_json(body, chance), LOG_KEY)
        bounded(lambda data: decode_span(data, LOG_KEY), hostile, SecondsiteError)


@pytest.mark.parametrize("name", ["claim-1.bin", "point-1.bin"])
def test_sealed_records(name: str, watched: None) -> None:
    chance = random.Random(2)
    record = decode_record(GOLDEN[name], LOG_KEY)
    body = jsonable(record)
    kind = struct.unpack_from("<H", GOLDEN[name], 10)[0]
    for _ in range(TIMES):
        hostile = frame(kind, record.number, mutated_json(body, chance), LOG_KEY)
        bounded(lambda data: decode_record(data, LOG_KEY), hostile, SecondsiteError)


def test_states(watched: None) -> None:
    chance = random.Random(3)
    state = msgspec.structs.replace(
        sample_state(), generation=3
    )  # with pins, bases, spans: every part has a parser
    good, name = encode_state(state, LOG_KEY), state_name(MACHINE, 3)
    assert decode_state(name, good, LOG_KEY) == state
    for _ in range(TIMES):
        bounded(lambda data: decode_state(name, data, LOG_KEY), mutated(good, chance), SecondsiteError)
        hostile = sealed_state(mutated_json(jsonable(state), chance))
        bounded(lambda data: decode_state(name, data, LOG_KEY), hostile, SecondsiteError)


def sample_state() -> State:
    replica = Replica(9)
    replica.claim()
    numbers = [replica.random_point().number for _ in range(6)]
    replica.promote(numbers[0])
    replica.journal.pin(numbers[4], "test-1", "a test")
    replica.merge(numbers[1], numbers[3])
    return msgspec.structs.replace(replica.journal.state(), machine=MACHINE)


def test_pages(watched: None) -> None:
    chance = random.Random(4)
    ref = SegmentRef(disk=DISK, id=SegmentId("ab" * 16), epoch=1, stored_bytes=9, data_bytes=0, hash="")
    page = pages.Page(
        first=1, last=64, hash="ab" * 32, points=3, key_id=KEY.id, first_size_bytes=1 << 20,
        last_size_bytes=1 << 20, segments=(ref,), starts=np.array([0, 8192]), ends=np.array([4096, 9000]),
        offsets=np.array([0, 8192]), owners=np.array([0, -1], dtype=np.int32),
        positions=np.array([0, 0], dtype=np.int32), zeros=np.array([False, True]),
    )  # fmt: skip
    good = pages.encode_page(page, MACHINE, DISK, KEY)

    def decode(data: bytes) -> object:
        pages.page_key(data, "a page")
        return pages.decode_page(data, MACHINE, DISK, KEY, what="a page")

    assert decode(good) is not None
    head = good[: pages.HEADER.size]
    salt = pages.HEADER.unpack(head)[-2]
    packed = pages._seal(KEY, salt).decrypt(
        pages._NONCE, good[pages.HEADER.size :], pages._bound(head, MACHINE, DISK)
    )
    plain = zstandard.ZstdDecompressor().decompress(packed)

    def seal(content: bytes) -> bytes:
        return head + pages._seal(KEY, salt).encrypt(pages._NONCE, content, pages._bound(head, MACHINE, DISK))

    for _ in range(TIMES):
        bounded(decode, mutated(good, chance), SecondsiteError)
        bounded(decode, seal(zstandard.ZstdCompressor().compress(mutated(plain, chance))), SecondsiteError)
        # who holds the key may promise as much as any page has, not more
        bounded(decode, seal(mutated(packed, chance)), SecondsiteError, bytes_max=2 * pages._PLAIN_BYTES_MAX)
    # a frame that does not say how large it is, and is large
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    bounded(decode, seal(bomb), SecondsiteError, bytes_max=2 * pages._PLAIN_BYTES_MAX)


def test_sums_of_bases(watched: None) -> None:
    chance = random.Random(5)
    rows = np.zeros(5, dtype=[("number", "<u8"), ("sum", "<u8", 2)])
    store = MemoryStore()
    with contextlib.suppress(Exception):
        put_sums(store, MACHINE, DISK, 4, rows)
    name = next(iter(store.list(base_sums_prefix(MACHINE, DISK))))
    good = store.get(name, size_bytes_max=1 << 20)

    def decode(data: bytes) -> object:
        other = MemoryStore()
        other.put(name, data)
        return read_sums(other, MACHINE, DISK), list(read_rows(other, name))

    for _ in range(TIMES):
        bounded(decode, mutated(good, chance), SecondsiteError)


# -- the wire -------------------------------------------------------------------------------------


def claim_request() -> ClaimRequest:
    return ClaimRequest(
        machine=WIRE_MACHINE,
        machine_name="web",
        reason="first copy",
        nonce="ab" * 16,
        expected_number=0,
        expected_hash="0" * 64,
    )


def digest_query() -> DigestQuery:
    return DigestQuery(
        machine=WIRE_MACHINE, disk=DISK, key_id=KeyId("ab" * 16), point=3, level="values", ranges=(1, 2, 9)
    )


def test_bodies(watched: None) -> None:
    chance = random.Random(6)

    def claim(data: bytes) -> None:
        wire.check_claim(wire.decode(data, ClaimRequest, peer="p"), WIRE_MACHINE, peer="p")

    def point(data: bytes) -> None:
        wire.check_proposal(wire.decode(data, PointProposal, peer="p"), WIRE_MACHINE, peer="p")

    def query(data: bytes) -> None:
        wire.check_digests(wire.decode_packed(data, DigestQuery, peer="p"), WIRE_MACHINE, peer="p")

    maker = Maker(3)
    proposal = jsonable(maker.proposal(maker.segment(9000)))
    packed = msgspec.msgpack.encode(digest_query())
    answer = DigestAnswer(point=1, size_bytes=9, used=b"\x03", digests=bytes(32))
    for _ in range(TIMES):
        bounded(claim, mutated_json(jsonable(claim_request()), chance), SecondsiteError)
        bounded(point, mutated_json(proposal, chance), SecondsiteError)
        bounded(query, mutated(packed, chance), SecondsiteError)
        data = mutated(msgspec.msgpack.encode(answer), chance)
        bounded(lambda body: wire.decode_packed(body, DigestAnswer, peer="p"), data, SecondsiteError)
        bounded(
            lambda body: wire.remote_error(body, 500, peer="p"),
            mutated_json({"code": "a.b", "happened": "x"}, chance),
        )


def test_targets_heads_and_names(watched: None) -> None:
    chance = random.Random(7)
    machine, segment = str(WIRE_MACHINE), "ab" * 16
    targets = [f"/v1/machines/{machine}/segments/1/vda/{segment}", f"/v1/machines/{machine}/keys/{segment}"]
    head = b"PUT /v1/health HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\ncontent-range: bytes 0-4/5"
    for _ in range(TIMES):
        text = mutated(chance.choice(targets).encode(), chance).decode("latin-1")
        for parse in (wire.parse_target, machine_id, disk_id, key_id, segment_id, RetentionPolicy.parse):
            with contextlib.suppress(SecondsiteError):
                parse(text)

        def message(data: bytes) -> None:
            found = parse_head(data, peer="p")
            found.content_length(size_bytes_max=1000, peer="p")
            found.content_range(5, peer="p")

        bounded(message, mutated(head, chance), SecondsiteError)


def test_a_conversation_of_any_bytes(watched: None) -> None:
    chance = random.Random(8)
    head = b"PUT /v1/health HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\n\r\nhello"
    for _ in range(60):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(mutated(head, chance) if chance.random() < 0.8 else b"x" * 200_000)
            theirs.shutdown(socket.SHUT_WR)
            spoken = Wire(ours, SystemClock(), peer="p", idle_seconds=5.0)
            with contextlib.suppress(SecondsiteError, ConnectionResetError):
                found = spoken.read_head(first_byte_seconds=5.0, head_seconds=5.0)
                if found is not None:
                    body = bytearray(found.content_length(size_bytes_max=1000, peer="p"))
                    spoken.fill(memoryview(body))


FIELDS = ["", "disks", "segments", "given_at", "asked_at", "checkpoint", "definition", "consistency"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_hostile_proposal_is_refused_or_leaves_a_journal_that_can_be_read(field: str) -> None:
    """What an authenticated source may send, as far as it comes: the log stays whole, its points readable."""
    chance = random.Random(f"9{field}")
    vault = VaultKey.of(b"v" * 32)
    peer = Peer(name="gateway-a")
    for _ in range(TIMES // 4):
        store = MemoryStore()
        receiver = GatewayReceiver(
            store, vault=vault, peers={"gateway-a": PeerRule()}, clock=SystemClock(), events=Events()
        )
        receiver.claim(peer, claim_request())
        sample = jsonable(Maker(chance.randrange(99)).proposal())
        data = mutated_json(sample, chance)
        if field:
            data = json.dumps({**sample, field: changed(sample[field], chance)}).encode()
        committed: list[Any] = []
        with contextlib.suppress(SecondsiteError):
            proposal = wire.decode(data, PointProposal, peer="p")
            wire.check_proposal(proposal, WIRE_MACHINE, peer="p")
            committed.append(receiver.commit(peer, proposal))
        journal = Journal(store, WIRE_MACHINE, vault)
        points = journal.points()
        assert len(points) == len(committed), "a record that its own journal does not read"
        for point in points:
            assert datetime.fromisoformat(point.given_at) - datetime.fromisoformat(point.asked_at) is not None
            with contextlib.suppress(SecondsiteError):  # its key was never sent
                keys = KeyRing(store, WIRE_MACHINE, vault)
                open_view(journal, point.number, keys, bases=lambda _: None).close()


# -- control messages -----------------------------------------------------------------------------


def message_types() -> list[type[msgspec.Struct]]:
    return [
        kind
        for module in (messages, failovermessages, retentionmessages, seedmessages, testmessages)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    ]


@pytest.mark.parametrize("kind", message_types(), ids=lambda kind: kind.__name__)
def test_control_messages(kind: type[msgspec.Struct]) -> None:
    chance = random.Random(10)
    names = {field.encode_name for field in msgspec.structs.fields(kind)}
    for _ in range(40):
        sample: dict[str, Any] = {
            name: chance.choice(["x", 1, 2.5, [], {}, None, "ab" * 16]) for name in names
        }
        with contextlib.suppress(*JSON_ERRORS):
            msgspec.json.decode(mutated_json(sample, chance), type=kind)


# -- files of a gateway ---------------------------------------------------------------------------


def test_sub_block_tables(tmp_path: Path) -> None:
    chance = random.Random(11)
    stamp = subblocks.Stamp(machine=MACHINE, disk=DISK, epoch=1, point=4, size_bytes=1 << 20)
    good, body = subblocks._encode_header(stamp), jsonable(stamp)
    assert subblocks._decode_header(good) == stamp
    path = tmp_path / "vda.table"
    for turn in range(TIMES):
        text = mutated_json(body, chance)[:3000]
        page = (good[:10] + len(text).to_bytes(2, "little") + text).ljust(len(good) - 32, b"\0")
        hostile = page + blake3.blake3(page).digest() if turn % 2 else mutated(good, chance)
        subblocks._decode_header(hostile)
        if turn % 10 == 0:
            path.write_bytes(hostile)
            table = SubBlockTable(path, MACHINE, DISK, on_void=lambda why: None)
            table.expect(epoch=1, point=4, size_bytes=1 << 20)
            table.close()


def test_digest_tables(tmp_path: Path) -> None:
    chance = random.Random(12)
    path = tmp_path / "vda.digests"
    table = DigestTable.create(path, tables.Stamp(1 << 20, KeyId("ab" * 16), 3))
    table.close()
    good = path.read_bytes()
    size = tables.HEADER.size
    for turn in range(TIMES // 2):
        data = bytearray(mutated(good, chance) if turn % 2 else good)
        if not turn % 2:
            head = mutated(good[:size], chance)[:size].ljust(size, b"\0")
            data[: size + 8] = head + xxhash.xxh3_64_digest(head)
        path.write_bytes(data)
        found = DigestTable.open(path)
        if found is not None:
            found.drop()


def test_desired_state(tmp_path: Path) -> None:
    chance = random.Random(13)
    path = tmp_path / "desired.json"
    sample = {
        "version": 1,
        "protections": [
            {"machine": str(MACHINE), "name": "web", "peer": "b", "disks": ["vda"], "copyFrequencySeconds": 5}
        ],
    }
    now = {
        "version": 2,
        "server": "s",
        "generation": 3,
        "protections": [
            {
                "machine": str(MACHINE),
                "name": "web",
                "peer": "b",
                "policy": {"copyFrequencySeconds": 5, "bandwidth": [{"from": "08:00", "until": "18:00"}]},
                "item": "i",
                "revision": 3,
            }
        ],
        "replicas": [
            {
                "item": "i",
                "revision": 3,
                "machine": str(MACHINE),
                "name": "web",
                "source": "a",
                "retention": "all:2h",
            }
        ],
        "peers": [{"name": "b", "url": "https://b:9443"}],
        "ended": {"j": 2},
    }
    for turn in range(TIMES):
        path.write_bytes(mutated_json(sample if turn % 2 else now, chance))
        with contextlib.suppress(SecondsiteError):
            DesiredState(path).all()


def test_the_cache_volume(tmp_path: Path) -> None:
    """Whatever its files hold, the cache opens; what is not whole is captured again."""
    chance = random.Random(14)
    made = Maker(5)

    def files() -> dict[str, bytes]:
        spool = open_spool(tmp_path / "good")
        for sealed in (False, True):
            batch = spool.begin(WIRE_MACHINE, 1)
            one = made.segment(3000)
            batch.keep(0, one.ref, one.data)
            batch.set_note(b'{"checkpoint": "c", "resync": false, "sizes": {"vda": 4096}}')
            if sealed:
                batch.seal(made.proposal(one))
        root = tmp_path / "good" / "spool"
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    samples = files()
    for turn in range(TIMES // 3):
        root = tmp_path / f"turn-{turn}" / "spool"
        spoiled = chance.choice(sorted(samples))
        for name, data in samples.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = name.endswith((".json", "note", "segments.log"))
            if name == spoiled and text and chance.random() < 0.5:
                with contextlib.suppress(ValueError):
                    data = mutated_json(json.loads(data.split(b"\n")[-1] or b"{}"), chance)  # noqa: PLW2901
            elif name == spoiled:
                data = mutated(data, chance)  # noqa: PLW2901
            path.write_bytes(data)
        spool = open_spool(tmp_path / f"turn-{turn}")
        for batch in spool.batches():
            for _, ref in batch.pending():
                with contextlib.suppress(SecondsiteError):
                    batch.payload(ref)
            read_note(batch)  # type: ignore[arg-type]
            batch.remove()
        assert spool.used_bytes == 0, "room that nobody gives back"


def open_spool(directory: Path) -> Spool:
    return Spool(directory / "spool", limit_bytes=64 * MIB, identity=directory / "cache-id", events=Events())
