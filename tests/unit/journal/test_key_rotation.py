"""The vault key of a journal is rotated: all reads as before, and the old key can add nothing any more."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.journal import chain_load, log_pages, page_write
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import KEY_ROTATION, Journal
from secondsite.journal.episodes import (
    Dismissal,
    EpisodeRecord,
    episode_name,
    episodes_prefix,
    keep_dismissal,
    keep_episode,
    read_episodes,
)
from secondsite.journal.errors import KeyRetired, ObjectDamaged, WrongKey
from secondsite.journal.key_rotation import delete_replaced, is_resealed, reseal, uses
from secondsite.journal.keys import KeyRing, VaultKey, encode_wrapped
from secondsite.journal.log_pages import encode_log_page
from secondsite.journal.manifest import RECORD_BYTES_MAX, encode_record, record_hash
from secondsite.journal.names import (
    log_name,
    log_page_name,
    log_pages_prefix,
    log_prefix,
    state_name,
    wrapped_key_name,
    wrapped_keys_prefix,
)
from secondsite.journal.page_write import write_log_page
from secondsite.journal.scrub import scrub
from secondsite.journal.state import STATE_BYTES_MAX, encode_state
from secondsite.journal.store import StoreLocked
from secondsite.model.points import Claim
from support.journal_model import DISKS, MACHINE, Replica

AT = "2026-01-01T00:00:00+00:00"


def locked(error: StoreLocked) -> None:
    raise AssertionError(error)


@pytest.fixture
def replica() -> Replica:
    """Six points, the data keys wrapped in the store with the first vault key."""
    made = Replica(3)
    made.claim()
    for disk, key in made.keys.items():
        made.store.put(wrapped_key_name(MACHINE, key.id), encode_wrapped(made.vault, MACHINE, disk, key))
    for _ in range(6):
        made.random_point()
    return made


def rotate(replica: Replica, *, finish: bool = True) -> VaultKey:
    """From here on the replica's journal is the new key's; returns the old one."""
    old = replica.vault
    replica.vault = old.renew(AT)
    replica.journal = Journal(replica.store, MACHINE, replica.vault)
    replica.ring = KeyRing(replica.store, MACHINE, replica.vault)  # nothing held: what is in the store counts
    reseal(replica.journal, replica.vault, claimant="gateway-b", clock=replica.clock)
    if finish:
        delete_replaced(replica.journal, replica.vault, on_locked=locked)
    return old


def check(replica: Replica) -> None:
    """Every point reads what it read, by a reader that begins afresh."""
    replica.journal = Journal(replica.store, MACHINE, replica.vault)
    replica.ring = KeyRing(replica.store, MACHINE, replica.vault)
    replica.check()


@pytest.mark.parametrize("finish", [False, True])
def test_all_reads_as_before_and_goes_on(replica: Replica, finish: bool) -> None:
    segments = [n for n in replica.store.list("") if "/segments/" in n]
    for _ in range(3):
        rotate(replica, finish=finish)
        assert is_resealed(replica.journal, replica.vault)
        check(replica)
        replica.random_point()
        check(replica)
    assert set(segments) <= set(replica.store.list("")), "no data was rewritten"
    found = scrub(replica.journal, replica.ring, lambda _: MemoryBase(0), clock=FakeClock())
    assert not found.damaged
    names = list(replica.store.list(wrapped_keys_prefix(MACHINE)))
    assert len(names) == (2 if finish else 8)


def test_a_machine_of_which_nothing_is_but_a_key(replica: Replica) -> None:
    replica.store = type(replica.store)(replica.faults)
    rotate(replica)
    assert is_resealed(replica.journal, replica.vault)
    assert replica.journal.head().number == 0
    replica.claim()


def test_rotating_again_changes_nothing(replica: Replica) -> None:
    rotate(replica)
    before = list(replica.store.list(""))
    reseal(replica.journal, replica.vault, claimant="gateway-b", clock=replica.clock)
    assert delete_replaced(replica.journal, replica.vault, on_locked=locked) == 0
    assert list(replica.store.list("")) == before


def test_the_boundary_is_a_claim_that_raises_nothing(replica: Replica) -> None:
    head = replica.journal.head()
    rotate(replica)
    after = replica.journal.head()
    assert (after.number, after.epoch, after.point) == (head.number + 1, head.epoch, head.point)
    boundary = replica.journal.records()[-1]
    assert isinstance(boundary, Claim)
    assert boundary.reason == KEY_ROTATION
    keyed = replica.journal.state().keyed
    assert keyed is not None
    assert (keyed.number, keyed.key) == (after.number, replica.vault.id)


def test_retention_takes_the_boundary_away_and_the_rule_stays(replica: Replica) -> None:
    old = rotate(replica)
    for _ in range(4):
        replica.random_point()
    numbers = sorted(replica.points)
    assert replica.merge(numbers[3], numbers[-2])
    check(replica)
    replica.promote(numbers[-2])
    check(replica)
    assert replica.journal.records()[0].number == numbers[-2]
    forge_record(replica, old)
    with pytest.raises(KeyRetired):
        Journal(replica.store, MACHINE, replica.vault).points()


def forge_record(replica: Replica, key: VaultKey, number: int | None = None) -> str:
    """What a thief of `key` who can write the store adds at the log's end."""
    head = replica.journal.head()
    claim = Claim(
        machine=MACHINE,
        machine_name="web",
        number=head.number + 1,
        previous_hash=head.hash,
        epoch=head.epoch + 1,
        claimant="thief",
        reason="failover",
        nonce="ab" * 16,
        claimed_at=AT,
    )
    name = log_name(MACHINE, number or claim.number)
    replica.store.put(name, encode_record(claim, key.log_key(MACHINE)))
    return name


def test_the_old_key_seals_no_record_any_more(replica: Replica) -> None:
    old = rotate(replica)
    name = forge_record(replica, old)
    with pytest.raises(KeyRetired) as caught:
        replica.journal.points()
    assert old.id in str(caught.value)
    assert replica.vault.id in str(caught.value)
    found = scrub(replica.journal, replica.ring, lambda _: MemoryBase(0), clock=FakeClock())
    assert [damage.object for damage in found.damaged] == [name]
    replica.store.delete(name)
    check(replica)


def test_nor_after_the_logs_end_was_taken_away(replica: Replica) -> None:
    """The boundary itself is deleted and replaced: the state remembers its number."""
    old = rotate(replica)
    boundary = replica.journal.head().number
    replica.store.delete(log_name(MACHINE, boundary))
    replica.journal = Journal(replica.store, MACHINE, replica.vault)
    forge_record(replica, old)
    with pytest.raises(KeyRetired, match=f"since record {boundary}"):
        Journal(replica.store, MACHINE, replica.vault).points()


def test_nor_a_state_once_the_rotation_is_finished(replica: Replica) -> None:
    old = rotate(replica)
    state = replica.journal.state()
    forged = msgspec.structs.replace(state, generation=state.generation + 1, keyed=None)
    name = state_name(MACHINE, forged.generation)
    replica.store.put(name, encode_state(forged, old.log_key(MACHINE)))
    with pytest.raises(KeyRetired):
        replica.journal.state()  # it had read a newer key's
    fresh = dataclasses.replace(replica.vault)
    assert Journal(replica.store, MACHINE, fresh).state() == forged, "a reader without memory cannot know"
    fresh.strictness.finished = True
    with pytest.raises(KeyRetired, match="since the rotation was finished"):
        Journal(replica.store, MACHINE, fresh).state()


def test_nor_a_page_of_the_log(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (log_pages, chain_load, page_write):
        monkeypatch.setattr(module, "RECORDS", 4)
    assert write_log_page(replica.journal, without=set())
    old = rotate(replica)
    assert list(replica.store.list(log_pages_prefix(MACHINE))) == [], "dropped, to be made again"
    log = [replica.store.get(log_name(MACHINE, n), size_bytes_max=RECORD_BYTES_MAX) for n in range(1, 5)]
    # the last of them is forged, under the hash the next one names
    hashes = [record_hash(data) for data in log]
    point = msgspec.structs.replace(replica.journal.point(4), checkpoint="forged")
    log[3] = encode_record(point, old.log_key(MACHINE))
    monkeypatch.setattr(log_pages, "record_hash", lambda data: hashes[log.index(data)])
    page = encode_log_page(1, log, old.log_key(MACHINE))
    monkeypatch.setattr(log_pages, "record_hash", record_hash)
    assert page is not None
    replica.store.put(log_page_name(MACHINE, 1), page)
    check(replica)  # it is as if it were not there
    assert replica.journal.point(4).checkpoint != "forged"
    replica.store.delete(log_page_name(MACHINE, 1))
    assert write_log_page(replica.journal, without=set())
    check(replica)


def test_a_writer_with_the_old_key_is_told(replica: Replica) -> None:
    straggler = replica.journal
    rotate(replica)
    with pytest.raises(WrongKey) as caught:
        straggler.claim(
            name="web", claimant="a", reason="failover", clock=replica.clock, expected=straggler.head()
        )
    assert "before this vault's key was rotated" in caught.value.sentences()[1]
    check(replica)


def test_a_writer_with_the_old_key_in_the_middle_of_it(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the number the boundary wanted: the boundary comes after it, and nothing is lost."""
    old = Replica.__new__(Replica)
    old.__dict__.update(replica.__dict__)
    put = replica.store.put
    armed = [True]

    def racing(key: str, data: bytes | bytearray | memoryview) -> None:
        if armed and key.startswith(log_prefix(MACHINE)):
            armed.clear()
            old.random_point()
        put(key, data)

    monkeypatch.setattr(replica.store, "put", racing)
    rotate(replica)
    assert not armed
    assert isinstance(replica.journal.records()[-1], Claim)
    check(replica)
    replica.newest = old.newest
    replica.checkpoint = old.checkpoint
    replica.random_point()
    check(replica)


def test_the_old_file_and_a_wrong_one_are_refused_in_words(replica: Replica) -> None:
    old = rotate(replica)
    for wrong in (old, VaultKey.create()):
        with pytest.raises(WrongKey) as caught:
            Journal(replica.store, MACHINE, wrong).points()
        assert replica.vault.id in str(caught.value)
        assert wrong.id in str(caught.value)
        with pytest.raises(WrongKey, match=replica.vault.id):
            KeyRing(replica.store, MACHINE, wrong).get(replica.keys[DISKS[0]].id)


def test_a_retired_key_opens_a_copy_of_before(replica: Replica) -> None:
    old = replica.vault
    new = old.renew(AT).renew(AT)
    check(replica)
    replica.vault = new
    check(replica)
    found = new.as_of(old.id)
    assert found is not None
    assert (found.id, found.generation, found.retired) == (old.id, 1, ())
    assert new.as_of(new.id) is None


def test_episodes_are_sealed_again(replica: Replica) -> None:
    episode = EpisodeRecord(
        machine=MACHINE,
        first=3,
        number=4,
        clean=2,
        clean_at=AT,
        found_at=AT,
        reason="because",
        critical=True,
        scrambled_bytes=1,
    )
    dismissal = Dismissal(machine=MACHINE, first=3, until=5, note="", by="me", at=AT)
    keep_episode(replica.journal, episode)
    before = read_episodes(replica.journal)
    old = rotate(replica, finish=False)
    assert read_episodes(replica.journal) == before
    delete_replaced(replica.journal, replica.vault, on_locked=locked)
    assert read_episodes(replica.journal) == before
    assert len(list(replica.store.list(episodes_prefix(MACHINE)))) == 1
    # a dismissal by a thief of the old key, under either name
    keep_dismissal(Journal(replica.store, MACHINE, None), dismissal)
    name = episode_name(MACHINE, 3, dismissed=True)
    replica.store.delete(name)
    thief = Journal(replica.store, MACHINE, None)
    thief._key = old.log_key(MACHINE)
    keep_dismissal(thief, dismissal)
    assert read_episodes(replica.journal) == before, "it does not count"
    data = replica.store.get(name, size_bytes_max=STATE_BYTES_MAX)
    replica.store.put(f"{name}.{replica.vault.id}", data)
    with pytest.raises(KeyRetired):
        read_episodes(replica.journal)
    replica.store.delete(f"{name}.{replica.vault.id}")
    keep_dismissal(replica.journal, dismissal)
    assert read_episodes(replica.journal)[0].dismissed == dismissal


def test_what_needs_which_key(replica: Replica) -> None:
    old = replica.vault
    assert uses(replica.journal, old)[old.id].needed
    rotate(replica, finish=False)
    found = uses(replica.journal, replica.vault)
    assert (found[old.id].points, found[old.id].wrapped, found[old.id].copies) == (6, 0, 2)
    assert (found[replica.vault.id].wrapped, found[replica.vault.id].state) == (2, True)
    delete_replaced(replica.journal, replica.vault, on_locked=locked)
    assert uses(replica.journal, replica.vault)[old.id].copies == 0
    last = replica.random_point().number
    replica.promote(last)
    assert old.id not in uses(replica.journal, replica.vault), "retention took the last point of its time"


def test_a_damaged_new_wrapping_is_made_again_from_the_old(replica: Replica) -> None:
    rotate(replica, finish=False)
    key = replica.keys[DISKS[0]]
    name = f"{wrapped_key_name(MACHINE, key.id)}.{replica.vault.id}"
    data = bytearray(replica.store.get(name, size_bytes_max=4096))
    data[-1] ^= 1
    replica.store.delete(name)
    replica.store.put(name, data)
    assert KeyRing(replica.store, MACHINE, replica.vault).get(key.id) == key, "one sound wrapping is enough"
    with pytest.raises(ObjectDamaged):
        delete_replaced(replica.journal, replica.vault, on_locked=locked)
    assert len(list(replica.store.list(wrapped_keys_prefix(MACHINE)))) >= 3, "the good one stays"
    reseal(replica.journal, replica.vault, claimant="b", clock=replica.clock)
    delete_replaced(replica.journal, replica.vault, on_locked=locked)
    check(replica)


def test_a_wrapping_goes_only_where_the_new_one_holds_the_same_key(replica: Replica) -> None:
    rotate(replica, finish=False)
    disk, key = DISKS[0], replica.keys[DISKS[0]]
    name = f"{wrapped_key_name(MACHINE, key.id)}.{replica.vault.id}"
    replica.store.delete(name)
    other = dataclasses.replace(key, secret=bytes(32))
    replica.store.put(name, encode_wrapped(replica.vault, MACHINE, disk, other))
    with pytest.raises(ObjectDamaged, match="another key than"):
        delete_replaced(replica.journal, replica.vault, on_locked=locked)
    assert wrapped_key_name(MACHINE, key.id) in set(replica.store.list(wrapped_keys_prefix(MACHINE)))


def test_record_hashes_carry_what_the_old_key_sealed(replica: Replica) -> None:
    """A thief of the old key cannot change what is before the boundary either: the chain is of hashes."""
    old = rotate(replica)
    name = log_name(MACHINE, 4)
    data = replica.store.get(name, size_bytes_max=RECORD_BYTES_MAX)
    point = msgspec.structs.replace(replica.journal.point(4), checkpoint="forged")
    forged = encode_record(point, old.log_key(MACHINE))
    assert record_hash(forged) != record_hash(data)
    replica.store.delete(name)
    replica.store.put(name, forged)
    with pytest.raises(Exception, match="hash of the record before"):
        Journal(replica.store, MACHINE, replica.vault).points()
