"""Every cell of the failover's table and of the held source's, and what follows from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secondsite.model.diagrams import state_diagram
from secondsite.model.failover import (
    HELD_TABLE,
    KEPT_TABLE,
    MAY_RUN,
    PASSING,
    STANDING,
    TABLE,
    FailoverEvent,
    FailoverState,
    FailoverTransition,
    HeldEvent,
    HeldState,
    KeptEvent,
    KeptState,
    after,
    roll_back_nonce,
)


def test_nothing_boots_before_the_claim() -> None:
    leads = {state for state, row in TABLE.items() if FailoverEvent.BOOTED in row}
    assert leads == {FailoverState.CLAIMED, FailoverState.COMPLETED}
    into = {state for state, row in TABLE.items() if FailoverState.CLAIMED in row.values()}
    assert into == {FailoverState.INITIATED, FailoverState.CLAIMED, FailoverState.CHANGING}
    assert FailoverState.INITIATED not in MAY_RUN


def test_after_the_claim_it_only_ends_committed_or_rolled_back() -> None:
    ends = {state for state in TABLE if state not in STANDING}
    reached, waiting = set(), [FailoverState.CLAIMED]
    while waiting:
        state = waiting.pop()
        if state not in reached:
            reached.add(state)
            waiting += TABLE[state].values()
    assert reached & ends == {FailoverState.COMMITTED, FailoverState.ROLLED_BACK}
    assert PASSING <= STANDING


def test_a_committed_one_is_not_undone() -> None:
    assert set(TABLE[FailoverState.COMMITTED].values()) == {FailoverState.COMMITTED}
    assert FailoverEvent.ROLL_BACK_ASKED not in TABLE[FailoverState.COMMITTING]


@pytest.mark.parametrize("state", FailoverState)
@pytest.mark.parametrize("event", FailoverEvent)
def test_every_cell(state: FailoverState, event: FailoverEvent) -> None:
    if event in TABLE[state]:
        assert after(state, event, "shop") is TABLE[state][event]
        return
    with pytest.raises(FailoverTransition) as caught:
        after(state, event, "shop")
    assert all(possible.value in caught.value.sentences()[2] for possible in TABLE[state])


def test_only_people_and_a_roll_back_end_a_hold() -> None:
    assert set(HELD_TABLE) == set(HeldState)
    assert set(HELD_TABLE[HeldState.HELD].values()) == set(HeldState)


def test_what_was_reversed_onto_is_neither_released_nor_held_by_a_claim() -> None:
    row = HELD_TABLE[HeldState.REVERSED]
    assert set(row.values()) == {HeldState.REVERSED, HeldState.HELD, HeldState.REPLACED}
    assert row[HeldEvent.SEEN] is HeldState.REVERSED
    assert [event for event, state in row.items() if state is HeldState.HELD] == [HeldEvent.TAKEN_BACK]
    assert HELD_TABLE[HeldState.REPLACED][HeldEvent.SEEN] is HeldState.HELD  # taken over once more


def test_a_replica_that_is_retired_stays_so() -> None:
    assert set(KEPT_TABLE) == set(KeptState)
    assert KeptEvent.MIGRATED not in {*KEPT_TABLE[KeptState.RETIRING], *KEPT_TABLE[KeptState.RETIRED]}
    assert set(KEPT_TABLE[KeptState.RETIRED].values()) == {KeptState.RETIRED}


def test_a_roll_back_is_one_claim_of_each_failover() -> None:
    assert roll_back_nonce("ab" * 16) == roll_back_nonce("ab" * 16) != roll_back_nonce("cd" * 16)
    assert len(roll_back_nonce("ab" * 16)) == 32


def test_the_pictures_of_the_document_are_the_tables() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/failover.md").read_text()
    _authority, *drawn = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)  # the first is the stores'
    assert drawn == [state_diagram(TABLE, FailoverState.INITIATED), state_diagram(HELD_TABLE, HeldState.HELD)]
