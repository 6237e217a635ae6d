"""Pins of living readers: no time of day ends them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.target import digestservice
from secondsite.gateway.target.digestservice import DigestService
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.journal import alive
from secondsite.journal.merge import NotMergeable, merge
from secondsite.transfer.protocols import DigestQuery
from support.control import Events
from support.journal_model import MACHINE, Replica
from support.scrub_model import Scrubbed

YEARS = timedelta(days=3650)


@pytest.fixture
def replica() -> Replica:
    made = Scrubbed(5)  # its keys are in the store
    made.claim()
    for _ in range(5):
        made.random_point()
    return made


def try_merge(replica: Replica) -> bool:
    """By an upkeep whose time of day is years ahead."""
    ids = [point.number for point in replica.journal.points()]
    clock = FakeClock(replica.clock.utc() + YEARS)
    try:
        merge(replica.journal, ids[0], ids[4], replica.ring, clock=clock)
    except NotMergeable:
        return False
    return True


def test_merging_waits_for_a_living_reader_and_not_for_a_dead_one(replica: Replica) -> None:
    number = replica.journal.points()[2].number
    until = (replica.clock.utc() + timedelta(hours=1)).isoformat(timespec="microseconds")
    with alive.reader(MACHINE, "digests-1"), alive.reader(MACHINE, "digests-1"):
        replica.journal.pin(number, "digests-1", "read", until)
        assert not try_merge(replica)
    assert try_merge(replica), "its process is gone, and its time is up"


def test_an_answer_to_the_source_keeps_its_point_while_it_is_read(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    point = replica.journal.points()[2]

    def reread(*_: object) -> None:
        tried.append(try_merge(replica))

    monkeypatch.setattr(digestservice, "reread", reread)
    fingerprints = Fingerprints(
        tmp_path,
        vault=replica.vault,
        bases_of=lambda journal: lambda disk: None,
        clock=replica.clock,
        events=Events(),
    )
    service = DigestService(
        fingerprints, vault=replica.vault, bases_of=lambda journal: lambda disk: None, clock=replica.clock
    )
    disk = point.disks[0]
    query = DigestQuery(
        machine=MACHINE,
        point=point.number,
        disk=disk.id,
        key_id=disk.key_id,
        level="values",
        ranges=(0,),
        reread=True,
    )
    service(replica.journal, query)
    assert tried == [False]
    assert replica.journal.state().pins == ()
