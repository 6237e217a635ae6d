"""Every object of a journal damaged in every way: torn, flipped, emptied, gone, another's bytes in its place.

A point then reads what it always did, or is refused with a declared error; never other bytes. What a base
was not meant to hold (a misdirected write, a lost one, a flipped bit) is named by its sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import BLOCK_BYTES_MAX, KIB
from secondsite.journal.base_sums import differing, read_sums
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, encode_wrapped
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.page_write import write_page
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.view import open_view
from support.crash_matrix import FULL
from support.journal_model import DISKS, MACHINE, SUB, Replica

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]


def prepared() -> Replica:
    """A base, single points, a span, pages, a pin: something of everything."""
    replica = Replica(21)
    replica.claim()
    for disk, key in replica.keys.items():
        wrapped = encode_wrapped(replica.vault, MACHINE, disk, key)
        replica.store.put(wrapped_key_name(MACHINE, key.id), wrapped)
    for turn in range(68):
        replica.add_point({DISKS[turn % 2]: [[(turn * 7 % 60, 1 + turn % 3, "random")]]})
    numbers = [point.number for point in replica.journal.points()]
    replica.promote(numbers[1])
    replica.merge(numbers[2], numbers[5])
    while write_page(replica.journal, replica.ring, without=set()) is not None:
        pass
    replica.journal.pin(numbers[7], "test-1", "a test")
    return replica


def damages(
    name: str, data: bytes, others: list[str], store: MemoryStore
) -> Iterator[tuple[str, bytes | None]]:
    """(what, the object's bytes then; None: gone)."""
    yield "gone", None
    yield "empty", b""
    yield "cut in half", data[: len(data) // 2]
    yield "its last byte gone", data[:-1]
    yield "one byte more", data + b"\0"
    for place in (0, 9, len(data) // 3, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        yield f"a bit at {place}", bytes(flipped)
    if len(data) > 1024:
        start = len(data) // 2 // 512 * 512
        yield "a sector of zeros", data[:start] + bytes(512) + data[start + 512 :]
    alike = [
        other for other in others if other != name and other.rpartition("/")[0] == name.rpartition("/")[0]
    ]
    for other in alike[:1] + alike[-1:]:
        yield f"the bytes of {other.rpartition('/')[2]}", store.get(other, size_bytes_max=1 << 24)


def spoiled(replica: Replica, name: str, data: bytes | None) -> MemoryStore:
    store = replica.store.restarted()
    store.delete(name)
    if data is not None:
        store.put(name, data)
    return store


def read_all(replica: Replica, store: MemoryStore, numbers: list[int]) -> tuple[int, int]:
    """(points that read as they did, points that are refused). Fails when one reads otherwise."""
    journal, ring = Journal(store, MACHINE, replica.vault), KeyRing(store, MACHINE, replica.vault)
    right = refused = 0
    for number in numbers:
        try:
            with open_view(journal, number, ring, bases=replica.base_of) as view:
                found = {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}
        except SecondsiteError:
            refused += 1
            continue
        assert found == replica.points[number], f"point {number} reads other bytes"
        right += 1
    return right, refused


def test_no_damaged_object_makes_a_point_read_otherwise() -> None:
    replica = prepared()
    names = list(replica.store.list(""))
    kinds = {name.split("/")[2] for name in names}
    assert len(kinds) >= 5, f"something of everything: {kinds}"
    listed = [point.number for point in replica.journal.points()]
    assert read_all(replica, replica.store, listed) == (len(listed), 0)
    numbers = (
        listed[:4] + listed[4::15]
        if FULL
        else [listed[0], listed[2], listed[3], listed[len(listed) // 2], listed[-1]]
    )
    tried = refused_all = 0
    for index, name in enumerate(names):
        if not FULL and index % 3:
            continue
        data = replica.store.get(name, size_bytes_max=1 << 24)
        for what, damaged in damages(name, data, names, replica.store):
            if not FULL and tried % 4 and what != "gone":
                tried += 1
                continue
            try:
                _, refused = read_all(replica, spoiled(replica, name, damaged), numbers)
            except BaseException as error:
                error.add_note(f"{name}: {what}")
                raise
            tried += 1
            refused_all += refused
    assert refused_all > 20, "damage that nobody notices everywhere is no damage"


def test_the_reading_above_compares() -> None:
    """With the bytes of another point expected, it fails."""
    replica = prepared()
    points = replica.journal.points()
    replica.points[points[-1].number] = replica.points[points[-3].number]
    with pytest.raises(AssertionError, match="reads other bytes"):
        read_all(replica, replica.store, [points[-1].number])


Spoil = Callable[[bytearray, int], None]


def misdirected(content: bytearray, at: int) -> None:
    """A write of 4 KiB lands 64 KiB further on."""
    piece = bytes(content[at : at + SUB])
    goal = (at + BLOCK_BYTES_MAX) % (len(content) - SUB)
    content[goal : goal + SUB] = bytes(reversed(piece)) if any(piece) else b"\1" * SUB


def lost(content: bytearray, at: int) -> None:
    """A sector was never written."""
    content[at : at + 512] = bytes(512)


def flipped(content: bytearray, at: int) -> None:
    """One bit."""
    content[at] ^= 1


@pytest.mark.parametrize("spoil", [misdirected, lost, flipped], ids=lambda spoil: spoil.__name__)
def test_sums_name_what_a_base_should_not_hold(spoil: Spoil) -> None:
    replica = Replica(22)
    replica.claim()
    replica.add_point({disk: [[(0, 64, "random")]] for disk in DISKS})
    replica.random_point()
    replica.promote(replica.journal.points()[-1].number)
    for disk in DISKS:
        sums, seed = read_sums(replica.store, MACHINE, disk), replica.keys[disk].digest_seed()
        base = replica.bases[disk]
        good = bytes(base._data)
        assert list(differing(base, sums, seed)) == []
        for at in range(0, len(good) - 2 * SUB, 24 * KIB):
            base._data[:] = good
            spoil(base._data, at)
            wrong = {n // BLOCK_BYTES_MAX for n in range(len(good)) if base._data[n] != good[n]}
            with contextlib.suppress(KeyError):
                assert set(differing(base, sums, seed)) == wrong, f"{spoil.__name__} at {at}"
        base._data[:] = good
