"""No record grows beyond what its readers take: refused at each place, before anything is written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.source import firstcopying as seed
from secondsite.journal import manifest, merge
from secondsite.journal.errors import RecordTooLarge
from secondsite.journal.format import (
    PROPOSAL_BYTES_MAX,
    RECORD_BODY_BYTES_MAX,
    RECORD_CLAIM,
    REF_BYTES,
    SEGMENT_DATA_BYTES_MAX,
)
from secondsite.journal.merge import NotMergeable
from secondsite.model.ids import DiskId, SegmentId
from secondsite.model.points import Point, PointProposal, SegmentRef
from secondsite.transfer import spool as spooling
from secondsite.transfer import wire
from secondsite.transfer.spool import Spool
from support.journal_model import Replica
from support.source_rig import Rig
from support.transfer import MACHINE, Events, Maker


def test_a_body_of_one_byte_more_is_refused_and_not_asserted() -> None:
    body = bytes(RECORD_BODY_BYTES_MAX + 1)
    with pytest.raises(RecordTooLarge, match=f"it would take {len(body)} bytes"):
        manifest.frame(RECORD_CLAIM, 7, body, None)
    framed = manifest.frame(RECORD_CLAIM, 7, body[:-1], None)
    assert len(manifest.open_frame("a record", framed, None)[2]) == RECORD_BODY_BYTES_MAX


def test_what_comes_over_the_wire_fits_a_record_with_all_a_receiver_adds() -> None:
    assert wire.POINT_BYTES_MAX == PROPOSAL_BYTES_MAX
    proposal = Maker().proposal(Maker().segment(1000))
    disks = tuple(
        msgspec.structs.replace(proposal.disks[0], id=DiskId(f"disk{n}" * 10), fingerprint="f" * 32)
        for n in range(1000)
    )
    fields = {name: getattr(proposal, name) for name in Point.__struct_fields__ if hasattr(proposal, name)}
    point = Point(
        **(fields | {"disks": disks}),
        number=2**53,
        previous_hash="f" * 64,
        committed_at="2026-11-21T00:00:00.000000+00:00",
    )
    bare = msgspec.structs.replace(
        proposal, disks=tuple(msgspec.structs.replace(disk, fingerprint=None) for disk in disks)
    )
    added = len(msgspec.json.encode(point)) - len(msgspec.json.encode(bare))
    assert 0 < added < RECORD_BODY_BYTES_MAX - PROPOSAL_BYTES_MAX


def test_a_segment_takes_no_more_than_is_counted_for_it() -> None:
    ref = SegmentRef(
        disk=DiskId("nvme-of-some-length"),
        id=SegmentId("f" * 32),
        epoch=99_999_999,
        stored_bytes=SEGMENT_DATA_BYTES_MAX * 2,
        data_bytes=2**40,
        hash="f" * 64,
    )
    assert len(msgspec.json.encode(ref)) < REF_BYTES


def test_a_commit_of_too_much_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(5)
    replica.claim()
    replica.random_point()
    before = len(list(replica.store.list("")))
    head = replica.journal.head().number
    monkeypatch.setattr(manifest, "RECORD_BODY_BYTES_MAX", 100)
    with pytest.raises(RecordTooLarge):
        replica.journal.claim(
            name="shop", claimant="x", reason="y" * 200, clock=FakeClock(), expected=replica.journal.head()
        )
    monkeypatch.undo()
    assert (replica.journal.head().number, len(list(replica.store.list("")))) == (head, before)


def test_a_merge_that_no_record_could_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(5)
    replica.claim()
    for _ in range(5):
        replica.random_point()
    points = replica.journal.points()
    monkeypatch.setattr(merge, "PROPOSAL_BYTES_MAX", REF_BYTES * 2)
    before = sorted(replica.store.list(""))
    with pytest.raises(NotMergeable, match="one record cannot name the"):
        merge.merge(replica.journal, points[0].number, points[4].number, replica.ring, clock=replica.clock)
    assert sorted(replica.store.list("")) == before


def test_a_proposal_is_refused_before_it_is_kept_and_the_largest_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Spool:
        return Spool(tmp_path / "spool", limit_bytes=1 << 30, identity=tmp_path / "identity", events=Events())

    spool = opened()
    batch = spool.begin(MACHINE, 1)
    proposal = Maker().proposal()
    size = len(msgspec.json.encode(proposal))
    monkeypatch.setattr(spooling, "PROPOSAL_BYTES_MAX", size - 1)
    with pytest.raises(RecordTooLarge):
        batch.seal(proposal)
    assert not (batch.directory / "proposal").exists()
    monkeypatch.setattr(spooling, "PROPOSAL_BYTES_MAX", size)
    batch.seal(proposal)
    [again] = opened().batches(MACHINE)
    assert isinstance(again.proposal, PointProposal)
    assert again.proposal == proposal


def test_a_first_copy_that_could_not_be_committed_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    rig.scribble(40)
    monkeypatch.setattr(seed, "PROPOSAL_BYTES_MAX", REF_BYTES - 1)
    rig.open()
    try:
        rig.until(lambda: "record.too-large" in rig.codes(), "the refusal")
        assert rig.points() == []
        assert not [key for key in rig.store.list("") if "/segments/" in key]
    finally:
        rig.close()
