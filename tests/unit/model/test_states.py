"""Every cell of the protected item's table, and that an illegal event moves nothing."""

from __future__ import annotations

import pytest

from secondsite.model.states import TABLE, IllegalTransition, ItemEvent, ItemState, after


def test_only_the_first_point_leads_from_a_first_copy_to_protected() -> None:
    leads = [event for event, to in TABLE[ItemState.INITIAL_REPLICATION].items() if to is ItemState.PROTECTED]
    assert leads == [ItemEvent.POINT_COMMITTED]


def test_disabling_is_the_end() -> None:
    assert set(TABLE[ItemState.DISABLING].values()) == {ItemState.DISABLING}
    assert all(ItemEvent.DISABLED in row for row in TABLE.values())


@pytest.mark.parametrize("state", ItemState)
@pytest.mark.parametrize("event", ItemEvent)
def test_every_cell(state: ItemState, event: ItemEvent) -> None:
    if event in TABLE[state]:
        assert after(state, event) is TABLE[state][event]
        return
    with pytest.raises(IllegalTransition) as caught:
        after(state, event)
    assert all(possible.value in caught.value.sentences()[2] for possible in TABLE[state])
