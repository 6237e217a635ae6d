"""Test failovers as jobs: booted once whatever is lost on the way, taken back, cleaned up, tried again."""

from __future__ import annotations

import pytest

from secondsite.model.items import allowed_operations
from secondsite.server.calls.service import Calls
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.testfailover import TEST_CLEANUP, TEST_FAILOVER, TestCleanup, TestFailover
from secondsite.transfer.calls import Answer, Ask
from support.item_tests import FakeTests
from support.items import ItemPlace, a_machine, output

SHOP = a_machine()


@pytest.fixture
def tests(place: ItemPlace) -> FakeTests:
    """Of the target of a machine that is protected."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    return place.gateways["gateway-b"].tests


def boot(place: ItemPlace, point: str = "latest", network: str = "isolated") -> str:
    item = place.item(SHOP.id)
    given = TestFailover(
        vault=item.vault_id,
        item=item.id,
        machine=SHOP.id,
        name="shop",
        point=point,
        network=network,
        by="ann",
    )
    return place.worker.start(TEST_FAILOVER, given)


def remove(place: ItemPlace, *, force: bool = False) -> str:
    item = place.item(SHOP.id)
    given = TestCleanup(
        vault=item.vault_id,
        item=item.id,
        machine=SHOP.id,
        name="shop",
        notes="it boots",
        force=force,
        by="ann",
    )
    return place.worker.start(TEST_CLEANUP, given)


def standing(place: ItemPlace) -> str:
    replica = place.item(SHOP.id).replica
    assert replica is not None
    return replica.test_state


def retry(place: ItemPlace, job: str) -> records.Job:
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job, "ann")
    return place.run(job)


def test_it_is_booted_shown_and_cleaned_up(place: ItemPlace, tests: FakeTests) -> None:
    job = place.run(boot(place))
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    said = output(job)
    assert (said["point"], said["name"], said["booted_seconds"]) == (7, "shop-test", 4.0)
    assert said["operation"] == tests.begun[0]
    assert standing(place) == "Completed"
    item = place.item(SHOP.id)
    allowed = {one.value for one in allowed_operations(item.state, item.facts)}
    assert "testFailoverCleanup" in allowed
    assert "testFailover" not in allowed
    done = place.run(remove(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert standing(place) == ""
    [one] = tests.known.values()
    assert (one["state"], one["notes"]) == ("CleanupCompleted", "it boots")
    with place.database.read() as connection:
        calls = connection.exec_driver_sql("SELECT count(*) FROM calls").scalar_one()
    assert calls == 0, "what was answered is forgotten"
    nothing = place.run(remove(place))
    assert nothing.error is not None
    assert nothing.error.code == "item.test-failover-none"


@pytest.mark.parametrize(
    ("point", "network", "code"),
    [
        ("99", "isolated", "point.not-found"),
        ("latest", "nowhere", "test-failover.prerequisites"),
    ],
)
def test_what_is_in_the_way_is_told_and_nothing_is_begun(
    place: ItemPlace, tests: FakeTests, point: str, network: str, code: str
) -> None:
    job = place.run(boot(place, point, network))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert tests.begun == []


def test_a_target_that_is_away_is_named(place: ItemPlace, tests: FakeTests) -> None:
    place.gateways["gateway-b"].here = False
    place.clock.advance(600.0)
    job = place.run(boot(place))
    assert job.error is not None
    assert job.error.code == "item.gateway-not-connected"
    assert tests.begun == []


@pytest.mark.parametrize("lost", ["the request", "the answer"])
def test_another_worker_in_the_middle_boots_no_second_machine(
    place: ItemPlace, tests: FakeTests, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The worker dies after it asked; the gateway has begun, or its answer never comes."""
    job = boot(place)
    target = place.gateways["gateway-b"]
    taken = Calls.answer

    def unanswered(calls: Calls, gateway: str, answer: Answer) -> None:
        if not tests.begun:
            taken(calls, gateway, answer)

    if lost == "the answer":
        monkeypatch.setattr(Calls, "answer", unanswered)
        for _ in range(40):
            place.round()
            if tests.begun:
                break
        assert tests.begun
        target.kept.clear()  # and the gateway was restarted
        monkeypatch.undo()
    else:
        place.run(job, until=lambda _job: "start" in _names(place, job, "InProgress"))
    # the next one takes it and dies without a word
    place.clock.advance(6.0)
    assert place.worker.claims.take(1, place.worker.stop)
    place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(tests.begun) == 1
    assert output(done)["operation"] == tests.begun[0]


def _names(place: ItemPlace, job: str, state: str) -> list[str]:
    return [step.name for step in place.worker.steps(job) if step.state.value == state]


def test_one_that_does_not_boot_is_told_and_tried_again_as_another(
    place: ItemPlace, tests: FakeTests
) -> None:
    tests.boots_badly = 1
    job = place.run(boot(place))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "fabric.no-room"
    assert len(tests.begun) == 1, "what failed is not looked at again and again"
    assert standing(place) == ""
    done = retry(place, job.id)
    assert done.state is JobState.SUCCEEDED
    assert len(set(tests.begun)) == 2
    assert output(done)["operation"] == tests.begun[1]


@pytest.mark.parametrize("when", ["asked", "booting"])
def test_cancelled_it_leaves_nothing_and_never_begins_later(
    place: ItemPlace, tests: FakeTests, when: str
) -> None:
    job = boot(place)
    target = place.gateways["gateway-b"]
    step = "start" if when == "asked" else "booted"
    place.run(job, until=lambda _job: step in _names(place, job, "InProgress"))
    late = [call for call in place.calls.ready(target.who.id, Ask(room=8)) if call.method == "POST"]
    if when == "asked":
        # the request is on its way while the job is taken back
        with place.database.write() as connection:
            place.worker.jobs.cancel(connection, job, "ann")
        place.calls.forget([call.id for call in late])
        assert place.run(job).state is JobState.CANCELLED
        assert len(late) == 1
        assert tests.answer(late[0])[1]["code"] == "test-failover.called-off"
        assert tests.begun == []
        return
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED
    [one] = tests.known.values()
    assert one["state"] == "CleanupCompleted"
    assert job in one["notes"]
    assert standing(place) == ""


def test_a_removal_that_fails_says_why_and_is_asked_for_again(place: ItemPlace, tests: FakeTests) -> None:
    place.run(boot(place))
    tests.removals_fail = 2
    job = place.run(remove(place))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "fabric.busy"
    assert standing(place) == "CompletionFailed"
    assert tests.removals == 1
    assert retry(place, job.id).state is JobState.FAILED
    assert tests.removals == 2, "not the answer to the first one once more"
    assert retry(place, job.id).state is JobState.SUCCEEDED
    assert (tests.removals, standing(place)) == (3, "")


def test_a_removal_goes_on_under_another_worker(place: ItemPlace, tests: FakeTests) -> None:
    place.run(boot(place))
    job = remove(place)
    place.run(job, until=lambda _job: tests.removals == 1)
    place.clock.advance(6.0)
    assert place.worker.claims.take(1, place.worker.stop)
    place.worker.succeeded_by_a_peer()
    assert place.run(job).state is JobState.SUCCEEDED
    assert (tests.removals, standing(place)) == (1, "")


@pytest.mark.parametrize("fails", [0, 1])
def test_one_whose_record_cannot_be_read_is_removed_by_force(
    place: ItemPlace, tests: FakeTests, fails: int
) -> None:
    """Nobody is told of it, so that only force finds it; tried again it goes on with what was found."""
    place.run(boot(place))
    [identity] = tests.known
    tests.unreadable[identity] = tests.known.pop(identity)
    place.round()
    assert standing(place) == ""
    unforced = place.run(remove(place))
    assert unforced.error is not None
    assert unforced.error.code == "item.test-failover-none"
    tests.removals_fail = fails
    done = place.run(remove(place, force=True))
    if fails:
        assert done.state is JobState.FAILED
        place.round()
        assert standing(place) == "CompletionFailed"
        done = retry(place, done.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert standing(place) == ""
    [one] = tests.known.values()
    assert (one["state"], one["notes"]) == ("CleanupCompleted", "it boots")
    nothing = place.run(remove(place, force=True))
    assert nothing.error is not None
    assert nothing.error.code == "item.test-failover-none"
