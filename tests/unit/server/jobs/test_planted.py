"""Bugs an engine of this kind can have, planted: the lines must catch each."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import job_locks, jobs
from secondsite.server.jobs import advance, claims, lease, processes, service
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import JobState
from support.job_runs import Run, WrongCall

CAUGHT = (AssertionError, WrongCall)


def play(line: str, database: Database) -> None:
    assert isinstance(database.clock, FakeClock)
    Run(line, database, database.clock).play()


def test_a_write_without_the_lease_check(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: Hold, row: Any) -> None:
        self.revision = row.revision

    monkeypatch.setattr(lease.Hold, "_check", unchecked)
    with pytest.raises(CAUGHT):
        play("do a; do b%; takeover; do b; wakes; do c => Succeeded", timed)


def test_undo_in_the_order_of_doing(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = advance._next_undo

    def from_the_first(work: advance.Work, definition: Any) -> bool:
        begun = [step.number for step in work.steps if step.state in advance._BEGUN]
        work.step = begun[0] if begun else -1
        return real(work, definition) if not begun else False

    monkeypatch.setattr(advance, "_next_undo", from_the_first)
    with pytest.raises(CAUGHT):
        play("do a; do b; do c!; undo c; undo b; undo a => Failed", timed)


def test_undo_begun_without_the_step_that_failed(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = advance.begin_undo
    monkeypatch.setattr(advance, "begin_undo", lambda work, last: real(work, last - 1))
    with pytest.raises(CAUGHT):
        play("do a; do b!; undo b; undo a => Failed", timed)


def test_the_lock_freed_while_the_step_runs(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is free for the next job, and the old step works on it still."""
    real = Jobs.cancel

    def frees(self: Jobs, connection: Any, job: str, actor: str) -> None:
        real(self, connection, job, actor)
        connection.execute(job_locks.delete().where(job_locks.c.job == job))

    monkeypatch.setattr(service.Jobs, "cancel", frees)
    with pytest.raises(CAUGHT):
        play("do a; do b<cancel; undo b; undo a => Cancelled", timed)


def test_a_taking_without_a_new_epoch(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = claims.Claims.take

    def same_epoch(self: claims.Claims, limit: int, stop: Any) -> list[Hold]:
        holds = real(self, limit, stop)
        for hold in holds:
            with self.database.write() as connection:
                connection.execute(jobs.update().values(epoch=1))
            hold.epoch = 1
        return holds

    monkeypatch.setattr(claims.Claims, "take", same_epoch)
    with pytest.raises(CAUGHT):
        play("do a; do b*; takeover; do b => Succeeded", timed)


def test_dead_at_first_sight(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "surely_gone", lambda _process: True)
    with pytest.raises(CAUGHT):
        play("do a; do b*; takeover; do b => Succeeded", timed)


def test_a_cancel_that_forgets_to_take_back(timed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "_next_undo", _forgets)
    with pytest.raises(CAUGHT):
        play("a b c: do a; do b<cancel; undo b; undo a => Cancelled", timed)


def _forgets(work: advance.Work, _definition: Any) -> bool:
    work.step = -1
    work.state = JobState.CANCELLED
    return True
