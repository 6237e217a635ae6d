"""One operation on several items: a child each, some at a time, judged by the parent, tried again alone."""

from __future__ import annotations

import msgspec
import pytest

from secondsite.model.items import ItemOperation, ProtectedEvent, ProtectedState
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import PAUSE, Change
from secondsite.server.operations.group import GROUP, Group, Member
from secondsite.server.operations.points import TAKE_POINT, TakePoint
from support.items import ItemPlace, a_machine, change, output

MACHINES = [a_machine(number, f"machine{number}") for number in range(1, 5)]


@pytest.fixture
def four(place: ItemPlace) -> list[str]:
    return _four(place)


def _four(place: ItemPlace) -> list[str]:
    """The ids of four protected machines."""
    place.site("gateway-a", *MACHINES)
    begun = [place.protect(machine.id, machine.name) for machine in MACHINES]
    for job in begun:
        assert place.run(job).state is JobState.SUCCEEDED
    return [machine.id for machine in MACHINES]


def pausing(place: ItemPlace, machines: list[str], parallel: int = 2) -> str:
    members = []
    for machine in machines:
        item = place.item(machine)
        given = Change(vault=item.vault_id, item=item.id, machine=machine, name=item.name)
        members.append(
            Member(
                item=item.id,
                name=item.name,
                gateway=item.source_name,
                kind=PAUSE,
                input=msgspec.json.encode(given).decode(),
                operations=(ItemOperation.PAUSE,),
            )
        )
    group = Group(vault=place.vault, title="Pause", members=tuple(members), parallel=parallel)
    return place.worker.start(GROUP, group)


def taking_points(place: ItemPlace, machine: str) -> str:
    item = place.item(machine)
    given = TakePoint(
        gateway=item.source_id, gateway_name=item.source_name, machine=machine, machine_name=item.name
    )
    member = Member(
        item=item.id,
        name=item.name,
        gateway=item.source_name,
        kind=TAKE_POINT,
        input=msgspec.json.encode(given).decode(),
        operations=(ItemOperation.TAKE_POINT,),
    )
    return place.worker.start(GROUP, Group(vault=place.vault, title="Take a point", members=(member,)))


def children(place: ItemPlace, parent: str) -> dict[str, records.Job]:
    """By the machine's name."""
    with place.database.read() as connection:
        return {job.title.rpartition(" ")[2]: job for job in records.listed(connection, parent=parent)}


def states(place: ItemPlace, parent: str) -> list[JobState]:
    return [job.state for _, job in sorted(children(place, parent).items())]


def steer(place: ItemPlace, what: str, job: str) -> None:
    with place.database.write() as connection:
        getattr(place.worker.jobs, what)(connection, job, "ann")


def test_so_many_at_a_time_and_all_are_done(each_place: ItemPlace) -> None:
    place = each_place
    four = _four(place)
    taken = place.run(taking_points(place, four[0]))
    assert taken.state is JobState.SUCCEEDED
    [child] = children(place, taken.id).values()
    assert (child.vault, child.state) == (place.vault, JobState.SUCCEEDED), "its roles are the group's"
    job = pausing(place, four)
    most = 0

    def ended(found: records.Job) -> bool:
        nonlocal most
        most = max(most, sum(child.live for child in children(place, job).values()))
        return not found.live

    done = place.run(job, until=ended)
    assert (done.state, done.error, done.warnings) == (JobState.SUCCEEDED, None, 0)
    assert output(done) == {"done": 4, "warned": [], "cancelled": []}
    assert most == 2
    assert {place.item(machine.id).state for machine in MACHINES} == {ProtectedState.PAUSED}
    assert done.title == "Pause: 4 machines"


def test_those_that_fail_are_named_and_tried_again_alone(place: ItemPlace, four: list[str]) -> None:
    source = place.gateways["gateway-a"]
    bad = set(four[1:3])
    source.refuse = lambda wanted: "its guard is away" if wanted.machine in bad and wanted.paused else ""
    job = place.run(pausing(place, four))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "item.group-failed"
    assert "2 of 4" in job.error.happened
    assert "machine2 (Gateway gateway-a does not take what is wanted of machine2" in job.error.happened
    assert "machine1" not in job.error.happened
    first = {name: child.id for name, child in children(place, job.id).items()}
    # one of the two can now
    bad.discard(four[1])
    steer(place, "retry", job.id)
    again = place.run(job.id)
    assert again.error is not None
    assert "1 of 4" in again.error.happened
    bad.clear()
    steer(place, "retry", job.id)
    assert place.run(job.id).state is JobState.SUCCEEDED
    found = children(place, job.id)
    assert {name: child.id for name, child in found.items()} == first, "no second job of the same"
    assert {name: child.retries for name, child in found.items()} == {
        "machine1": 0,
        "machine2": 1,
        "machine3": 2,
        "machine4": 0,
    }


def test_a_machine_that_is_worked_on_is_refused_with_its_job_and_tried_again(
    place: ItemPlace, four: list[str]
) -> None:
    source = place.gateways["gateway-a"]
    source.here = False
    other = place.worker.start(
        PAUSE, Change(vault=place.vault, item=place.item(four[0]).id, machine=four[0], name="machine1")
    )
    job = pausing(place, four[:2], parallel=1)
    found = place.run(job, until=lambda _job: len(children(place, job)) == 2)
    refused = children(place, job)["machine1"]
    assert refused.state is JobState.FAILED
    assert refused.error is not None
    assert other in refused.error.happened
    assert found.live
    source.here = True
    assert place.run(other).state is JobState.SUCCEEDED
    done = place.run(job)
    assert done.state is JobState.FAILED
    # it is free, and paused: tried again it cannot begin what was done meanwhile, and says so
    steer(place, "retry", job)
    place.run(job)
    assert states(place, job) == [JobState.FAILED, JobState.SUCCEEDED]
    assert change(place, "item.resume", place.item(four[0])).state is JobState.SUCCEEDED
    steer(place, "retry", job)
    assert place.run(job).state is JobState.SUCCEEDED
    assert place.item(four[0]).state is ProtectedState.PAUSED


def test_a_child_begins_only_if_its_machine_still_allows_it(place: ItemPlace, four: list[str]) -> None:
    """Between the look before the group and a child's turn its machine was paused by somebody else."""
    job = pausing(place, four[:2], parallel=1)
    place.run(job, until=lambda _job: len(children(place, job)) == 1)
    item = place.item(four[1])
    with place.database.write() as connection:
        place.parts.items.change(connection, item.id, ProtectedEvent.PAUSED, {"paused": 1})
    before = place.item(four[1]).revision
    done = place.run(job)
    assert done.state is JobState.FAILED
    refused = children(place, job)["machine2"]
    assert refused.error is not None
    assert (refused.state, refused.error.code) == (JobState.FAILED, "item.operation-not-allowed")
    assert "it is Paused" in refused.error.happened
    assert all(step.started is None for step in place.worker.steps(refused.id)), "nothing of it was begun"
    assert place.item(four[1]).revision == before


def test_a_cancel_takes_back_what_runs_and_begins_no_more(place: ItemPlace, four: list[str]) -> None:
    job = pausing(place, four, parallel=1)
    place.run(job, until=lambda _job: JobState.SUCCEEDED in states(place, job))
    place.gateways["gateway-a"].here = False
    place.run(job, until=lambda _job: len(children(place, job)) >= 2)
    steer(place, "cancel", job)
    place.gateways["gateway-a"].here = True
    assert place.run(job).state is JobState.CANCELLED
    ends = states(place, job)
    assert len(ends) < 4, "what had not begun never did"
    assert set(ends) == {JobState.SUCCEEDED, JobState.CANCELLED}
    for machine in MACHINES:
        name = machine.name
        child = children(place, job).get(name)
        paused = child is not None and child.state is JobState.SUCCEEDED
        assert place.item(machine.id).paused is paused, name


def test_one_that_was_called_off_is_a_warning(place: ItemPlace, four: list[str]) -> None:
    job = pausing(place, four[:2])
    place.gateways["gateway-a"].here = False
    place.run(job, until=lambda _job: len(children(place, job)) == 2)
    steer(place, "cancel", children(place, job)["machine2"].id)
    place.gateways["gateway-a"].here = True
    done = place.run(job)
    assert (done.state, done.warnings) == (JobState.SUCCEEDED, 1)
    assert output(done) == {"done": 1, "warned": [], "cancelled": ["machine2"]}


@pytest.mark.parametrize("when", ["begun", "tried again"])
def test_another_worker_goes_on_with_it(place: ItemPlace, four: list[str], when: str) -> None:
    """The worker dies with a transaction of the parent's just kept, time and again."""
    source = place.gateways["gateway-a"]
    job = pausing(place, four)
    if when == "tried again":
        source.refuse = lambda wanted: "not now" if wanted.paused else ""
        assert place.run(job).state is JobState.FAILED
        source.refuse = lambda _wanted: ""
        steer(place, "retry", job)
    for _ in range(4):
        place.round()
        holds = place.worker.claims.take(8, place.worker.stop)
        if holds:
            place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert states(place, job) == [JobState.SUCCEEDED] * 4
    assert {child.retries for child in children(place, job).values()} == {int(when == "tried again")}
