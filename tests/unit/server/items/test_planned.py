"""Planned failovers as jobs, and shutting down first: nothing lost, a person asked, the source runs again."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.model import confirmations
from secondsite.server.calls.service import Calls
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.transfer.calls import Answer
from support.item_failovers import FakeFailovers
from support.item_stops import FakeStops
from support.items import ItemPlace, a_machine, output

SHOP = a_machine()
MOVED = confirmations.moved("shop", "gateway-a", "gateway-b")


@pytest.fixture
def there(place: ItemPlace) -> FakeFailovers:
    """Of the target of a machine that is protected."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    found = place.gateways["gateway-b"].failovers
    stops = place.gateways["gateway-a"].stops
    stops.last_point = lambda: found.last + 1
    stops.taken = lambda machine: any(
        one["machine"] == machine and one.get("epoch") for one in found.known.values()
    )
    return found


@pytest.fixture
def stops(place: ItemPlace, there: FakeFailovers) -> FakeStops:
    assert there.known == {}
    return place.gateways["gateway-a"].stops


def given(place: ItemPlace) -> dict[str, Any]:
    item = place.item(SHOP.id)
    return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop", "by": "ann"}


def move(place: ItemPlace, **more: Any) -> str:
    return place.worker.start(PLANNED_FAILOVER, PlannedFailover(**{**given(place), "confirm": MOVED, **more}))


def fail_over(place: ItemPlace) -> str:
    said = confirmations.taken_over("shop", "gateway-a")
    return place.worker.start(
        FAILOVER, Failover(**given(place), confirm=said, shut_down=True, shut_down_seconds=30.0)
    )


def state(place: ItemPlace) -> str:
    return place.item(SHOP.id).state.value


def answer(place: ItemPlace, job: str, said: str) -> None:
    with place.database.write() as connection:
        place.worker.jobs.resume(connection, job, said, "ann")


def retry(place: ItemPlace, job: str) -> records.Job:
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job, "ann")
    return place.run(job)


def cancel(place: ItemPlace, job: str) -> None:
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")


def under_way(place: ItemPlace, job: str, step: str) -> None:
    place.run(
        job,
        until=lambda _job: any(
            one.name == step and one.state.value == "InProgress" for one in place.worker.steps(job)
        ),
    )


def code(job: records.Job) -> str:
    assert job.error is not None
    return job.error.code


def test_it_is_stopped_proved_and_taken_over_on_exactly_its_last_point(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    job = move(place)
    under_way(place, job, "stop")
    assert state(place) == "PlannedFailoverInitiated"
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    [one] = there.known.values()
    assert (one["kind"], one["point"], one["state"]) == ("Planned", 8, "Completed")
    assert [asked["prove"] for asked in stops.asked] == [True]
    assert output(done)["kind"] == "Planned"
    assert state(place) == "PlannedFailoverCompleted"
    assert stops.runs_again == 0


def test_without_the_sentence_nothing_is_shut_down(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    job = place.run(move(place, confirm=confirmations.taken_over("shop", "gateway-a")))
    assert (job.state, code(job)) == (JobState.FAILED, "failover.confirmation-missing")
    place.gateways["gateway-a"].here = False
    place.clock.advance(600.0)
    away = place.run(move(place))
    assert code(away) == "item.gateway-not-connected"
    assert (stops.asked, there.begun, state(place)) == ([], [], "Protected")


def test_what_does_not_shut_down_is_asked_about_each_time(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    stops.stubborn = 2
    job = move(place, seconds=60.0)
    for said in ("wait", "power-off"):
        asked = place.run(job)
        assert asked.state is JobState.SUSPENDED
        assert asked.question is not None
        assert asked.question.choices == ("wait", "power-off")
        assert state(place) == "PlannedFailoverInitiated"
        answer(place, job, said)
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert [one["powerOff"] for one in stops.asked] == [False, False, True]
    assert len({one["operation"] for one in stops.asked}) == 1, "one stop"
    assert len(there.begun) == 1


def test_cancelled_while_it_is_asked_the_source_runs_on(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    stops.stubborn = 1
    job = move(place)
    assert place.run(job).state is JobState.SUSPENDED
    cancel(place, job)
    assert place.run(job).state is JobState.CANCELLED
    assert (stops.runs_again, there.begun, state(place)) == (1, [], "Protected")


@pytest.mark.parametrize("back", [True, False])
def test_taken_back_while_its_gateway_is_away_it_is_waited_for_and_then_told(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops, back: bool
) -> None:
    stops.stubborn = 1
    job = move(place)
    assert place.run(job).state is JobState.SUSPENDED
    source = place.gateways["gateway-a"]
    source.here = False
    place.clock.advance(600.0)
    cancel(place, job)
    for _ in range(10):
        place.round()
    assert place.worker.get(job).live, "it is waited for"
    source.here = back
    assert place.run(job).state is JobState.CANCELLED
    assert (stops.runs_again, there.begun, state(place)) == (int(back), [], "Protected")
    assert ("item.left-stopped" in place.codes()) is not back


@pytest.mark.parametrize("fault", ["the stop", "the claim"])
def test_what_fails_before_the_claim_is_taken_back_and_tried_again(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops, fault: str
) -> None:
    if fault == "the stop":
        stops.fails = 1
    else:
        there.claims_badly = 1
    job = place.run(move(place))
    assert (job.state, code(job)) == (
        JobState.FAILED,
        "planned.differs" if fault == "the stop" else "failover.taken-over",
    )
    assert (stops.runs_again, state(place)) == (1, "Protected")
    done = retry(place, job.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len({one["operation"] for one in stops.asked}) == 2, "another stop"


def test_after_the_claim_the_source_stays_stopped(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    there.boots_badly = 1
    job = place.run(move(place))
    assert (job.state, code(job)) == (JobState.FAILED, "fabric.no-room")
    assert state(place) == "PlannedFailoverCompletionFailed"
    cancel(place, job.id)
    assert place.run(job.id).state is JobState.CANCELLED
    assert stops.runs_again == 0
    assert state(place) == "PlannedFailoverCompletionFailed"


@pytest.mark.parametrize("step", ["stop", "begin"])
def test_lost_answers_and_another_worker_stop_and_claim_once(
    place: ItemPlace,
    there: FakeFailovers,
    stops: FakeStops,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    job = move(place)
    taken = Calls.answer

    def begun() -> bool:
        return bool(stops.asked if step == "stop" else there.begun)

    def unanswered(calls: Calls, gateway: str, told: Answer) -> None:
        if not begun():
            taken(calls, gateway, told)

    monkeypatch.setattr(Calls, "answer", unanswered)
    for _ in range(60):
        place.round()
        if begun():
            break
    assert begun()
    for gateway in place.gateways.values():
        gateway.kept.clear()  # and the gateways were restarted
    monkeypatch.undo()
    place.clock.advance(6.0)
    assert place.worker.claims.take(1, place.worker.stop)
    place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert (len(stops.asked), len(there.begun)) == (1, 1)


# shutting down first, in an unplanned one


def test_shut_down_first_where_that_is_possible(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    done = place.run(fail_over(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert [one["prove"] for one in stops.asked] == [False]
    assert stops.stopped(SHOP.id)
    assert len(there.begun) == 1


@pytest.mark.parametrize("trouble", ["away", "silent", "stubborn", "busy", "wrong"])
def test_whatever_comes_of_the_shutdown_the_failover_goes_on(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    source = place.gateways["gateway-a"]
    if trouble == "away":
        source.here = False
        place.clock.advance(600.0)
    elif trouble == "silent":  # heard of, and it answers nothing
        monkeypatch.setattr(source, "answer", lambda: None)
    elif trouble == "stubborn":
        stops.stubborn = 1
    elif trouble == "busy":
        stops.left = 10**6
        monkeypatch.setattr(stops, "_work", lambda _one: None)
    else:
        stops.fails = 1
    job = fail_over(place)
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert any("taken over all the same" in line for line in place.worker.log(job))
    assert len(there.begun) == 1


def test_what_was_shut_down_runs_again_when_nothing_was_claimed(
    place: ItemPlace, there: FakeFailovers, stops: FakeStops
) -> None:
    there.claims_badly = 1
    job = place.run(fail_over(place))
    assert (job.state, code(job)) == (JobState.FAILED, "failover.taken-over")
    assert (stops.runs_again, state(place)) == (1, "Protected")
