"""Epochs of one machine over several stores: a claim may leap over what was another store's."""

from __future__ import annotations

import struct

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.journal.chain import LEAP_MAX, Journal
from secondsite.journal.chain_errors import EpochSuperseded, ProposalInvalid
from secondsite.journal.drop import delete_dropped, drop_points
from secondsite.journal.errors import FormatUnknown, ObjectDamaged
from secondsite.journal.format import RECORD_CLAIM, RECORD_FLAG_LEAP, RECORD_HEADER
from secondsite.journal.manifest import RECORD_BYTES_MAX, decode_record, encode_record
from secondsite.journal.names import log_name
from secondsite.model.points import Claim, known_epoch
from support.journal_model import MACHINE, Replica


def claim_above(replica: Replica, above: int) -> Claim:
    journal = replica.journal
    return journal.claim(
        name="shop",
        claimant="gateway-b",
        reason="reverse",
        clock=SystemClock(),
        expected=journal.head(),
        above=above,
    )


def flags(replica: Replica, number: int) -> int:
    data = replica.store.get(log_name(MACHINE, number), size_bytes_max=RECORD_BYTES_MAX)
    required: int = RECORD_HEADER.unpack_from(data)[3]
    return required


def test_the_first_claim_of_a_store_is_above_all_of_another() -> None:
    made = Replica(seed=1)
    claim = claim_above(made, 7)
    assert (claim.number, claim.epoch, flags(made, 1)) == (1, 8, RECORD_FLAG_LEAP)
    afresh = Journal(made.store, MACHINE, made.vault)
    assert (afresh.head().epoch, afresh.head().claim) == (8, claim)
    made.random_point()
    assert [point.epoch for point in afresh.points()] == [8]
    assert claim_above(made, 8).epoch == 9, "as any other claim"
    assert flags(made, afresh.head().number) == 0, "whose bytes are what they always were"


def test_an_upload_of_an_epoch_of_before_is_refused() -> None:
    made = Replica(seed=1)
    made.claim()
    late = made.proposal([])
    other = Replica(seed=2)
    claim_above(other, 1)
    for epoch in (1, 3):
        with pytest.raises(EpochSuperseded):
            other.journal.commit(msgspec.structs.replace(late, epoch=epoch), clock=SystemClock())
    assert other.journal.points() == []


def test_it_leaps_over_what_was_deleted_and_is_read_from_there() -> None:
    made = Replica(seed=3)
    made.claim()
    made.random_point()
    first = made.claim("gateway-b")
    claim = made.journal.head().claim
    assert claim is not None
    drop_points(made.journal, claim, clock=SystemClock())
    second = claim_above(made, first + 4)
    drop_points(made.journal, second, clock=SystemClock())
    delete_dropped(made.journal)
    afresh = Journal(made.store, MACHINE, made.vault)
    assert (afresh.head().epoch, afresh.records()) == (first + 5, [second])


def test_a_leap_counts_only_from_where_it_was_made() -> None:
    """A faulty program's claim, which names another epoch before it, changes nothing."""
    made = Replica(seed=4)
    made.claim()
    head = made.journal.head()
    wrong = Claim(
        machine=MACHINE,
        machine_name="shop",
        number=head.number + 1,
        previous_hash=head.hash,
        epoch=9,
        claimant="gateway-c",
        reason="reverse",
        nonce="ab" * 16,
        claimed_at="2026-05-04T12:00:00+00:00",
        former=5,
    )
    made.store.put(log_name(MACHINE, wrong.number), encode_record(wrong, made.vault.log_key(MACHINE)))
    assert Journal(made.store, MACHINE, made.vault).head().epoch == 1


@pytest.mark.parametrize(
    ("known", "wrong"), [(1, ""), (9, "it knows of epoch 9"), (-1, "it knows of epoch -1")]
)
def test_a_claim_knows_of_no_later_epoch_than_its_own(known: int, wrong: str) -> None:
    made = Replica(seed=6)
    key, head = made.vault.log_key(MACHINE), made.journal.head()
    claim = made.journal.claim(
        name="shop", claimant="gateway-b", reason="reverse", clock=SystemClock(), expected=head, above=8
    )
    assert "known" not in bytes(made.store.get(log_name(MACHINE, 1), size_bytes_max=RECORD_BYTES_MAX)).decode(
        "latin1"
    ), "as records of before"
    assert known_epoch(claim) == 8
    data = encode_record(msgspec.structs.replace(claim, known=known), key)
    if not wrong:
        read = decode_record(data, key)
        assert isinstance(read, Claim)
        assert known_epoch(read) == 1
        return
    with pytest.raises(ObjectDamaged, match=wrong):
        decode_record(data, key)


def test_who_does_not_know_leaps_refuses_them_and_one_claim_does_not_use_all_epochs_up() -> None:
    made = Replica(seed=5)
    with pytest.raises(ProposalInvalid, match="far above"):
        claim_above(made, LEAP_MAX + 1)
    claim_above(made, 3)
    data = bytearray(made.store.get(log_name(MACHINE, 1), size_bytes_max=RECORD_BYTES_MAX))
    (required,) = struct.unpack_from("<I", data, 12)
    assert (required, data[10]) == (RECORD_FLAG_LEAP, RECORD_CLAIM)
    struct.pack_into("<I", data, 12, RECORD_FLAG_LEAP | 4)
    with pytest.raises(FormatUnknown):
        decode_record(bytes(data), None)
