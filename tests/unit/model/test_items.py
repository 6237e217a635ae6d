"""The table of a protected item: whole, a way out of everything, refusals that name what is possible."""

from __future__ import annotations

import itertools

import pytest

from secondsite.model.failover import FailoverKind, FailoverState, HeldState
from secondsite.model.itemfailovers import BACK, EVENTS, STANDING, TAKEN_OVER, home, state_of, way
from secondsite.model.items import (
    COUNTED,
    FORGETTABLE,
    RULES,
    TABLE,
    ItemFacts,
    ItemOperation,
    ItemTransition,
    OperationNotAllowed,
    ProtectedEvent,
    ProtectedState,
    after,
    allowed_operations,
    check_operation,
    reported,
)
from secondsite.model.states import ItemState

# By hand, from what was asked for: what may be asked of an item in each state that has points and no job.
CHANGES = {"changePolicy", "changeDisks", "changeMapping"}
END = {"disable", "disableWithReplica"}
LOST = {"checkFailover", "unplannedFailover"}
TURN = {"changePoint", "cancelFailover", "forget"}
FORGET = {"forget"}
ALLOWED = {
    "Unprotected": {"protect"},
    "EnablingProtection": CHANGES | END | LOST,
    "EnablingFailed": CHANGES | END | LOST,
    "InitialReplicationInProgress": CHANGES | END | LOST,
    "InitialReplicationFailed": CHANGES | END | LOST,
    "InitialReplicationCompletedOnRecovery": CHANGES | END | LOST | {"finalize"},
    "FinalizeProtectionInProgress": END | LOST | {"finalize"},
    "FinalizeProtectionFailed": CHANGES | END | LOST | {"finalize"},
    "Protected": CHANGES | END | LOST | {"pause", "resync", "takePoint", "testFailover", "plannedFailover"},
    "Paused": CHANGES | END | LOST | {"resume", "testFailover"},
    "Resynchronizing": CHANGES | END | LOST | {"pause", "testFailover"},
    "DisablingProtection": END,
    "DisablingFailed": END,
    "PlannedFailoverInitiated": FORGET,
    "PlannedFailoverCompleting": TURN,
    "PlannedFailoverCompleted": TURN | {"commit"},
    "PlannedFailoverCompletionFailed": TURN,
    "UnplannedFailoverInitiated": FORGET,
    "UnplannedFailoverCompleting": TURN,
    "UnplannedFailoverCompleted": TURN | {"commit"},
    "UnplannedFailoverCompletionFailed": TURN,
    "ChangeRecoveryPointInitiated": FORGET,
    "ChangeRecoveryPointFailed": FORGET | {"changePoint"},
    "CommitFailoverInProgressOnRecovery": FORGET,
    "CommitFailoverFailedOnRecovery": FORGET | {"commit"},
    "CommitFailoverCompleted": END | {"reprotect", "completeMigration"},
    "CancelFailoverInProgressOnRecovery": FORGET,
    "CancelFailoverFailedOnRecovery": FORGET | {"cancelFailover"},
    "ReprotectInitiated": END,
    "ReprotectFailed": END,
    "MigrationCompleted": END,
}
# Of whatever state, where a test stands or a machine is held; and what is of machines away from home alone.
ANYWHERE = {"testFailoverCleanup", "heldRelease", "heldDiscard", "failback"}
FACTS = ItemFacts(managed=True, points=3)


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(ProtectedState)
    assert {event for row in TABLE.values() for event in row} == set(ProtectedEvent)
    assert set(RULES) == set(ItemOperation)


def test_what_may_be_asked_in_each_state() -> None:
    found = {state.value: {one.value for one in allowed_operations(state, FACTS)} for state in ProtectedState}
    assert found == ALLOWED


@pytest.mark.parametrize("state", ProtectedState)
def test_what_is_refused_names_what_is_possible(state: ProtectedState) -> None:
    for operation in ItemOperation:
        if operation.value in ALLOWED[state.value]:
            check_operation("shop", state, FACTS, operation)
            continue
        with pytest.raises(OperationNotAllowed) as refused:
            check_operation("shop", state, FACTS, operation)
        happened, _, action = refused.value.sentences()
        if operation.value not in ANYWHERE:
            assert state.value in happened
        for possible in ALLOWED[state.value]:
            assert possible in action


def test_a_job_and_missing_facts_stand_in_the_way() -> None:
    assert allowed_operations(ProtectedState.PROTECTED, ItemFacts(points=3, live_job="j1")) == ()
    with pytest.raises(OperationNotAllowed, match="the job j1 has it"):
        check_operation("shop", ProtectedState.PROTECTED, ItemFacts(live_job="j1"), ItemOperation.PAUSE)
    assert ItemOperation.TAKE_POINT not in allowed_operations(ProtectedState.PROTECTED, ItemFacts())
    known_only = allowed_operations(ProtectedState.PROTECTED, ItemFacts(managed=False, points=3))
    assert {one.value for one in known_only} == END | LOST | {
        "takePoint",
        "testFailover",
        "plannedFailover",
    }


def test_a_test_failover_stands_once_and_can_be_cleaned_up_whatever_became_of_its_item() -> None:
    facts = ItemFacts(managed=True, points=3, test="Completed")
    for state in ProtectedState:
        found = {one.value for one in allowed_operations(state, facts)}
        assert found == (ALLOWED[state.value] - {"testFailover"}) | {"testFailoverCleanup"}
    with pytest.raises(OperationNotAllowed, match="a test failover of it stands"):
        check_operation("shop", ProtectedState.PROTECTED, facts, ItemOperation.TEST_FAILOVER)


def test_every_state_is_reached_and_every_one_can_be_ended() -> None:
    reached = {ProtectedState.UNPROTECTED}
    for _ in ProtectedState:
        reached |= {to for state in reached for to in TABLE[state].values()}
    assert reached == set(ProtectedState)
    # a machine that was taken over is committed or given back first
    for state in STANDING:
        assert ProtectedEvent.DISABLING not in TABLE[state]
        over = (ProtectedState.COMMITTED, ProtectedState.PROTECTED)
        assert any(way(state, end) is not None for end in over), state
    for state in set(ProtectedState) - {ProtectedState.UNPROTECTED} - STANDING:
        ending = after(state, ProtectedEvent.DISABLING, "shop")
        assert after(ending, ProtectedEvent.DISABLED, "shop") is ProtectedState.UNPROTECTED


def test_a_held_source_is_decided_of_whatever_became_of_its_item() -> None:
    for state in ProtectedState:
        decisions: dict[HeldState, set[str]] = {
            HeldState.HELD: {"heldRelease", "heldDiscard"},
            HeldState.RELEASED: {"heldDiscard"},
            HeldState.RETURNED: set(),
            HeldState.DISCARDED: set(),
        }
        for held, allowed in decisions.items():
            facts = ItemFacts(managed=True, points=3, held=held.value)
            found = {one.value for one in allowed_operations(state, facts)}
            assert found == ALLOWED[state.value] | allowed


@pytest.mark.parametrize("kind", FailoverKind)
def test_wherever_a_gateway_is_with_a_failover_its_item_gets_there(kind: FailoverKind) -> None:
    """Also past what the server did not hear of, but never out of a commit, nor of what people ended."""
    told: dict[ProtectedState, str] = {}
    for state, failed in itertools.product(FailoverState, (False, True)):
        to = state_of(kind, state, failed=failed)
        assert (to is None) == (state in BACK)
        if to is None:
            continue
        word = kind.value if to.value.startswith(("Planned", "Unplanned")) else ""
        assert to.value.startswith(word)
        told[to] = state.value
        for begun in ProtectedState:
            events = way(begun, to)
            ended = begun in (
                ProtectedState.UNPROTECTED,
                ProtectedState.DISABLING,
                ProtectedState.DISABLING_FAILED,
                ProtectedState.COMMITTED,
                ProtectedState.REPROTECTING,
                ProtectedState.REPROTECT_FAILED,
                ProtectedState.MIGRATED,
            )
            keeps = begun in (ProtectedState.COMMITTING, ProtectedState.COMMIT_FAILED)
            if to is begun:
                assert events == ()
            elif ended:
                assert events is None
            elif keeps:
                assert (events is None) == (to.value.startswith("Commit") is False)
            else:
                assert events is not None
                here = begun
                for event in events:
                    assert event in EVENTS
                    here = after(here, event, "shop")
                assert here is to
    assert set(told) <= STANDING | {ProtectedState.COMMITTED}
    others = {one for one in TAKEN_OVER if one.value.startswith(_other(kind))}
    # that it is for good is told of a failover that is committed
    assert TAKEN_OVER - set(told) <= others | {ProtectedState.MIGRATED}
    for begun in TAKEN_OVER:
        assert way(begun, ProtectedState.MIGRATED) is not None


def _other(kind: FailoverKind) -> str:
    return "Unplanned" if kind is FailoverKind.PLANNED else "Planned"


@pytest.mark.parametrize("state", [state for state in ProtectedState if state in STANDING])
def test_given_back_it_is_where_it_was(state: ProtectedState) -> None:
    for finalized, paused, end in (
        (True, False, ProtectedState.PROTECTED),
        (True, True, ProtectedState.PAUSED),
        (False, False, ProtectedState.ENABLING),
    ):
        events = home(state, finalized=finalized, paused=paused)
        here = state
        if state in (ProtectedState.COMMITTING, ProtectedState.COMMIT_FAILED):
            assert events is None, "a commit is not given back"
            continue
        assert events is not None
        for event in events:
            here = after(here, event, "shop")
        assert here is end
    assert home(ProtectedState.PROTECTED, finalized=True, paused=False) is None


def test_what_the_table_does_not_list_is_refused() -> None:
    for state, event in itertools.product(ProtectedState, ProtectedEvent):
        if event not in TABLE[state]:
            with pytest.raises(ItemTransition, match="shop"):
                after(state, event, "shop")


def test_no_report_ends_or_begins_a_protection() -> None:
    """Whatever a gateway says: what people asked for stands."""
    asked = {
        ProtectedState.UNPROTECTED,
        ProtectedState.PAUSED,
        ProtectedState.DISABLING,
        ProtectedState.DISABLING_FAILED,
        ProtectedState.FINALIZING,
        ProtectedState.FINALIZE_FAILED,
        ProtectedState.COPIED,
        *TAKEN_OVER,
        *STANDING,
    }
    words = [*(state.value for state in ItemState), "something newer", ""]
    for state, word, finalized, waits in itertools.product(
        ProtectedState, words, (False, True), (False, True)
    ):
        event = reported(state, word, finalized=finalized, resync_waits=waits)
        if event is None:
            continue
        assert state not in asked, f"{word} moved {state}"
        to = TABLE[state][event]
        assert to not in asked - {ProtectedState.COPIED}
        if state in COUNTED:
            assert to in COUNTED, "what is finalised stays so"
        if to in COUNTED and state not in COUNTED:
            assert finalized, "only what is finalised is protected"
        if waits:
            assert to is not ProtectedState.PROTECTED


def test_nothing_is_given_up_by_force_while_a_gateway_can_be_asked() -> None:
    for state in FORGETTABLE:
        assert ItemOperation.FORGET in allowed_operations(state, ItemFacts())
        assert ItemOperation.FORGET not in allowed_operations(state, ItemFacts(reachable=True))
    with pytest.raises(OperationNotAllowed, match="can be asked"):
        check_operation("shop", ProtectedState.UNPLANNED, ItemFacts(reachable=True), ItemOperation.FORGET)
