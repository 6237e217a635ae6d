"""Deleting all points of a machine together: at the commit of a failover nothing of them is needed any more.

The order, each step safe to repeat after a crash:

1. the state says up to which record nothing counts (`State.dropped`): from then on no point is listed,
   pinned or read, whatever is still there. Refused while anybody has a pin. The claim of that number stays
   and begins the chain: epochs and who is the authority are read from it as before;
2. objects go: caches, segments, spans, sums of the bases, then the records before the claim. What a late
   upload of an earlier epoch brings is found by the same names, so this may be done again and again;
3. the images of the bases go, which the caller removes, and the state forgets them (`bases_removed`).

Wrapped keys, episodes and the writers' names stay: they are small, and later points and reports need them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.journal.chain import Journal
from secondsite.journal.manifest import RECORD_BYTES_MAX, record_hash
from secondsite.journal.names import (
    log_name,
    log_pages_prefix,
    log_prefix,
    machine_prefix,
    merged_prefix,
    pages_prefix,
    parse_segment_name,
    segments_prefix,
    spans_prefix,
)
from secondsite.journal.state import BaseState, Dropped, State
from secondsite.journal.store import StoreLocked
from secondsite.journal.sweep import OnLocked
from secondsite.model.points import Claim

AFTER_HIDDEN = mark("drop.after-hidden")
DURING_OBJECTS = mark("drop.during-objects")
AFTER_OBJECTS = mark("drop.after-objects")
DURING_RECORDS = mark("drop.during-records")
AFTER_RECORDS = mark("drop.after-records")
AFTER_BASES = mark("drop.after-bases")


class PointsNeeded(SecondsiteError):
    """Somebody reads or holds a point."""

    code = "journal.points-needed"
    outcome = Outcome.REFUSED
    happened = "The points of machine {machine} were not deleted: {holders} needs them."
    cause = "An export, a test failover or a person's hold keeps a point readable, and that comes first."
    action = "End what is named; the deletion goes on by itself."

    def __init__(self, *, machine: str, holders: tuple[str, ...]) -> None:
        self.holders = holders
        super().__init__(machine=machine, holders=", ".join(holders))


def drop_points(journal: Journal, claim: Claim, *, clock: Clock) -> Dropped:
    """Step 1: no point before `claim`, which has to be the one in force, counts any more.

    Asked again it is what it was. Raises PointsNeeded; then nothing was changed.
    """
    assert journal.head().claim == claim, "only what came before the authority of now is given up"
    name = log_name(journal.machine, claim.number)
    found = record_hash(journal.store.get(name, size_bytes_max=RECORD_BYTES_MAX))
    now = clock.utc().isoformat(timespec="microseconds")

    def change(state: State) -> State:
        known = state.dropped
        if isinstance(known, Dropped) and known.number >= claim.number:
            return state
        holders = tuple(sorted({pin.holder for pin in state.pins_at(now)}))
        if holders:
            raise PointsNeeded(machine=journal.machine, holders=holders)
        left = known.bases if isinstance(known, Dropped) else ()
        return msgspec.structs.replace(
            state,
            dropped=Dropped(
                number=claim.number, hash=found, epoch=claim.epoch, at=now, bases=(*left, *state.bases)
            ),
            floor=0,
            floor_hash="",
            promoted=0,
            pins=(),  # those that have ended
            bases=(),
            spans=(),
            retired=(),
            merging="",
        )

    dropped = journal.update_state(change).dropped
    crash_point(AFTER_HIDDEN)
    assert isinstance(dropped, Dropped), "just put there"
    return dropped


def delete_dropped(
    journal: Journal, *, cancel: threading.Event | None = None, on_locked: OnLocked | None = None
) -> int:
    """Step 2: what is still there of deleted points, as far as it goes now. Returns how many objects went.

    cancel: ends it early. on_locked: told of an object that may not be removed yet; the rest goes anyway.
    """
    dropped = journal.state().dropped
    if not isinstance(dropped, Dropped):
        return 0
    deleted = 0

    def delete(names: Iterator[str], passed: str) -> None:
        nonlocal deleted
        for name in list(names):
            if cancel is not None and cancel.is_set():
                return
            try:
                journal.store.delete(name)
            except StoreLocked as error:
                if on_locked is None:
                    raise
                on_locked(error)
                continue
            deleted += 1
            crash_point(passed)

    delete(_objects(journal, dropped), DURING_OBJECTS)
    crash_point(AFTER_OBJECTS)
    delete(_records(journal, dropped), DURING_RECORDS)
    crash_point(AFTER_RECORDS)
    return deleted


def _objects(journal: Journal, dropped: Dropped) -> Iterator[str]:
    """Whatever stood for records before the claim, but for the records."""
    store, machine = journal.store, journal.machine
    for prefix in (log_pages_prefix(machine), pages_prefix(machine)):
        yield from (n for n in store.list(prefix) if _number(n, -1) <= dropped.number)
    for name in store.list(segments_prefix(machine)):
        parsed = parse_segment_name(name)
        if parsed is not None and parsed[0] < dropped.epoch:
            yield name
    yield from (n for n in store.list(merged_prefix(machine)) if _number(n, 3) <= dropped.number)
    yield from (n for n in store.list(spans_prefix(machine)) if _number(n, -1) <= dropped.number)
    sums = f"{machine_prefix(machine)}bases/"
    yield from (n for n in store.list(sums) if _number(n, -1) <= dropped.number)


def _records(journal: Journal, dropped: Dropped) -> Iterator[str]:
    last = log_name(journal.machine, dropped.number)
    return (name for name in journal.store.list(log_prefix(journal.machine)) if name < last)


def _number(name: str, part: int) -> int:
    """The number the names of spans, pages and sums begin with; of another name one past every other."""
    text = name.split("/")[part][:16]
    return int(text) if text.isdigit() and len(text) == 16 else 2**63


def bases_removed(journal: Journal, gone: Callable[[BaseState], bool]) -> None:
    """Step 3: forget the images that are gone."""

    def change(state: State) -> State:
        dropped = state.dropped
        if not isinstance(dropped, Dropped):
            return state
        left = tuple(base for base in dropped.bases if not gone(base))
        return msgspec.structs.replace(state, dropped=msgspec.structs.replace(dropped, bases=left))

    journal.update_state(change)
    crash_point(AFTER_BASES)
