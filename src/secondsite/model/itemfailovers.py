"""A failover at a gateway as a state of its protected item, and the way there through the item's table. Pure.

A gateway takes machines over also while the server is away, and the server may hear of it long after. So an
item is led to where the gateway says the failover is along events of its table, all of which have happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from secondsite.model.failover import FailoverKind, FailoverState
from secondsite.model.items import TABLE, ProtectedEvent, ProtectedState

_S, _E, _F = ProtectedState, ProtectedEvent, FailoverState

# What only failing over leads along.
EVENTS: frozenset[ProtectedEvent] = frozenset(
    {
        _E.PLANNED,
        _E.PLANNED_CLAIMED,
        _E.PLANNED_COMPLETED,
        _E.PLANNED_NOT_COMPLETED,
        _E.UNPLANNED,
        _E.UNPLANNED_CLAIMED,
        _E.UNPLANNED_COMPLETED,
        _E.UNPLANNED_NOT_COMPLETED,
        _E.CHANGING,
        _E.CHANGE_FAILED,
        _E.COMMITTING,
        _E.COMMIT_FAILED,
        _E.COMMITTED,
        _E.CANCELLING,
        _E.CANCEL_FAILED,
        _E.GIVEN_BACK,
        _E.GIVEN_BACK_EARLY,
        _E.MIGRATED,
    }
)
# Where a failover of the item stands: asked for, and neither committed nor given back.
STANDING: frozenset[ProtectedState] = frozenset(
    {
        _S.PLANNED,
        _S.PLANNED_COMPLETING,
        _S.PLANNED_COMPLETED,
        _S.PLANNED_NOT_COMPLETED,
        _S.UNPLANNED,
        _S.UNPLANNED_COMPLETING,
        _S.UNPLANNED_COMPLETED,
        _S.UNPLANNED_NOT_COMPLETED,
        _S.CHANGING,
        _S.CHANGE_FAILED,
        _S.COMMITTING,
        _S.COMMIT_FAILED,
        _S.CANCELLING,
        _S.CANCEL_FAILED,
    }
)
# The machine's authority is the target: what the source says of its replication is of no account.
TAKEN_OVER: frozenset[ProtectedState] = (STANDING - {_S.PLANNED, _S.UNPLANNED}) | {_S.COMMITTED, _S.MIGRATED}
# Over, with the machine at its source.
BACK: frozenset[FailoverState] = frozenset({_F.ROLLED_BACK, _F.FAILED})

_PLANNED: Mapping[FailoverState, tuple[ProtectedState, ProtectedState]] = {
    _F.INITIATED: (_S.PLANNED, _S.PLANNED),
    _F.CLAIMED: (_S.PLANNED_COMPLETING, _S.PLANNED_NOT_COMPLETED),
    _F.COMPLETED: (_S.PLANNED_COMPLETED, _S.PLANNED_COMPLETED),
}
_UNPLANNED: Mapping[FailoverState, tuple[ProtectedState, ProtectedState]] = {
    _F.INITIATED: (_S.UNPLANNED, _S.UNPLANNED),
    _F.CLAIMED: (_S.UNPLANNED_COMPLETING, _S.UNPLANNED_NOT_COMPLETED),
    _F.COMPLETED: (_S.UNPLANNED_COMPLETED, _S.UNPLANNED_COMPLETED),
}
_EITHER: Mapping[FailoverState, tuple[ProtectedState, ProtectedState]] = {
    _F.CHANGING: (_S.CHANGING, _S.CHANGE_FAILED),
    _F.COMMITTING: (_S.COMMITTING, _S.COMMIT_FAILED),
    _F.COMMITTED: (_S.COMMITTED, _S.COMMITTED),
    _F.ROLLING_BACK: (_S.CANCELLING, _S.CANCEL_FAILED),
}


def state_of(kind: FailoverKind, state: FailoverState, *, failed: bool) -> ProtectedState | None:
    """Where the item stands; None: its machine is at its source, as if nothing had been.

    failed: the gateway stopped at that step with an error, and waits to be asked again.
    """
    by_kind = _PLANNED if kind is FailoverKind.PLANNED else _UNPLANNED
    found = by_kind.get(state) or _EITHER.get(state)
    return None if found is None else found[failed]


def way(state: ProtectedState, to: ProtectedState) -> Sequence[ProtectedEvent] | None:
    """The fewest events of failing over that lead there; none where it is there; None: there is no way."""
    ways: dict[ProtectedState, tuple[ProtectedEvent, ...]] = {state: ()}
    waiting = deque([state])
    while waiting:
        here = waiting.popleft()
        if here is to:
            return ways[here]
        for event, there in TABLE[here].items():
            if event in EVENTS and there not in ways:
                ways[there] = (*ways[here], event)
                waiting.append(there)
    return None


def home(state: ProtectedState, *, finalized: bool, paused: bool) -> Sequence[ProtectedEvent] | None:
    """The events that give an item back to its source; None: it was not taken over."""
    if state not in STANDING:
        return None
    if not finalized:
        return way(state, _S.ENABLING)
    found = way(state, _S.PROTECTED)
    if found is not None and paused:
        return (*found, _E.PAUSED)
    return found
