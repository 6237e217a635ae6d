"""A job's life as a table: state x event -> state. An event a state does not list is illegal. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from secondsite.base.errors import Outcome, SecondsiteError


class JobState(enum.Enum):
    """Where a job stands."""

    NOT_STARTED = "NotStarted"
    IN_PROGRESS = "InProgress"
    SUSPENDED = "Suspended"  # a person must answer
    UNDOING = "Undoing"  # what was begun is taken back, last step first
    FINISHING = "Finishing"  # all steps are done, nothing can be taken back any more: clean-ups
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNDO_FAILED = "UndoFailed"  # a step could not be taken back: a person must look


class JobEvent(enum.Enum):
    """What can happen to one."""

    TAKEN = "taken by a worker"
    ASKED = "a step asked a person"
    RESUME = "answered"
    CANCEL = "cancel asked for"
    UNDO_BEGUN = "taking back begun"
    STEPS_DONE = "last step done"
    FAILED = "a step failed"
    UNDONE = "all taken back after a failure"
    UNDONE_AS_ASKED = "all taken back as asked"
    UNDO_FAILED = "a step could not be taken back"
    FINISHED = "cleaned up"
    RETRY = "retry asked for"
    RESTART = "done again as a new job"


class StepState(enum.Enum):
    """Where one step of a job stands."""

    NOT_STARTED = "NotStarted"
    IN_PROGRESS = "InProgress"  # begun, perhaps waiting for its next try
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNDONE = "Undone"


class Action(enum.Enum):
    """What can be due of a step."""

    DO = "do"
    VERIFY = "verify"
    UNDO = "undo"
    CLEAN_UP = "clean-up"


class JobIllegal(SecondsiteError):
    """The event makes no sense in the state; nothing was moved."""

    code = "job.illegal"
    outcome = Outcome.REFUSED
    happened = "The job {job} cannot be told {event!r}: it is {state}."
    cause = "It went on since it was looked at, or two people steer it at once."
    action = "Possible now: {possible}. Look at the job and try one of these."


_S, _E = JobState, JobEvent

# One row a state: read it as "in this state, this event leads there".
TABLE: Mapping[JobState, Mapping[JobEvent, JobState]] = {
    _S.NOT_STARTED: {_E.TAKEN: _S.IN_PROGRESS, _E.CANCEL: _S.CANCELLED},
    _S.IN_PROGRESS: {
        _E.ASKED: _S.SUSPENDED,
        _E.CANCEL: _S.IN_PROGRESS,  # noted: the running step finishes first
        _E.UNDO_BEGUN: _S.UNDOING,
        _E.STEPS_DONE: _S.FINISHING,
        _E.FAILED: _S.FAILED,  # where its definition wants what was done to stay, for a retry
    },
    _S.SUSPENDED: {_E.RESUME: _S.IN_PROGRESS, _E.CANCEL: _S.IN_PROGRESS},
    _S.UNDOING: {
        _E.CANCEL: _S.UNDOING,  # it ends as cancelled then
        _E.UNDONE: _S.FAILED,
        _E.UNDONE_AS_ASKED: _S.CANCELLED,
        _E.UNDO_FAILED: _S.UNDO_FAILED,
    },
    _S.FINISHING: {_E.FINISHED: _S.SUCCEEDED},
    _S.SUCCEEDED: {_E.RESTART: _S.SUCCEEDED},
    _S.FAILED: {_E.RETRY: _S.IN_PROGRESS, _E.CANCEL: _S.UNDOING, _E.RESTART: _S.FAILED},
    _S.CANCELLED: {_E.RESTART: _S.CANCELLED},
    _S.UNDO_FAILED: {_E.RETRY: _S.UNDOING, _E.RESTART: _S.UNDO_FAILED},
}

ENDED = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.UNDO_FAILED})
LIVE = frozenset(JobState) - ENDED
# Ends that a retry begins anew from.
ENDED_BADLY = frozenset({_S.FAILED, _S.UNDO_FAILED})

# What a person may ask of a job, by the words of the API.
OPERATIONS: Mapping[str, JobEvent] = {
    "cancel": _E.CANCEL,
    "resume": _E.RESUME,
    "retry": _E.RETRY,
    "restart": _E.RESTART,
}

# How a state is called outside: the field knows six, the description says the rest.
SHOWN: Mapping[JobState, tuple[str, str]] = {
    _S.NOT_STARTED: ("NotStarted", "Queued"),
    _S.IN_PROGRESS: ("InProgress", "InProgress"),
    _S.SUSPENDED: ("Suspended", "WaitingForAnswer"),
    _S.UNDOING: ("InProgress", "Undoing"),
    _S.FINISHING: ("InProgress", "Finishing"),
    _S.SUCCEEDED: ("Succeeded", "Completed"),
    _S.FAILED: ("Failed", "Failed"),
    _S.CANCELLED: ("Cancelled", "Cancelled"),
    _S.UNDO_FAILED: ("Failed", "UndoFailed"),
}


def after(state: JobState, event: JobEvent, job: str) -> JobState:
    """The state an event leads to. Raises JobIllegal, naming what a person may ask for."""
    row = TABLE[state]
    if event not in row:
        possible = ", ".join(allowed(state)) or "nothing, it goes on by itself"
        raise JobIllegal(job=job, event=event.value, state=state.value, possible=possible)
    return row[event]


def allowed(state: JobState) -> tuple[str, ...]:
    """What a person may ask of a job in that state."""
    return tuple(name for name, event in OPERATIONS.items() if event in TABLE[state])
