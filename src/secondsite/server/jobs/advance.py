"""What follows a step's result: decisions only, on a job in memory. The runner writes what they came to.

`settle` finds what is due of a job; `apply` takes the result of that into it. Both change the `Work` they are
given and nothing else, so that a write of unknown end can be computed again from a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from secondsite.base.errors import SecondsiteError
from secondsite.server.database.values import moment, to_json
from secondsite.server.jobs.definitions import (
    WAIT_SECONDS_MAX,
    Ask,
    Definition,
    Done,
    OnFailure,
    Result,
    RetryAfter,
    Step,
    WaitForChildren,
)
from secondsite.server.jobs.errors import StepBroken, StepGivenUp
from secondsite.server.jobs.records import Problem, Question, problem_of
from secondsite.server.jobs.states import ENDED, Action, JobEvent, JobState, StepState, after

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
# A step whose worker vanishes this often takes the workers with it (servers restarted by hand come not near).
LOST_MAX = 20
_BEGUN = frozenset({StepState.IN_PROGRESS, StepState.SUCCEEDED, StepState.FAILED})


@dataclass
class StepWork:
    """One step's row."""

    number: int
    name: str
    state: StepState
    attempt: int
    epoch: int
    failures: int
    lost: int
    output: str | None
    error: str | None
    started: str | None
    ended: str | None


@dataclass
class Work:
    """A job's row as far as a worker changes it, and its steps."""

    job: str
    parent: str | None
    state: JobState
    step: int
    action: Action
    retries: int
    cancel_asked: str | None
    question: str | None
    answer: str | None
    output: str | None
    error: str | None
    note: str | None
    warnings: int
    progress: float
    progress_text: str
    ready: str | None  # None: only a wake makes it due
    ended: str | None
    steps: list[StepWork]
    log: list[tuple[str, str, str]] = field(default_factory=list)  # step, level, text: to be added

    def copy(self) -> Work:
        """One that can be changed without changing this."""
        return copy.deepcopy(self)


@dataclass(frozen=True)
class Failure:
    """A step's function raised."""

    error: SecondsiteError

    @property
    def problem(self) -> Problem:
        """Its sentences, to be kept."""
        return problem_of(self.error)


def settle(work: Work, definition: Definition[Any], live_children: Callable[[], int], now: str) -> bool:
    """Move the job to what is due next. True: `work.action` of `work.step` is to be called now.

    False: it has ended, or waits for its children (`ready` is None).
    """
    while True:
        if work.state is JobState.IN_PROGRESS:
            if work.cancel_asked is not None:
                begin_undo(work, len(work.steps) - 1)
            elif work.step >= len(work.steps):
                _move(work, JobEvent.STEPS_DONE)
                work.step, work.action = 0, Action.CLEAN_UP
            elif work.steps[work.step].state is StepState.SUCCEEDED:
                work.step, work.action = work.step + 1, Action.DO
            else:
                return _still_tried(work, now)
        elif work.state is JobState.UNDOING:
            if live_children():
                work.ready, work.note = None, "waits until its child jobs have ended"
                return False
            if not _next_undo(work, definition):
                return work.state is JobState.UNDOING and _still_tried(work, now)
        elif work.state is JobState.FINISHING:
            if work.step >= len(work.steps):
                _end(work, JobEvent.FINISHED, now)
                work.progress, work.progress_text = 1.0, ""
            elif definition.steps[work.step].clean_up is not None:
                return _still_tried(work, now)
            else:
                work.step += 1
        else:
            work.ended = work.ended or (now if work.state in ENDED else None)
            return False


def begin_undo(work: Work, last: int) -> None:
    """Turn round: take back from step `last` down to the first."""
    _move(work, JobEvent.UNDO_BEGUN)
    work.step, work.action = last, Action.UNDO
    work.answer = None


def _next_undo(work: Work, definition: Definition[Any]) -> bool:
    """One step down where nothing is to be called. False: something is, or the job has ended."""
    if work.step < 0:
        asked = work.cancel_asked is not None
        _move(work, JobEvent.UNDONE_AS_ASKED if asked else JobEvent.UNDONE)
        return True
    step = work.steps[work.step]
    if step.state in _BEGUN and definition.steps[work.step].undo is not None:
        return False
    if step.state in _BEGUN:
        step.state = StepState.UNDONE
    work.step -= 1
    return True


def _still_tried(work: Work, now: str) -> bool:
    step = work.steps[work.step]
    if step.lost < LOST_MAX:
        return True
    lost, step.lost = step.lost, 0
    failed = Failure(StepGivenUp(step=step.name, lost=lost))
    step.state = StepState.FAILED
    step.error = work.error = to_json(failed.problem)
    event = JobEvent.UNDO_FAILED if work.state is JobState.UNDOING else JobEvent.FAILED
    if work.state is JobState.FINISHING:
        work.warnings += 1
        event = JobEvent.FINISHED
    _end(work, event, now)
    work.log.append((step.name, "error", failed.problem.happened))
    return False


def begin(work: Work, epoch: int, now: str) -> None:
    """Note that what is due is being called."""
    step = work.steps[work.step]
    if work.action in {Action.DO, Action.VERIFY}:
        step.state = StepState.IN_PROGRESS
    if step.attempt == 0 and work.action is Action.DO:
        step.started = now
    step.attempt += 1
    step.epoch = epoch
    work.note = None
    work.ready = now


def apply(work: Work, definition: Definition[Any], result: Result | Failure, at: datetime) -> bool:
    """Take the result of what was due into the job. True: it goes on; False: it waits or has ended."""
    step = work.steps[work.step]
    if isinstance(result, Ask) and work.action not in {Action.DO, Action.VERIFY}:
        result = Failure(StepBroken(step=step.name, error=f"{work.action.value} cannot ask a person"))
    match result:
        case Done():
            _done(work, definition.steps[work.step], result, moment(at))
            return True
        case RetryAfter():
            step.failures, step.lost = (step.failures if result.asked else 0), 0
            _wait(work, at, result.seconds, result.reason)
        case WaitForChildren():
            step.failures, step.lost = 0, 0
            work.ready, work.note = None, result.reason
        case Ask():
            step.failures, step.lost = 0, 0
            if work.cancel_asked is not None:
                return True
            _move(work, JobEvent.ASKED)
            work.question = to_json(Question(result.question, result.choices, result.approval))
            work.ready, work.note = None, result.question
            work.log.append((step.name, "info", f"asks: {result.question}"))
        case Failure():
            return _failed(work, definition, result, at)
    return work.state is JobState.IN_PROGRESS and work.cancel_asked is not None


def _wait(work: Work, at: datetime, seconds: float, why: str) -> None:
    bounded = min(max(0.0, seconds), WAIT_SECONDS_MAX)
    work.ready, work.note = moment(at + timedelta(seconds=bounded)), why


def _done(work: Work, step: Step[Any], done: Done, now: str) -> None:
    row = work.steps[work.step]
    row.attempt, row.failures, row.lost = 0, 0, 0
    if work.action is Action.UNDO:
        row.state = StepState.UNDONE
        work.log.append((row.name, "info", "taken back"))
        work.step -= 1
        return
    if work.action is Action.CLEAN_UP:
        work.step += 1
        return
    if done.output is not None:
        row.output = work.output = to_json(done.output)
    work.warnings += done.warnings
    if work.action is Action.DO and step.verify is not None:
        work.action = Action.VERIFY
        return
    row.state, row.ended, row.error = StepState.SUCCEEDED, now, None
    work.answer = None
    work.step, work.action = work.step + 1, Action.DO
    work.log.append((row.name, "info", "done"))


def _failed(work: Work, definition: Definition[Any], failure: Failure, at: datetime) -> bool:
    row, step = work.steps[work.step], definition.steps[work.step]
    problem = failure.problem
    row.failures += 1
    row.lost = 0
    row.error = to_json(problem)
    if failure.error.retryable and row.failures < step.tries:
        _wait(work, at, BACKOFF_SECONDS[min(row.failures, len(BACKOFF_SECONDS)) - 1], problem.happened)
        work.log.append((row.name, "warning", f"{work.action.value}, try {row.attempt}: {problem.happened}"))
        return work.state is JobState.IN_PROGRESS and work.cancel_asked is not None
    work.log.append((row.name, "error", f"{work.action.value} failed: {problem.happened}"))
    row.attempt, row.failures = 0, 0
    if work.action is Action.CLEAN_UP:  # nothing of what the job was for is at stake any more
        work.warnings += 1
        work.step += 1
        return True
    work.error = row.error
    if work.action is Action.UNDO:
        _end(work, JobEvent.UNDO_FAILED, moment(at))
        return False
    row.state, row.ended = StepState.FAILED, moment(at)
    if (step.on_failure or definition.on_failure) is OnFailure.KEEP and work.cancel_asked is None:
        work.action = Action.DO
        _end(work, JobEvent.FAILED, moment(at))
        return False
    begin_undo(work, work.step)
    return True


def _move(work: Work, event: JobEvent) -> None:
    work.state = after(work.state, event, work.job)


def _end(work: Work, event: JobEvent, now: str) -> None:
    _move(work, event)
    work.ended, work.ready, work.note = now, None, None
