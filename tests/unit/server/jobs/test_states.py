"""The table of a job's states: whole, with a way out of everything, and drawn in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secondsite.model.diagrams import state_diagram
from secondsite.server.jobs.states import (
    ENDED,
    SHOWN,
    TABLE,
    JobEvent,
    JobIllegal,
    JobState,
    after,
    allowed,
)

# names.md's words: the API shows no others
SHOWN_STATES = {"NotStarted", "InProgress", "Succeeded", "Failed", "Cancelled", "Suspended"}
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "jobs.md"


def test_every_state_has_a_row_and_a_name() -> None:
    assert set(TABLE) == set(JobState) == set(SHOWN)
    assert {state for state, _ in SHOWN.values()} == SHOWN_STATES
    assert {event for row in TABLE.values() for event in row} == set(JobEvent)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("event", JobEvent)
def test_what_the_table_does_not_list_is_refused_with_what_is_possible(
    state: JobState, event: JobEvent
) -> None:
    if event in TABLE[state]:
        assert after(state, event, "j") is TABLE[state][event]
        return
    with pytest.raises(JobIllegal) as caught:
        after(state, event, "j")
    for word in allowed(state):
        assert word in caught.value.sentences()[2]


def test_every_state_is_reached_and_every_live_one_ends() -> None:
    reached = {JobState.NOT_STARTED}
    for _ in JobState:
        reached |= {to for state in reached for to in TABLE[state].values()}
    assert reached == set(JobState)
    ends = set(ENDED)
    for _ in JobState:
        ends |= {state for state in JobState if ends & set(TABLE[state].values())}
    assert ends == set(JobState)


def test_what_ended_well_stays_so() -> None:
    for state in (JobState.SUCCEEDED, JobState.CANCELLED):
        assert set(TABLE[state].values()) == {state}


def test_the_diagram_is_the_tables() -> None:
    drawn = re.search(r"```mermaid\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert drawn is not None
    assert drawn[1] == state_diagram(TABLE, JobState.NOT_STARTED)
