"""Verification by the clock, and what a gateway keeps of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.gateway.messages.verdicts import VerificationState, VerifyRequest
from secondsite.gateway.target.scrub import NoVerification, Scrubs, VerificationRunning
from secondsite.journal.episodes import EpisodeRecord, keep_episode
from secondsite.model.events import Severity
from support.control import Events
from support.journal_model import DISKS, MACHINE
from support.scrub_model import Scrubbed

WEEK = 7 * 86400.0


def until(condition: Callable[[], bool], what: str) -> None:
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + 30
    while not condition():
        assert clock.monotonic() < end, f"{what} did not happen"
        clock.wait(never, 0.01)


@pytest.fixture
def replica() -> Scrubbed:
    made = Scrubbed(3)
    made.claim()
    for _ in range(3):
        made.add_point({disk: [[(4, 20, "random")]] for disk in DISKS})
    return made


class Place:
    """One gateway's verifications; `open` as often as it starts."""

    def __init__(self, root: Path, replica: Scrubbed) -> None:
        self.root, self.replica = root, replica
        self.clock, self.events = FakeClock(), Events()

    @contextmanager
    def open(self, *, every_seconds: float | None = None, start: bool = True) -> Iterator[Scrubs]:
        scrubs = Scrubs(
            self.replica.store,
            self.replica.vault,
            state_dir=self.root / "state",
            work_dir=self.root,
            clock=self.clock,
            events=self.events,
            every_seconds=every_seconds,
        )
        if start:
            scrubs.start()
        try:
            yield scrubs
        finally:
            scrubs.close()


@pytest.fixture
def place(tmp_path: Path, replica: Scrubbed) -> Place:
    return Place(tmp_path, replica)


def test_the_first_is_due_a_week_after_the_machine_was_seen_and_then_every_week(place: Place) -> None:
    with place.open(every_seconds=WEEK) as scrubs:
        until(lambda: place.events.codes().count("scrub.done") >= 3, "three weeks")
        assert place.clock.monotonic() >= 3 * WEEK
    done = place.events.codes().count("scrub.done")
    assert done <= place.clock.monotonic() / WEEK
    # a restart does not begin the week again
    before = place.clock.monotonic()
    with place.open(every_seconds=WEEK) as scrubs:
        until(lambda: place.events.codes().count("scrub.done") > done, "the next")
        status = scrubs.status(MACHINE)
    assert place.clock.monotonic() - before < 2 * WEEK
    assert status.requested_by == ""


def test_the_newest_proved_point_is_remembered(place: Place) -> None:
    replica = place.replica
    with place.open() as scrubs:
        assert scrubs.last_verified(MACHINE) is None
        assert scrubs.summary(MACHINE) is None
        with pytest.raises(NoVerification):
            scrubs.status(MACHINE)
        verify(scrubs)
        assert scrubs.last_verified(MACHINE) == 4
        replica.flip(replica.journal.segment_name(replica.journal.point(4).segments[0]), 700)
        verify(scrubs)
        assert scrubs.last_verified(MACHINE) == 3
    [event] = [event for event in place.events.all if event.code == "scrub.damaged"]
    assert event.severity is Severity.CRITICAL
    assert "points 4 are lost" in event.text
    with place.open(start=False) as scrubs:
        assert scrubs.verified(MACHINE) == {3}
        summary = scrubs.summary(MACHINE)
        assert summary is not None
        assert (summary.last_verified, summary.damaged, summary.lost) == (3, 1, 1)


def verify(scrubs: Scrubs) -> None:
    scrubs.request(MACHINE, VerifyRequest(requested_by="the test"))
    until(lambda: scrubs.status(MACHINE).state is not VerificationState.RUNNING, "the end")
    assert scrubs.status(MACHINE).state is VerificationState.COMPLETED


def test_one_at_a_time_and_a_cancelled_one_says_nothing(place: Place) -> None:
    with place.open(start=False) as scrubs:
        scrubs.request(MACHINE, VerifyRequest(requested_by="anna"))
        with pytest.raises(VerificationRunning, match="anna"):
            scrubs.request(MACHINE, VerifyRequest(requested_by="ben"))
        scrubs.cancel(MACHINE)
        scrubs.start()
        until(lambda: not scrubs._jobs, "the end")
    assert place.events.codes() == []


def test_damaged_records_of_ours_count_as_none(place: Place) -> None:
    with place.open() as scrubs:
        verify(scrubs)
    for name in ("scrubs", "verified"):
        [path] = (place.root / "state" / name).iterdir()
        path.write_bytes(b'{"version": "?"')
    with place.open() as scrubs:
        assert scrubs.last(MACHINE) is None
        assert scrubs.last_verified(MACHINE) is None
        verify(scrubs)
        assert scrubs.last_verified(MACHINE) == 4


def test_the_last_clean_point_is_verified_by_its_name(place: Place) -> None:
    record = EpisodeRecord(
        machine=MACHINE,
        first=4,
        number=4,
        clean=3,
        clean_at=None,
        found_at="2026-11-21T00:00:00+00:00",
        reason="scrambled",
        critical=True,
        scrambled_bytes=1,
    )
    assert keep_episode(place.replica.journal, record)
    with place.open() as scrubs:
        scrubs.request(MACHINE, VerifyRequest(point="last-clean", requested_by="the test"))
        until(lambda: scrubs.status(MACHINE).state is VerificationState.COMPLETED, "the end")
        report = scrubs.status(MACHINE).report
    assert report is not None
    assert 3 in report.proved
