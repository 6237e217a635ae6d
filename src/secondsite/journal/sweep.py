"""Deleting what nobody reads any more: promoted and merged segments, their records, and garbage.

Nothing here decides what is needless: promotion and merging said so in the state before. Each deletion may be
repeated; a record goes after the segments it names, a span's object after its own, the state's note last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.journal.chain import Journal
from secondsite.journal.names import (
    log_name,
    log_prefix,
    merged_prefix,
    parse_merged_name,
    parse_segment_name,
    segments_prefix,
    span_name,
    spans_prefix,
)
from secondsite.journal.state import Retired, State
from secondsite.journal.store import ObjectMissing, StoreLocked
from secondsite.model.points import Point, Record

DURING_DELETE = mark("promote.during-delete")
DURING_RETIRE = mark("merge.during-delete")
AFTER_RETIRE = mark("merge.after-delete")


# Told of an object that cannot be removed before its lock ends: what names it stays until then.
OnLocked = Callable[[StoreLocked], None]


def delete_promoted(journal: Journal, *, clock: Clock, on_locked: OnLocked | None = None) -> int:
    """Segments the bases made needless, then records below the floor. Returns segments removed.

    A pinned reader may use every segment younger than what the base held when it was pinned.
    """
    state = journal.state()
    held_from = [pin.base_number for pin in state.pins_at(_now(clock))]
    last = min([state.promoted, *held_from])
    deleted = 0
    for name, record in _records(journal, 1, last):
        try:
            if isinstance(record, Point):
                for segment in record.segments:
                    journal.store.delete(journal.segment_name(segment))
                    crash_point(DURING_DELETE)
                    deleted += 1
            if record.number < min(state.floor, state.promoted):
                journal.store.delete(name)  # the last promoted record anchors the chain
        except StoreLocked as error:
            if on_locked is not None:
                on_locked(error)
            return deleted  # younger ones are locked for longer
    return deleted


def delete_retired(journal: Journal, *, clock: Clock, on_locked: OnLocked | None = None) -> int:
    """What merging and promotion replaced and no pinned reader uses. Returns segments removed.

    A reader may use what any state since its pin named. Segments that another span still names stay.
    """
    state = journal.state()
    pins = state.pins_at(_now(clock))
    free = [
        retired
        for retired in state.retired
        if not any(pin.generation < retired.generation and pin.number >= retired.first for pin in pins)
    ]
    if not free:
        return 0
    held = [retired for retired in state.retired if retired not in free]
    needed = _named(journal, held)
    deleted, gone = 0, []
    for retired in free:
        try:
            deleted += _delete_one(journal, retired, state, needed)
            gone.append(retired)
        except StoreLocked as error:
            if on_locked is not None:
                on_locked(error)
    journal.update_state(
        lambda now: msgspec.structs.replace(now, retired=tuple(r for r in now.retired if r not in gone))
    )
    crash_point(AFTER_RETIRE)
    return deleted


def _delete_one(journal: Journal, retired: Retired, state: State, needed: set[str]) -> int:
    deleted = 0

    def delete(names: list[str]) -> None:
        nonlocal deleted
        for name in names:
            if name not in needed:
                journal.store.delete(name)
                deleted += 1
                crash_point(DURING_RETIRE)

    if retired.span is None:
        for name, record in _records(journal, retired.first, retired.last):
            if isinstance(record, Point):
                delete([journal.segment_name(segment) for segment in record.segments])
            if record.number not in state.kept:
                journal.store.delete(name)
        return deleted
    span = journal.read_span(retired.span)
    if span is not None:
        delete([journal.segment_name(segment) for segment in span.segments])
    if retired.last not in state.kept:
        journal.store.delete(log_name(journal.machine, retired.last))
    journal.store.delete(span_name(journal.machine, retired.span))
    return deleted


def _named(journal: Journal, held: list[Retired]) -> set[str]:
    """Objects of segments that points or held replaced things name."""
    named = {journal.segment_name(s) for point in journal.points_after(0) for s in point.segments}
    for retired in held:
        if retired.span is None:
            for _, record in _records(journal, retired.first, retired.last):
                if isinstance(record, Point):
                    named.update(journal.segment_name(segment) for segment in record.segments)
        elif (span := journal.read_span(retired.span)) is not None:
            named.update(journal.segment_name(segment) for segment in span.segments)
    return named


def _records(journal: Journal, first: int, last: int) -> Iterator[tuple[str, Record]]:
    """Every record from number `first` to `last` that is still in the store, with its name."""
    after = log_name(journal.machine, first - 1) if first > 1 else ""
    for name in list(journal.store.list(log_prefix(journal.machine), after=after)):
        if name > log_name(journal.machine, last):
            return
        with contextlib.suppress(ObjectMissing):  # another process deletes too
            yield name, journal.read_record(name)


@dataclass(frozen=True)
class Unnamed:
    """Objects no point names."""

    dead: tuple[str, ...]  # may go
    waiting: tuple[str, ...]  # segments of the epoch in force: perhaps on their way to a commit


def garbage(journal: Journal) -> list[str]:
    """Objects that may go, see `unnamed`."""
    return list(unnamed(journal).dead)


def unnamed(journal: Journal) -> Unnamed:
    """Segments no point that counts names, and what a merge wrote that never came into force.

    Points below the floor count too while their records are kept: a promotion that was cut off writes their
    segments into the bases, and readers pinned before it read them; so does what waits to be deleted.
    """
    # In this order: an object listed here was announced before the state that is read below, and what is
    # promoted or merged between the readings is in the later ones.
    segments = list(journal.store.list(segments_prefix(journal.machine)))
    merged = list(journal.store.list(merged_prefix(journal.machine)))
    objects = list(journal.store.list(spans_prefix(journal.machine)))
    epoch = journal.head().epoch
    named = {journal.segment_name(s) for point in journal.points_after(0) for s in point.segments}
    state = journal.state()
    named |= _named(journal, list(state.retired))
    for _, record in _records(journal, 1, state.promoted):
        if isinstance(record, Point):
            named.update(journal.segment_name(segment) for segment in record.segments)
    spans = {state.merging, *(span.id for span in state.spans)}
    spans.update(retired.span for retired in state.retired if retired.span is not None)
    loose = [name for name in segments if name not in named]
    return Unnamed(
        dead=(
            *(name for name in loose if _is_dead(name, epoch)),
            *(name for name in merged if name not in named and parse_merged_name(name) not in spans),
            *(name for name in objects if name.rpartition("/")[2] not in spans),
        ),
        waiting=tuple(name for name in loose if not _is_dead(name, epoch)),
    )


def _is_dead(name: str, epoch: int) -> bool:
    parsed = parse_segment_name(name)
    return parsed is not None and parsed[0] < epoch


def _now(clock: Clock) -> str:
    return clock.utc().isoformat(timespec="microseconds")
