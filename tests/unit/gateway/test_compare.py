"""The target's answers from its table, as the source takes them; what a broken peer may say."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.gateway.source.compare import RemoteDisk, Traffic, answer_from, packed, unpacked
from secondsite.gateway.source.tables import DigestTable, Stamp
from secondsite.journal.compare import RANGE_BYTES, RANGE_SUB_BLOCKS
from secondsite.journal.digests import Digests, no_digests, values_of
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import DiskState
from secondsite.transfer import wire
from secondsite.transfer.errors import DigestsRefused, ProtocolViolation
from secondsite.transfer.protocols import DigestAnswer, DigestQuery
from support.transfer import DISK, KEY, MACHINE

SIZE = 70 * MIB + 5 * SUB_BLOCK_BYTES


def table(directory: Path, size_bytes: int = SIZE) -> tuple[DigestTable, Digests]:
    """A sparse table, and all its rows."""
    made = DigestTable.create(directory / "t.digests", Stamp(size_bytes, KeyId(KEY), number=7))
    chance = random.Random(1)
    count = -(-size_bytes // SUB_BLOCK_BYTES)
    where = np.array(sorted(chance.sample(range(count), 40)), dtype=np.int64)
    rows = np.frombuffer(chance.randbytes(16 * 40), dtype=np.uint64).reshape(-1, 2)
    made.write(where, rows)
    everything = no_digests(-(-size_bytes // RANGE_BYTES) * RANGE_SUB_BLOCKS)
    everything[where] = rows
    return made, everything


class TableLink:
    """A link whose digests come from one table."""

    def __init__(self, made: DigestTable) -> None:
        self.table = made
        self.queries: list[DigestQuery] = []

    def digests(self, query: DigestQuery) -> DigestAnswer:
        wire.check_digests(query, MACHINE, peer="a test")
        self.queries.append(query)
        return answer_from(self.table, query)


def remote(link: object, size_bytes: int = SIZE) -> RemoteDisk:
    disk = DiskState(id=DiskId(DISK), size_bytes=size_bytes, key_id=KeyId(KEY))
    return RemoteDisk(link, MACHINE, disk, 7, traffic=Traffic())  # type: ignore[arg-type]


def test_the_source_sees_what_the_table_holds(tmp_path: Path) -> None:
    made, rows = table(tmp_path)
    by_range = rows.reshape(-1, RANGE_SUB_BLOCKS, 2)
    disk = remote(TableLink(made))
    numbers = np.arange(71, dtype=np.int64)
    assert (disk.sums(numbers) == by_range.sum(axis=1, dtype=np.uint64)).all()
    chosen = np.array([0, 3, 70], dtype=np.int64)
    assert (disk.values(chosen) == values_of(rows).reshape(-1, RANGE_SUB_BLOCKS)[chosen]).all()


def test_a_large_sparse_disk_costs_little(tmp_path: Path) -> None:
    size = 100 * 1024 * MIB
    made, _ = table(tmp_path, size)
    link = TableLink(made)
    traffic = Traffic()
    disk = RemoteDisk(
        link,  # type: ignore[arg-type]
        MACHINE,
        DiskState(id=DiskId(DISK), size_bytes=size, key_id=KeyId(KEY)),
        7,
        traffic=traffic,
    )
    disk.sums(np.arange(size // RANGE_BYTES, dtype=np.int64))
    assert traffic.queries == len(link.queries) == -(-size // RANGE_BYTES // wire.SUMS_MAX) == 4
    assert traffic.bytes < 16 * 1024
    disk.sums(np.array([size // RANGE_BYTES - 1], dtype=np.int64))
    assert len(link.queries) == 4, "a window is kept"


def query(**changes: object) -> DigestQuery:
    fields = {
        "machine": MACHINE,
        "disk": DISK,
        "key_id": KEY,
        "point": 7,
        "level": "sums",
        "count": 4,
        **changes,
    }
    return DigestQuery(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "6f1f7c9e-52c7-4f0e-9a53-0c4a3a1f0002"},
        {"version": 2},
        {"disk": "../x"},
        {"key_id": "zz"},
        {"point": -1},
        {"point": 10**16},
        {"count": 0},
        {"count": wire.SUMS_MAX + 1},
        {"count": -1},
        {"first": -1},
        {"first": 2**43},
        {"ranges": (1,)},
        {"level": "values", "count": 0, "ranges": ()},
        {"level": "values", "count": 1, "ranges": (1,)},
        {"level": "values", "count": 0, "ranges": (2, 1)},
        {"level": "values", "count": 0, "ranges": (1, 1)},
        {"level": "values", "count": 0, "ranges": (-1, 1)},
        {"level": "values", "count": 0, "ranges": (2**43 + 1,)},
        {"level": "values", "count": 0, "ranges": tuple(range(wire.VALUES_MAX + 1))},
        {"count": wire.REREAD_MAX + 1, "reread": True},
    ],
)
def test_queries_out_of_their_range_are_refused(changes: dict[str, object]) -> None:
    wire.check_digests(query(), MACHINE, peer="a")
    with pytest.raises(SecondsiteError):
        wire.check_digests(query(**changes), MACHINE, peer="a")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_query_or_an_answer_are_refused_or_understood(data: bytes) -> None:
    for kind in (DigestQuery, DigestAnswer):
        try:
            wire.decode_packed(data, kind, peer="a")
        except ProtocolViolation:
            continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=200), st.integers(1, 70), st.sampled_from([1, 2]))
def test_any_answer_has_the_asked_shape_or_is_refused(
    used: bytes, body: bytes, count: int, width: int
) -> None:
    answer = DigestAnswer(point=1, size_bytes=1, used=used, digests=body)
    try:
        rows = unpacked(answer, count, width, zero=1)
    except ProtocolViolation:
        return
    assert rows.shape == (count * width,)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["sums", "values"]))
def test_packing_is_undone(seed: int, level: str) -> None:
    chance = random.Random(seed)
    rows = np.frombuffer(chance.randbytes(16 * 300), dtype=np.uint64).reshape(-1, 2).copy()
    rows[chance.sample(range(300), chance.randrange(300))] = 0
    answer = packed(query(level=level), 5, rows)
    if level == "sums":
        assert (unpacked(answer, 300, 2, zero=0).reshape(-1, 2) == rows).all()
    else:
        assert (unpacked(answer, 300, 1, zero=1) == values_of(rows)).all()


def test_an_answer_of_another_point_or_size_is_refused(tmp_path: Path) -> None:
    made, _ = table(tmp_path)
    with pytest.raises(DigestsRefused):
        remote(TableLink(made), SIZE + 4096).sums(np.zeros(1, dtype=np.int64))
