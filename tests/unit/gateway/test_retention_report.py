"""The retention's report over real merges: what arrived is known after any number of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.messages.retention import RetentionReport
from secondsite.gateway.target.retention import Retention
from secondsite.gateway.target.retention_report import RetentionReports
from secondsite.gateway.target.retention_source import policies_of
from secondsite.journal import merge as merging
from secondsite.journal.bases import RawBase
from secondsite.journal.promote import promote
from secondsite.journal.state import BaseState
from secondsite.model.ids import DiskId
from secondsite.model.retention import Policies, RetentionPolicy
from secondsite.transfer.desired import WantedReplica
from support.journal_model import MACHINE, SIZE, Replica


class Rig:
    def __init__(self) -> None:
        self.replica = Replica(3)
        self.replica.claim()
        self.sent: dict[int, int] = {}
        events = EventLog(self.replica.clock)
        policies = Policies(RetentionPolicy.parse("all:1h,1h:1d"))
        self.retention = Retention(
            self.replica.store,
            policies,
            vault=self.replica.vault,
            open_base=None,
            clock=self.replica.clock,
            events=events,
        )
        self.reports = RetentionReports(
            lambda machine: self.replica.journal, self.retention, clock=self.replica.clock
        )

    def points(self, count: int, *, every: float = 5.0) -> None:
        for _ in range(count):
            self.replica.clock.advance(every)
            point = self.replica.random_point()
            self.sent[point.number] = point.sent_bytes

    def report(self, policy: str | None = None) -> RetentionReport:
        return self.reports.report(MACHINE, policy)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.retention.close()


def test_what_arrived_is_the_same_before_and_after_merges_of_merges(rig: Rig) -> None:
    rig.points(24)
    [first, *_] = [point.number for point in rig.replica.journal.points()]
    arrived = sum(sent for number, sent in rig.sent.items() if number > first)
    before = rig.report()
    assert before.stored_bytes_per_day == pytest.approx(arrived / (23 * 5) * 86400)
    assert before.journal_bytes == sum(rig.sent.values())
    for after, last in ((4, 8), (8, 12), (12, 16), (4, 16), (16, 20)):
        assert rig.replica.merge(after, last)
    again = rig.report()
    assert again.stored_bytes_per_day == pytest.approx(before.stored_bytes_per_day)
    assert again.point_seconds == pytest.approx(5)
    assert again.journal_bytes < before.journal_bytes
    state = rig.replica.journal.state()
    [span] = [span for span in state.spans if span.last == 16]
    made = rig.replica.journal.read_span(span.id)
    assert made is not None
    assert made.arrived_bytes == sum(rig.sent[number] for number in range(5, 17))
    assert again.cost is not None
    minute = rig.report("all:10s,60s:10min").cost
    assert minute is not None
    left = sum(segment.stored_bytes for segment in made.segments)
    assert minute.shares[0].share == pytest.approx(left / made.arrived_bytes)
    assert minute.shares[0].measured_seconds == 60


def test_spans_that_do_not_know_and_resynchronisations_are_left_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.points(6)
    monkeypatch.setattr(merging, "_arrived", lambda *_: 0)  # as versions before wrote spans
    assert rig.replica.merge(2, 4)
    rig.replica.clock.advance(5)
    whole = [
        (disk, rig.replica.segment(disk, 1, [(0, 60, "random")])) for disk in rig.replica.now
    ]  # everything again
    rig.replica.commit(rig.replica.proposal([ref for _, ref in whole], whole=True))
    rig.points(2)
    told = [5, 6, 7, 9, 10]  # 2 is the oldest, 3 and 4 are the span, 8 is the resynchronisation
    report = rig.report()
    expected = sum(rig.sent[number] for number in told) / (5 * len(told)) * 86400
    assert report.stored_bytes_per_day == pytest.approx(expected)
    assert rig.replica.merge(4, 6)
    assert rig.replica.merge(2, 6)  # of one that does not know: nor does it
    spans = rig.replica.journal.state().spans
    assert [msgspec.structs.asdict(s)["arrived_bytes"] for s in map(_read(rig), spans)] == [0]


def _read(rig: Rig):  # type: ignore[no-untyped-def]
    return lambda span: rig.replica.journal.read_span(span.id)


def test_bases_are_shown_as_they_are_and_as_missing(rig: Rig, tmp_path: Path) -> None:
    rig.points(4)
    journal = rig.replica.journal

    def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> RawBase:
        return RawBase.create(tmp_path / f"{disk}.raw", size_bytes)

    promote(journal, 2, rig.replica.ring, open_base, clock=rig.replica.clock)
    bases = {base.disk: base for base in rig.report().bases}
    assert bases[DiskId("vda")].size_bytes == SIZE
    for disk, base in bases.items():
        assert base.allocated_bytes == (tmp_path / f"{disk}.raw").stat().st_blocks * 512
    (tmp_path / "vda.raw").unlink()
    assert rig.report().bases[0].allocated_bytes is None
    # the point in the base costs nothing in the journal
    assert rig.report().journal_bytes == sum(sent for number, sent in rig.sent.items() if number > 2)


def test_one_point_tells_nothing_and_none_is_no_error(rig: Rig) -> None:
    assert rig.report().points == 0
    rig.points(1)
    report = rig.report()
    assert (report.points, report.cost, report.stored_bytes_per_day) == (1, None, None)


def test_a_server_that_wants_less_has_less_kept(rig: Rig, tmp_path: Path) -> None:
    desired = DesiredState(tmp_path / "desired.json")
    rig.retention.policies = policies_of(rig.retention.policies, desired)
    rig.points(300, every=60.0)  # five hours
    rig.retention._add(rig.replica.journal)
    upkeep = rig.retention._machines[MACHINE]
    before = rig.report()
    kept = WantedReplica(item="i", revision=1, machine=MACHINE, name="shop", source="a", retention="latest+2")
    desired.change(lambda now: dataclasses.replace(now, replicas={MACHINE: kept}))
    after = rig.report()
    assert (before.source, after.source) == ("this gateway's configuration", "the server")
    assert upkeep.policy() == RetentionPolicy.parse("latest+2")  # what the next pass goes by
    left = after.points - after.next_pass.merged - after.next_pass.leaving
    assert left <= 4 < before.points - before.next_pass.merged - before.next_pass.leaving
