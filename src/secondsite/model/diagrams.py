"""State tables as Mermaid diagrams, so that picture and code cannot part."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)


def state_diagram(table: Mapping[State, Mapping[Event, State]], start: State) -> str:
    """A Mermaid state diagram; events that lead back to their own state are left out.

    Events of one state that lead to the same state share an arrow.
    """
    lines = ["stateDiagram-v2", f"    [*] --> {start.value}"]
    for state, row in table.items():
        arrows: dict[State, list[str]] = {}
        for event, following in row.items():
            if following is not state:
                arrows.setdefault(following, []).append(str(event.value))
        lines += [
            f"    {state.value} --> {following.value}: {', '.join(events)}"
            for following, events in arrows.items()
        ]
    return "\n".join(lines) + "\n"
