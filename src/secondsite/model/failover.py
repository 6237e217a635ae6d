"""A failover and the source it leaves behind, as tables: state x event -> state. Pure.

A failover belongs to the site that takes a machine over. Its claim is in the store before anything boots;
from `CLAIMED` on this site is the machine's authority, whatever happens to the gateway, until a roll-back
puts another claim there. A source that learns of the claim is held (`HeldState`) until a person decides.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping

from secondsite.base.errors import Outcome, SecondsiteError

# Reasons of claims. Those in MOVED say that the machine runs, or will run, elsewhere than before.
FAILOVER = "failover"
ROLL_BACK = "roll-back"
MIGRATED = "complete migration"  # a failover that is final: nothing leads back
REVERSE = "reverse"  # made by a site for the one that took its machine over: it writes here from now on
DELETED = "deleted"  # its replica was: nobody writes, and epochs go on from there
MOVED = frozenset({FAILOVER, MIGRATED})
# Those that say whose the machine is. Made for another site they hold a copy: also one that was away until
# then, and never saw what came between.
AUTHORITY = MOVED | {REVERSE, ROLL_BACK}
# A commit that nobody watches copies no faster than this, all disks together, where its failover says nothing
# else: as fast as it goes may take the storage away from every machine beside it, with nobody there to see.
AUTO_COMMIT_BYTES_PER_SECOND = 100_000_000
# A gateway's word for a machine of which it copies nothing, since another site is its authority.
NOT_COPIED = "replicate.held"
NOBODY = ""  # the claimant of what was deleted: whoever may write the machine may claim it


class FailoverKind(enum.Enum):
    """Whether the source was stopped in order, with nothing lost."""

    PLANNED = "Planned"
    UNPLANNED = "Unplanned"


class FailoverState(enum.Enum):
    """Where a failover stands at the site that takes over."""

    INITIATED = "Initiated"  # asked for; the source may still write
    CLAIMED = "Claimed"  # this site is the authority; the machine is not up yet, or could not be started
    COMPLETED = "Completed"  # the machine runs here, on the export of its point
    CHANGING = "ChangeRecoveryPointInitiated"
    COMMITTING = "CommitFailoverInProgress"  # its disks are being made plain local ones
    COMMITTED = "CommitFailoverCompleted"
    ROLLING_BACK = "CancelFailoverInProgress"
    ROLLED_BACK = "CancelFailoverCompleted"
    FAILED = "Failed"  # before the claim: nothing was changed


class FailoverEvent(enum.Enum):
    """What can happen to one."""

    CLAIMED = "claimed in the store"
    BOOTED = "machine started"
    REFUSED = "could not be claimed"
    CHANGE_ASKED = "another point asked for"
    REMOVED = "machine of the former point removed"
    COMMIT_ASKED = "commit asked for"
    COMMITTED = "disks are plain and local"
    ROLL_BACK_ASKED = "roll-back asked for"
    ROLLED_BACK = "claimed back for the source"


class FailoverTransition(SecondsiteError):
    """The event makes no sense in the state; nothing was moved."""

    code = "failover.transition"
    outcome = Outcome.REFUSED
    happened = "The failover of {name} is {state}: {event!r} is not possible now."
    cause = "Two operations on the machine at once, or it has gone further than was thought."
    action = "Possible now: {possible}. See `secondsite failover status`."


_S, _E = FailoverState, FailoverEvent

# One row a state: read it as "in this state, this event leads there".
TABLE: Mapping[FailoverState, Mapping[FailoverEvent, FailoverState]] = {
    _S.INITIATED: {_E.CLAIMED: _S.CLAIMED, _E.REFUSED: _S.FAILED},
    _S.CLAIMED: {
        _E.CLAIMED: _S.CLAIMED,  # found again after a crash: the same claim
        _E.BOOTED: _S.COMPLETED,
        _E.CHANGE_ASKED: _S.CHANGING,
        _E.ROLL_BACK_ASKED: _S.ROLLING_BACK,
    },
    _S.COMPLETED: {
        _E.BOOTED: _S.COMPLETED,
        _E.CHANGE_ASKED: _S.CHANGING,
        _E.COMMIT_ASKED: _S.COMMITTING,
        _E.ROLL_BACK_ASKED: _S.ROLLING_BACK,
    },
    _S.CHANGING: {_E.CHANGE_ASKED: _S.CHANGING, _E.REMOVED: _S.CLAIMED},
    _S.COMMITTING: {_E.COMMIT_ASKED: _S.COMMITTING, _E.COMMITTED: _S.COMMITTED},
    _S.COMMITTED: {_E.COMMITTED: _S.COMMITTED},
    _S.ROLLING_BACK: {_E.ROLL_BACK_ASKED: _S.ROLLING_BACK, _E.ROLLED_BACK: _S.ROLLED_BACK},
    _S.ROLLED_BACK: {_E.ROLLED_BACK: _S.ROLLED_BACK},
    _S.FAILED: {},
}

# What still has something at the hypervisor or in the store: one at a time for a machine.
STANDING = frozenset(TABLE) - {_S.COMMITTED, _S.ROLLED_BACK, _S.FAILED}
# What a gateway that starts goes on with by itself.
PASSING = frozenset({_S.INITIATED, _S.CHANGING, _S.COMMITTING, _S.ROLLING_BACK})
# A machine may run here in these states and in no other.
MAY_RUN = frozenset({_S.CLAIMED, _S.COMPLETED, _S.CHANGING, _S.COMMITTING, _S.COMMITTED, _S.ROLLING_BACK})


def after(state: FailoverState, event: FailoverEvent, name: str) -> FailoverState:
    """The state an event leads to. Raises FailoverTransition, naming the events that are possible."""
    row = TABLE[state]
    if event not in row:
        possible = ", ".join(known.value for known in row) or "nothing, it is over"
        raise FailoverTransition(name=name, event=event.value, state=state.value, possible=possible)
    return row[event]


def roll_back_nonce(operation: str) -> str:
    """The nonce of the claim that undoes a failover: the same each time, so that it is made once."""
    return hashlib.sha256(f"secondsite {ROLL_BACK} {operation}".encode()).hexdigest()[:32]


def hand_over_nonce(machine: str, epoch: int) -> str:
    """The nonce of the claim that gives a store to who took the machine over in an epoch: made once."""
    return hashlib.sha256(f"secondsite hand over {machine} {epoch}".encode()).hexdigest()[:32]


class KeptState(enum.Enum):
    """What became of a committed failover's replica at the site that keeps the machine."""

    KEPT = "Kept"  # its claim holds the former source
    MIGRATED = "MigrationCompleted"  # likewise, for good: nobody is protected back, nothing fails back
    RETIRING = "Retiring"  # it is being deleted: the machine has points elsewhere, or moved for good
    RETIRED = "Retired"  # a tombstone is left, which holds the former source and keeps epochs growing


class KeptEvent(enum.Enum):
    """What can happen to it."""

    MIGRATED = "migration completed"
    RETIRE_ASKED = "replica to be retired"
    RETIRED = "replica deleted"


_K, _W = KeptState, KeptEvent
KEPT_TABLE: Mapping[KeptState, Mapping[KeptEvent, KeptState]] = {
    _K.KEPT: {_W.MIGRATED: _K.MIGRATED, _W.RETIRE_ASKED: _K.RETIRING},
    _K.MIGRATED: {_W.MIGRATED: _K.MIGRATED, _W.RETIRE_ASKED: _K.RETIRING},
    _K.RETIRING: {_W.RETIRE_ASKED: _K.RETIRING, _W.RETIRED: _K.RETIRED},
    _K.RETIRED: {_W.RETIRE_ASKED: _K.RETIRED, _W.RETIRED: _K.RETIRED},
}


class HeldState(enum.Enum):
    """Where a source stands that is not its machine's authority."""

    HELD = "Held"  # links down, paused, disks and tracking kept
    RELEASED = "Released"  # a person let it run again
    DISCARDED = "Discarded"  # a person gave its last writes up: shut off, no longer protected here
    RETURNED = "Returned"  # the failover was rolled back: it is the authority again
    REVERSED = "Reversed"  # off and guarded so: its disks are what the other direction began with
    REPLACED = "Replaced"  # a failover of this site took its place: the machine here is the authority


class HeldEvent(enum.Enum):
    """What can happen to one."""

    SEEN = "failover seen"
    RELEASED = "released by a person"
    DISCARDED = "discarded by a person"
    RETURNED = "roll-back seen"
    REVERSED = "reversed onto by a person"
    TAKEN_BACK = "reversal taken back"
    REPLACED = "machine taken over here"


_H, _V = HeldState, HeldEvent
HELD_TABLE: Mapping[HeldState, Mapping[HeldEvent, HeldState]] = {
    _H.HELD: {
        _V.SEEN: _H.HELD,
        _V.RELEASED: _H.RELEASED,
        _V.DISCARDED: _H.DISCARDED,
        _V.RETURNED: _H.RETURNED,
        _V.REVERSED: _H.REVERSED,
        _V.REPLACED: _H.REPLACED,  # only where no machine of it is left at its host
    },
    # The same claim seen again does not undo what a person decided; a later one holds it anew.
    _H.RELEASED: {
        _V.SEEN: _H.HELD,
        _V.DISCARDED: _H.DISCARDED,
        _V.RETURNED: _H.RETURNED,
        _V.REVERSED: _H.REVERSED,
        _V.REPLACED: _H.REPLACED,
    },
    _H.DISCARDED: {
        _V.SEEN: _H.HELD,
        _V.DISCARDED: _H.DISCARDED,
        _V.REVERSED: _H.REVERSED,
        _V.REPLACED: _H.REPLACED,
    },
    _H.RETURNED: {_V.SEEN: _H.HELD, _V.RETURNED: _H.RETURNED, _V.REPLACED: _H.REPLACED},
    # Claims that come later are of the direction it serves now; only its own site brings the machine back.
    _H.REVERSED: {
        _V.SEEN: _H.REVERSED,
        _V.REVERSED: _H.REVERSED,
        _V.TAKEN_BACK: _H.HELD,
        _V.REPLACED: _H.REPLACED,
    },
    _H.REPLACED: {_V.SEEN: _H.HELD, _V.REPLACED: _H.REPLACED},
}
