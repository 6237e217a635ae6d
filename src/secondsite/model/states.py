"""The protected item as a table: state x event -> state. An event a state does not list is illegal."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from secondsite.base.errors import Outcome, SecondsiteError


class ItemState(enum.Enum):
    """Where a protected machine stands (names of the field)."""

    ENABLING = "EnablingProtection"
    INITIAL_REPLICATION = "InitialReplicationInProgress"
    PROTECTED = "Protected"
    RESYNCHRONIZING = "Resynchronizing"
    PAUSED = "Paused"
    DISABLING = "DisablingProtection"
    FAILED = "EnablingFailed"


class ItemEvent(enum.Enum):
    """What can happen to one."""

    FIRST_COPY_BEGUN = "first copy begun"
    RESYNC_BEGUN = "resynchronisation begun"
    CYCLE_BEGUN = "cycle begun"  # an increment on a committed point
    POINT_COMMITTED = "point committed"
    PAUSED = "capture paused"  # the cache is full, the source is gone, or another gateway is the writer
    REFUSED = "protection refused"  # it cannot be carried
    DISABLED = "protection ended"


class IllegalTransition(SecondsiteError):
    """The event makes no sense in the state; nothing was moved."""

    code = "item.illegal-transition"
    outcome = Outcome.REFUSED
    happened = "The event {event!r} is not possible while the machine is {state}."
    cause = "Two operations on the machine at once, or a defect of secondsite."
    action = "Possible now: {possible}. Look at the machine's status and try one of these."


_S, _E = ItemState, ItemEvent
_BEGIN: Mapping[ItemEvent, ItemState] = {
    _E.FIRST_COPY_BEGUN: _S.INITIAL_REPLICATION,
    _E.RESYNC_BEGUN: _S.RESYNCHRONIZING,
    _E.PAUSED: _S.PAUSED,
    _E.DISABLED: _S.DISABLING,
}

# One row a state: read it as "in this state, this event leads there".
TABLE: Mapping[ItemState, Mapping[ItemEvent, ItemState]] = {
    # A gateway that starts again finds a machine with points at the target: straight to Protected.
    _S.ENABLING: {**_BEGIN, _E.CYCLE_BEGUN: _S.PROTECTED, _E.REFUSED: _S.FAILED},
    # Only the first point makes it protected (architecture's rule 5).
    _S.INITIAL_REPLICATION: {**_BEGIN, _E.POINT_COMMITTED: _S.PROTECTED, _E.REFUSED: _S.FAILED},
    _S.PROTECTED: {**_BEGIN, _E.CYCLE_BEGUN: _S.PROTECTED, _E.POINT_COMMITTED: _S.PROTECTED},
    _S.RESYNCHRONIZING: {**_BEGIN, _E.POINT_COMMITTED: _S.PROTECTED},
    # What was captured before the pause is still committed during it.
    _S.PAUSED: {**_BEGIN, _E.CYCLE_BEGUN: _S.PROTECTED, _E.POINT_COMMITTED: _S.PAUSED},
    _S.FAILED: {**_BEGIN, _E.REFUSED: _S.FAILED},
    _S.DISABLING: {_E.DISABLED: _S.DISABLING},
}


def after(state: ItemState, event: ItemEvent) -> ItemState:
    """The state an event leads to. Raises IllegalTransition, naming the events that are possible."""
    row = TABLE[state]
    if event not in row:
        possible = ", ".join(sorted(known.value for known in row))
        raise IllegalTransition(event=event.value, state=state.value, possible=possible)
    return row[event]
