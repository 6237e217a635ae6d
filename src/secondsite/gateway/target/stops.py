"""What a target knows of a source that was stopped in order: the proof that moving it now loses nothing.

It is kept in the journal's state (compare-and-set), with the number of the record that was the newest: any
record that follows, a point as well as a claim, ends it. The source makes it void before it runs again, and
runs only if it sees afterwards that nobody has claimed the machine; the target claims, and looks after that
whether it was void. So of the two that are at it in the same moment one at least sees the other.
"""

from __future__ import annotations

import msgspec

from secondsite.journal.chain import Head, Journal
from secondsite.journal.state import State, Stopped
from secondsite.transfer.errors import StopRefused
from secondsite.transfer.protocols import StopNote


def keep_stop(journal: Journal, note: StopNote, head: Head) -> None:
    """Make a note durable. Raises StopRefused where it is not of the newest record, or came late."""

    def change(state: State) -> State:
        if not note.point:
            void = Stopped(operation=note.operation, number=head.number, void=True)
            return msgspec.structs.replace(state, stopped=void)
        known = state.stopped
        if isinstance(known, Stopped) and known.void and known.number >= note.point:
            why = f"its stop on record {known.number} was cancelled"
            raise StopRefused(machine=note.machine, point=note.point, why=why)
        told = Stopped(operation=note.operation, number=note.point)
        return msgspec.structs.replace(state, stopped=told)

    if note.point and (head.point is None or not note.point == head.point.number == head.number):
        why = f"record {head.number} is its newest"
        raise StopRefused(machine=note.machine, point=note.point, why=why)
    journal.update_state(change)
