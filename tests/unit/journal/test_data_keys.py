"""New data keys for a disk: old segments keep theirs, and everything that spans both goes on."""

from __future__ import annotations

import pytest

from secondsite.base.clock import FakeClock
from secondsite.journal import page_catalog, page_write, pages
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.errors import FormatUnknown, KeyMissing
from secondsite.journal.format import (
    BOX_FLAG_LATER_KEY,
    BOX_HEADER,
    RECORD_FLAG_KEYS,
    RECORD_HEADER,
    checksum,
)
from secondsite.journal.keys import DiskKey, KeyRing, VaultKey, decode_wrapped, encode_wrapped
from secondsite.journal.manifest import RECORD_BYTES_MAX
from secondsite.journal.names import log_name, pages_prefix, wrapped_key_name
from secondsite.journal.page_write import write_page
from secondsite.journal.scrub import scrub
from secondsite.model.ids import KeyId
from support.journal_model import DISKS, MACHINE, SUB, Replica


@pytest.fixture
def replica() -> Replica:
    made = Replica(5)
    made.claim()
    for _ in range(4):
        made.random_point()
    return made


def renew(replica: Replica) -> None:
    for disk in DISKS:
        key = replica.keys[disk].renew()
        replica.keys[disk] = key
        replica.ring.add(key)


def keys_of(replica: Replica, number: int) -> set[KeyId]:
    """That the segments of a point are sealed with, as it names them."""
    point = replica.journal.point(number)
    states = {disk.id: disk for disk in point.disks}
    return {ref.sealed_by(states[ref.disk]) for ref in point.segments}


def test_a_later_key_carries_what_is_compared_over_years() -> None:
    vault, key = VaultKey.create(), DiskKey.create()
    later = key.renew().renew()
    assert later.origin == key.id
    assert later.digest_seed() == key.digest_seed()
    assert later.segment_key(bytes(32)) != key.segment_key(bytes(32))
    data = encode_wrapped(vault, MACHINE, DISKS[0], later)
    assert decode_wrapped(vault, data) == (MACHINE, DISKS[0], later)
    assert BOX_HEADER.unpack_from(data)[3] == BOX_FLAG_LATER_KEY, "who does not know it must refuse"
    assert BOX_HEADER.unpack_from(encode_wrapped(vault, MACHINE, DISKS[0], key))[3] == 0


def test_all_reads_merges_and_is_promoted_across_the_change(replica: Replica) -> None:
    first = {key.id for key in replica.keys.values()}
    for _ in range(3):
        renew(replica)
        replica.random_point()
        replica.random_point()
        replica.check()
    newest = {key.id for key in replica.keys.values()}
    numbers = sorted(replica.points)
    assert keys_of(replica, numbers[0]) <= first
    replica.add_point({disk: [[(0, 60, "random")]] for disk in DISKS})
    assert keys_of(replica, max(replica.points)) == newest
    assert replica.merge(numbers[1], max(replica.points))
    replica.check()
    assert keys_of(replica, max(replica.points)) == newest, "merging writes with the newest"
    found = scrub(replica.journal, replica.ring, lambda _: MemoryBase(0), clock=FakeClock())
    # the model wraps no keys in its store
    assert {damage.kind for damage in found.damaged} == {"key"}
    replica.promote(max(replica.points))
    replica.check()
    renew(replica)
    replica.random_point()
    replica.check()


def test_a_scrub_reads_every_key_a_point_names(replica: Replica) -> None:
    wrap(replica)
    renew(replica)
    wrap(replica)
    replica.add_point({DISKS[0]: [[(0, 9, "random")]]})
    ring = KeyRing(replica.store, MACHINE, replica.vault)
    assert not scrub(replica.journal, ring, lambda _: None, clock=FakeClock()).damaged
    lost = wrapped_key_name(MACHINE, replica.keys[DISKS[0]].id)
    replica.store.delete(lost)
    ring = KeyRing(replica.store, MACHINE, replica.vault)
    found = scrub(replica.journal, ring, lambda _: None, clock=FakeClock())
    assert [damage.object for damage in found.damaged] == [lost]
    with pytest.raises(KeyMissing):
        ring.get(replica.keys[DISKS[0]].id)


def wrap(replica: Replica) -> None:
    for disk, key in replica.keys.items():
        name = wrapped_key_name(MACHINE, key.id)
        replica.store.put(name, encode_wrapped(replica.vault, MACHINE, disk, key))


def test_pages_are_of_one_key(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))
    write = {disk: [[(3, 4, "random")]] for disk in DISKS}
    while replica.journal.head().number < 10:
        replica.add_point(write)
    renew(replica)
    while replica.journal.head().number < 17:
        replica.add_point(write)
    while write_page(replica.journal, replica.ring, without=set()) is not None:
        pass
    made = [name.rpartition("/")[2].partition("-")[0] for name in replica.store.list(pages_prefix(MACHINE))]
    assert {int(first) for first in made} == {1, 5, 9, 13}, "what is overwritten in a stretch does not count"
    replica.check()


def test_a_page_over_two_keys_is_not_made(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))
    for place in range(4):
        replica.add_point({disk: [[(place * 8, 4, "random")]] for disk in DISKS})
        renew(replica)
    without: set[tuple[str, int, int]] = set()
    while write_page(replica.journal, replica.ring, without=without) is not None:  # type: ignore[arg-type]
        pass
    assert {first for _, _, first in without} == {5}
    replica.check()


def test_a_record_that_names_later_keys_says_so(replica: Replica) -> None:
    def flags(number: int) -> int:
        data = replica.store.get(log_name(MACHINE, number), size_bytes_max=RECORD_BYTES_MAX)
        required: int = RECORD_HEADER.unpack_from(data)[3]
        return required

    assert flags(max(replica.points)) == 0
    renew(replica)
    replica.add_point({DISKS[0]: [[(0, SUB // SUB, "random")]]})
    assert flags(max(replica.points)) == RECORD_FLAG_KEYS


def test_an_unknown_flag_is_refused(replica: Replica) -> None:
    vault = VaultKey.create()
    data = bytearray(encode_wrapped(vault, MACHINE, DISKS[0], DiskKey.create()))
    data[12] = 2
    data[72:80] = checksum(bytes(data[:72])).to_bytes(8, "little")
    with pytest.raises(FormatUnknown, match="needs features 0x2"):
        decode_wrapped(vault, bytes(data))
