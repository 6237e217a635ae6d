"""The protected item at the server as a table: state x event -> state, and what may be asked of it. Pure.

States are the field's words. A gateway has a smaller table of its own (`model.states`); what it reports is
an event here (`reported`). How failovers at gateways become events is in `model.itemfailovers`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.failover import HeldState


class ProtectedState(enum.Enum):
    """Where a protected item stands."""

    UNPROTECTED = "Unprotected"
    ENABLING = "EnablingProtection"
    ENABLING_FAILED = "EnablingFailed"
    COPYING = "InitialReplicationInProgress"
    COPY_FAILED = "InitialReplicationFailed"
    COPIED = "InitialReplicationCompletedOnRecovery"
    FINALIZING = "FinalizeProtectionInProgress"
    FINALIZE_FAILED = "FinalizeProtectionFailed"
    PROTECTED = "Protected"
    PAUSED = "Paused"
    RESYNCHRONIZING = "Resynchronizing"
    DISABLING = "DisablingProtection"
    DISABLING_FAILED = "DisablingFailed"
    # failing over; from "Completing" on the target is the machine's authority
    PLANNED = "PlannedFailoverInitiated"
    PLANNED_COMPLETING = "PlannedFailoverCompleting"
    PLANNED_COMPLETED = "PlannedFailoverCompleted"
    PLANNED_NOT_COMPLETED = "PlannedFailoverCompletionFailed"
    UNPLANNED = "UnplannedFailoverInitiated"
    UNPLANNED_COMPLETING = "UnplannedFailoverCompleting"
    UNPLANNED_COMPLETED = "UnplannedFailoverCompleted"
    UNPLANNED_NOT_COMPLETED = "UnplannedFailoverCompletionFailed"
    CHANGING = "ChangeRecoveryPointInitiated"
    CHANGE_FAILED = "ChangeRecoveryPointFailed"
    COMMITTING = "CommitFailoverInProgressOnRecovery"
    COMMIT_FAILED = "CommitFailoverFailedOnRecovery"
    COMMITTED = "CommitFailoverCompleted"
    CANCELLING = "CancelFailoverInProgressOnRecovery"
    CANCEL_FAILED = "CancelFailoverFailedOnRecovery"
    # the other direction, after a commit
    REPROTECTING = "ReprotectInitiated"
    REPROTECT_FAILED = "ReprotectFailed"
    MIGRATED = "MigrationCompleted"  # for good: nothing leads back


class ProtectedEvent(enum.Enum):
    """What can happen to one."""

    # asked for by people, through jobs
    ENABLED = "protection asked for"
    ADOPTED = "found protected at its gateway"
    CHANGED = "policy, disks or mapping changed"
    FINALIZING = "finalising begun"
    FINALIZED = "finalised"
    FINALIZE_FAILED = "finalising failed"
    PAUSED = "pause asked for"
    RESUMED = "going on asked for"
    RESYNC_ASKED = "comparison of everything asked for"
    DISABLING = "end of protection asked for"
    DISABLED = "protection ended"
    DISABLE_FAILED = "ending failed"
    DISABLE_TAKEN_BACK = "ending taken back"
    FORGOTTEN = "given up by force"  # a failover of it stands, and its gateways are gone for good
    # reported by the source gateway
    REFUSED = "refused by the gateway"
    COPY_BEGUN = "first copy reported"
    FIRST_POINT = "first point reported"
    REPLICATES = "replication reported"  # of an item that is finalised
    RESYNC_BEGUN = "resynchronisation reported"
    # asked for through a job, or reported by the target gateway, where somebody may do it without the server
    PLANNED = "planned failover begun"
    PLANNED_CLAIMED = "planned failover claimed"
    PLANNED_COMPLETED = "planned failover completed"
    PLANNED_NOT_COMPLETED = "planned failover not completed"
    UNPLANNED = "unplanned failover begun"
    UNPLANNED_CLAIMED = "unplanned failover claimed"
    UNPLANNED_COMPLETED = "unplanned failover completed"
    UNPLANNED_NOT_COMPLETED = "unplanned failover not completed"
    CHANGING = "change of point begun"
    CHANGE_FAILED = "change of point failed"
    COMMITTING = "commit begun"
    COMMIT_FAILED = "commit failed"
    COMMITTED = "commit completed"
    CANCELLING = "roll-back begun"
    CANCEL_FAILED = "roll-back failed"
    GIVEN_BACK = "given back to its source"
    GIVEN_BACK_EARLY = "given back before it was finalised"
    # asked for through jobs
    REPROTECTING = "reprotection begun"
    REPROTECTED = "protected in the other direction"
    REPROTECT_FAILED = "reprotection failed"
    REPROTECT_TAKEN_BACK = "reprotection taken back"
    MIGRATED = "migration completed"


class ItemTransition(SecondsiteError):
    """The event makes no sense in the state; nothing was moved."""

    code = "item.transition"
    outcome = Outcome.REFUSED
    happened = "{name} is {state}: {event!r} cannot happen to it now."
    cause = "Two operations on the machine at once, or something happened to it meanwhile."
    action = "Look at it (`secondsite item show`), which says what is possible now; nothing was changed."


class OperationNotAllowed(SecondsiteError):
    """Asked for at the wrong time."""

    code = "item.operation-not-allowed"
    outcome = Outcome.REFUSED
    happened = "{operation} is not possible for {name} now: {why}."
    cause = "What may be asked of a protected machine follows from its state."
    action = "Possible now: {possible}. Nothing was changed."


_S, _E = ProtectedState, ProtectedEvent
_END: Mapping[ProtectedEvent, ProtectedState] = {_E.DISABLING: _S.DISABLING}
# What a report can tell of an item whose first point is not known yet.
_COPY: Mapping[ProtectedEvent, ProtectedState] = {
    _E.COPY_BEGUN: _S.COPYING,
    _E.RESYNC_BEGUN: _S.COPYING,  # a replica is there already: it is compared, not copied
    _E.FIRST_POINT: _S.COPIED,
    _E.REPLICATES: _S.PROTECTED,
}
# A finalised item stays that, whatever is copied anew.
_ANEW: Mapping[ProtectedEvent, ProtectedState] = {
    _E.RESYNC_ASKED: _S.RESYNCHRONIZING,
    _E.RESYNC_BEGUN: _S.RESYNCHRONIZING,
    _E.COPY_BEGUN: _S.RESYNCHRONIZING,
    _E.REPLICATES: _S.PROTECTED,
}

# A failover may be asked for as soon as there is a point, and be found begun at the gateway at any time.
_LOST: Mapping[ProtectedEvent, ProtectedState] = {_E.UNPLANNED: _S.UNPLANNED}
_MOVE: Mapping[ProtectedEvent, ProtectedState] = {**_LOST, _E.PLANNED: _S.PLANNED}
_BACK: Mapping[ProtectedEvent, ProtectedState] = {
    _E.GIVEN_BACK: _S.PROTECTED,
    _E.GIVEN_BACK_EARLY: _S.ENABLING,  # the next report says how far its copy is
}
_PLANNED: Mapping[ProtectedEvent, ProtectedState] = {
    _E.PLANNED_COMPLETED: _S.PLANNED_COMPLETED,
    _E.PLANNED_NOT_COMPLETED: _S.PLANNED_NOT_COMPLETED,
}
_UNPLANNED: Mapping[ProtectedEvent, ProtectedState] = {
    _E.UNPLANNED_COMPLETED: _S.UNPLANNED_COMPLETED,
    _E.UNPLANNED_NOT_COMPLETED: _S.UNPLANNED_NOT_COMPLETED,
}
# Whatever became of it: nobody is left who could be asked.
_GONE: Mapping[ProtectedEvent, ProtectedState] = {_E.FORGOTTEN: _S.UNPROTECTED}
_CANCEL: Mapping[ProtectedEvent, ProtectedState] = {_E.CANCELLING: _S.CANCELLING}
# What a person may do with a machine that was taken over and is not committed.
_TURN: Mapping[ProtectedEvent, ProtectedState] = {**_CANCEL, _E.CHANGING: _S.CHANGING}
_COMMIT: Mapping[ProtectedEvent, ProtectedState] = {_E.COMMITTING: _S.COMMITTING}
_CHANGED: Mapping[ProtectedEvent, ProtectedState] = {
    _E.PLANNED_CLAIMED: _S.PLANNED_COMPLETING,
    _E.UNPLANNED_CLAIMED: _S.UNPLANNED_COMPLETING,
}

# One row a state: read it as "in this state, this event leads there".
TABLE: Mapping[ProtectedState, Mapping[ProtectedEvent, ProtectedState]] = {
    _S.UNPROTECTED: {_E.ENABLED: _S.ENABLING, _E.ADOPTED: _S.ENABLING},
    _S.ENABLING: {**_COPY, **_END, **_LOST, _E.REFUSED: _S.ENABLING_FAILED, _E.CHANGED: _S.ENABLING},
    _S.ENABLING_FAILED: {**_COPY, **_END, **_LOST, _E.CHANGED: _S.ENABLING},
    _S.COPYING: {**_COPY, **_END, **_LOST, _E.REFUSED: _S.COPY_FAILED, _E.CHANGED: _S.COPYING},
    _S.COPY_FAILED: {**_COPY, **_END, **_LOST, _E.CHANGED: _S.COPYING},
    _S.COPIED: {**_END, **_LOST, _E.FINALIZING: _S.FINALIZING, _E.CHANGED: _S.COPIED},
    _S.FINALIZING: {
        **_END,
        **_LOST,
        _E.FINALIZING: _S.FINALIZING,
        _E.FINALIZED: _S.PROTECTED,
        _E.FINALIZE_FAILED: _S.FINALIZE_FAILED,
    },
    _S.FINALIZE_FAILED: {
        **_END,
        **_LOST,
        _E.FINALIZING: _S.FINALIZING,
        _E.CHANGED: _S.FINALIZE_FAILED,
    },
    _S.PROTECTED: {**_ANEW, **_END, **_MOVE, _E.PAUSED: _S.PAUSED, _E.CHANGED: _S.PROTECTED},
    _S.PAUSED: {**_END, **_MOVE, _E.RESUMED: _S.PROTECTED, _E.CHANGED: _S.PAUSED},
    _S.RESYNCHRONIZING: {
        **_ANEW,
        **_END,
        **_MOVE,
        _E.PAUSED: _S.PAUSED,
        _E.CHANGED: _S.RESYNCHRONIZING,
    },
    _S.DISABLING: {
        **_END,
        _E.DISABLED: _S.UNPROTECTED,
        _E.DISABLE_FAILED: _S.DISABLING_FAILED,
        _E.DISABLE_TAKEN_BACK: _S.ENABLING,
    },
    _S.DISABLING_FAILED: {**_END, _E.DISABLED: _S.UNPROTECTED, _E.DISABLE_TAKEN_BACK: _S.ENABLING},
    # nothing ends the protection of a machine that was taken over, until that is committed or rolled back
    _S.PLANNED: {_E.PLANNED: _S.PLANNED, _E.PLANNED_CLAIMED: _S.PLANNED_COMPLETING, **_BACK, **_GONE},
    _S.PLANNED_COMPLETING: {**_PLANNED, **_TURN, **_GONE},
    _S.PLANNED_COMPLETED: {**_TURN, **_COMMIT, **_GONE},
    _S.PLANNED_NOT_COMPLETED: {_E.PLANNED_CLAIMED: _S.PLANNED_COMPLETING, **_PLANNED, **_TURN, **_GONE},
    _S.UNPLANNED: {
        _E.UNPLANNED: _S.UNPLANNED,
        _E.UNPLANNED_CLAIMED: _S.UNPLANNED_COMPLETING,
        **_BACK,
        **_GONE,
    },
    _S.UNPLANNED_COMPLETING: {**_UNPLANNED, **_TURN, **_GONE},
    _S.UNPLANNED_COMPLETED: {**_TURN, **_COMMIT, **_GONE},
    _S.UNPLANNED_NOT_COMPLETED: {
        _E.UNPLANNED_CLAIMED: _S.UNPLANNED_COMPLETING,
        **_UNPLANNED,
        **_TURN,
        **_GONE,
    },
    _S.CHANGING: {**_CHANGED, _E.CHANGE_FAILED: _S.CHANGE_FAILED, **_GONE},
    _S.CHANGE_FAILED: {**_CHANGED, _E.CHANGING: _S.CHANGING, **_GONE},
    _S.COMMITTING: {_E.COMMITTED: _S.COMMITTED, _E.COMMIT_FAILED: _S.COMMIT_FAILED, **_GONE},
    _S.COMMIT_FAILED: {**_COMMIT, _E.COMMITTED: _S.COMMITTED, **_GONE},
    _S.COMMITTED: {**_END, _E.REPROTECTING: _S.REPROTECTING, _E.MIGRATED: _S.MIGRATED},
    _S.CANCELLING: {**_BACK, _E.CANCEL_FAILED: _S.CANCEL_FAILED, **_GONE},
    _S.CANCEL_FAILED: {**_CANCEL, **_BACK, **_GONE},
    # what the new source reports counts from its first point on, which ends the job
    _S.REPROTECTING: {
        _E.REPROTECTING: _S.REPROTECTING,
        _E.REPROTECTED: _S.PROTECTED,
        _E.REPROTECT_FAILED: _S.REPROTECT_FAILED,
        _E.REPROTECT_TAKEN_BACK: _S.COMMITTED,
        **_END,
    },
    _S.REPROTECT_FAILED: {
        _E.REPROTECTING: _S.REPROTECTING,
        _E.REPROTECT_TAKEN_BACK: _S.COMMITTED,
        **_END,
    },
    _S.MIGRATED: {**_END},
}

# A machine that counts as protected: its points are there, also while it waits or compares.
COUNTED = frozenset({_S.PROTECTED, _S.PAUSED, _S.RESYNCHRONIZING})


def after(state: ProtectedState, event: ProtectedEvent, name: str) -> ProtectedState:
    """The state an event leads to. Raises ItemTransition."""
    row = TABLE[state]
    if event not in row:
        raise ItemTransition(name=name, event=event.value, state=state.value)
    return row[event]


def reported(
    state: ProtectedState, word: str, *, finalized: bool, resync_waits: bool
) -> ProtectedEvent | None:
    """What a source gateway's word for its state means here; None: nothing new.

    resync_waits: a comparison was asked for that the gateway has not done yet.
    """
    event = _WORDS.get(word)
    if event is _E.FIRST_POINT and finalized:
        event = _E.REPLICATES
    if event is _E.REPLICATES and resync_waits:
        return None  # an older word: the comparison is still to come
    return event if event in TABLE[state] else None


_WORDS: Mapping[str, ProtectedEvent] = {
    "InitialReplicationInProgress": _E.COPY_BEGUN,
    "Resynchronizing": _E.RESYNC_BEGUN,
    "Protected": _E.FIRST_POINT,
    "EnablingFailed": _E.REFUSED,
    # a pause that nobody asked for here is the source's or the link's trouble: it shows in the health
}


class ItemOperation(enum.StrEnum):
    """What a person may ask of an item, by the words of the API."""

    FINALIZE = "finalize"
    PAUSE = "pause"
    RESUME = "resume"
    RESYNC = "resync"
    CHANGE_POLICY = "changePolicy"
    CHANGE_DISKS = "changeDisks"
    CHANGE_MAPPING = "changeMapping"
    TAKE_POINT = "takePoint"
    TEST_FAILOVER = "testFailover"
    TEST_FAILOVER_CLEANUP = "testFailoverCleanup"
    DISABLE = "disable"
    DISABLE_WITH_REPLICA = "disableWithReplica"
    FORGET = "forget"
    PROTECT = "protect"
    CHECK_FAILOVER = "checkFailover"
    PLANNED_FAILOVER = "plannedFailover"
    UNPLANNED_FAILOVER = "unplannedFailover"
    CHANGE_POINT = "changePoint"
    COMMIT = "commit"
    CANCEL_FAILOVER = "cancelFailover"
    REPROTECT = "reprotect"
    FAILBACK = "failback"
    COMPLETE_MIGRATION = "completeMigration"
    HELD_RELEASE = "heldRelease"
    HELD_DISCARD = "heldDiscard"


@dataclass(frozen=True)
class ItemFacts:
    """What is known of an item besides its state."""

    managed: bool = True  # its gateway works towards what the server wants
    points: int = 0
    live_job: str = ""  # the id of the job that has the machine
    test: str = ""  # the state of the test failover that stands; "": none does
    away: bool = False  # its machine is not at its first site
    held: str = ""  # `model.failover.HeldState` of its machine at the source; "": it never was held
    reachable: bool = False  # one of its gateways is connected; looked at only for what is shown


@dataclass(frozen=True)
class _Rule:
    states: frozenset[ProtectedState]
    needs: tuple[tuple[Callable[[ItemFacts], bool], str], ...] = ()


_MANAGED = (lambda facts: facts.managed, "its gateway has not told yet what it works towards")
_POINTS = (lambda facts: facts.points > 0, "it has no recovery point")
_NO_TEST = (lambda facts: not facts.test, "a test failover of it stands, which has to be cleaned up first")
_TEST = (lambda facts: bool(facts.test), "no test failover of it stands")
_AWAY = (lambda facts: facts.away, "its machine is at its first site")
_HELD = (lambda facts: facts.held == HeldState.HELD.value, "its machine is not held at its source")
_GONE_FOR_GOOD = (lambda facts: not facts.reachable, "one of its gateways is connected and can be asked")
# What can be given up of a copy of a machine that runs elsewhere.
DISCARDABLE = frozenset({HeldState.HELD.value, HeldState.RELEASED.value})
_DISCARDABLE = (
    lambda facts: facts.held in DISCARDABLE,
    "its machine is not held at its source",
)
_CHANGEABLE = frozenset(state for state, row in TABLE.items() if _E.CHANGED in row)
_ENDABLE = frozenset(state for state, row in TABLE.items() if _E.DISABLING in row)


def _with(event: ProtectedEvent) -> frozenset[ProtectedState]:
    return frozenset(state for state, row in TABLE.items() if event in row)


# What can be given up by force, if neither of its gateways can be asked any more.
FORGETTABLE = _with(_E.FORGOTTEN)

_O = ItemOperation
RULES: Mapping[ItemOperation, _Rule] = {
    _O.FINALIZE: _Rule(_with(_E.FINALIZING), (_MANAGED,)),
    _O.PAUSE: _Rule(_with(_E.PAUSED), (_MANAGED,)),
    _O.RESUME: _Rule(_with(_E.RESUMED), (_MANAGED,)),
    _O.RESYNC: _Rule(frozenset({_S.PROTECTED}), (_MANAGED,)),
    _O.CHANGE_POLICY: _Rule(_CHANGEABLE, (_MANAGED,)),
    _O.CHANGE_DISKS: _Rule(_CHANGEABLE, (_MANAGED,)),
    _O.CHANGE_MAPPING: _Rule(_CHANGEABLE, (_MANAGED,)),
    _O.TAKE_POINT: _Rule(frozenset({_S.PROTECTED}), (_POINTS,)),
    _O.TEST_FAILOVER: _Rule(COUNTED, (_POINTS, _NO_TEST)),
    # also of what is protected no more: its replica may have stayed, with the test on it
    _O.TEST_FAILOVER_CLEANUP: _Rule(frozenset(_S), (_TEST,)),
    _O.DISABLE: _Rule(_ENDABLE),
    _O.DISABLE_WITH_REPLICA: _Rule(_ENDABLE),
    _O.FORGET: _Rule(FORGETTABLE, (_GONE_FOR_GOOD,)),
    _O.PROTECT: _Rule(frozenset({_S.UNPROTECTED})),
    _O.CHECK_FAILOVER: _Rule(_with(_E.UNPLANNED) - {_S.UNPLANNED}, (_POINTS,)),
    # its last changes are carried over, for which it must be replicated now
    _O.PLANNED_FAILOVER: _Rule(frozenset({_S.PROTECTED}), (_POINTS,)),
    _O.UNPLANNED_FAILOVER: _Rule(_with(_E.UNPLANNED) - {_S.UNPLANNED}, (_POINTS,)),
    _O.CHANGE_POINT: _Rule(_with(_E.CHANGING)),
    _O.COMMIT: _Rule(_with(_E.COMMITTING)),
    _O.CANCEL_FAILOVER: _Rule(_with(_E.CANCELLING)),
    _O.REPROTECT: _Rule(_with(_E.REPROTECTING) - {_S.REPROTECTING, _S.REPROTECT_FAILED}, (_MANAGED,)),
    _O.FAILBACK: _Rule(frozenset({_S.PROTECTED}), (_AWAY, _POINTS)),
    _O.COMPLETE_MIGRATION: _Rule(_with(_E.MIGRATED)),
    # its source is another site's, whatever became of the item
    _O.HELD_RELEASE: _Rule(frozenset(_S), (_HELD,)),
    _O.HELD_DISCARD: _Rule(frozenset(_S), (_DISCARDABLE,)),
}


def allowed_operations(state: ProtectedState, facts: ItemFacts) -> tuple[ItemOperation, ...]:
    """What may be asked for now; nothing while a job has the machine."""
    if facts.live_job:
        return ()
    # asked for every item on a page, and nearly all are alike but for the number of their points
    return _allowed(state, replace(facts, points=1) if facts.points > 1 else facts)


@functools.lru_cache(maxsize=4096)  # the words of a gateway are among the facts: it may say any
def _allowed(state: ProtectedState, facts: ItemFacts) -> tuple[ItemOperation, ...]:
    return tuple(operation for operation in RULES if not _obstacle(state, facts, operation))


def check_operation(name: str, state: ProtectedState, facts: ItemFacts, operation: ItemOperation) -> None:
    """Raises OperationNotAllowed, naming what may be asked for."""
    why = _obstacle(state, facts, operation)
    if why:
        possible = ", ".join(allowed_operations(state, facts)) or "nothing until that has changed"
        raise OperationNotAllowed(operation=operation.value, name=name, why=why, possible=possible)


def _obstacle(state: ProtectedState, facts: ItemFacts, operation: ItemOperation) -> str:
    if facts.live_job:
        return f"the job {facts.live_job} has it"
    rule = RULES[operation]
    if state not in rule.states:
        return f"it is {state.value}"
    return next((why for holds, why in rule.needs if not holds(facts)), "")
