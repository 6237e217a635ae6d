"""A job over a group: a child job a machine, waited for without a thread, cancelled with it."""

from __future__ import annotations

import msgspec
import pytest

from secondsite.server.database.engine import Database
from secondsite.server.jobs import records
from secondsite.server.jobs.definitions import (
    DONE,
    Definition,
    Done,
    OnFailure,
    Result,
    RetryAfter,
    Step,
    WaitForChildren,
)
from secondsite.server.jobs.errors import JobNotFound
from secondsite.server.jobs.run import StepRun, all_succeeded
from secondsite.server.jobs.states import JobState
from support.job_hand import HandWorker


class Group(msgspec.Struct):
    machines: list[str]


class One(msgspec.Struct):
    machine: str


class Count(msgspec.Struct):
    good: int


def group(run: StepRun[Group]) -> Result:
    for machine in run.input.machines:
        run.start_child("One", One(machine), machine)
    children = run.children()
    if any(child.live for child in children.values()):
        return WaitForChildren()
    if not all_succeeded(children):
        raise JobNotFound(job="one of the group")
    return Done(Count(len(children)))


class Site:
    """What the children do, by the machine's name."""

    def __init__(self, database: Database) -> None:
        self.calls: list[str] = []
        self.child = Definition(
            "One",
            1,
            One,
            (Step("do", do=self.do, undo=self.undo),),
            title=lambda given: given.machine,
            locks=lambda given: [f"machine:{given.machine}"],
        )
        self.parent = Definition(
            "Group",
            1,
            Group,
            (Step("group", do=group, undo=self.after),),
            title=lambda _given: "group",
            on_failure=OnFailure.UNDO,
        )
        self.worker = HandWorker(database, [self.child, self.parent])

    def do(self, run: StepRun[One]) -> Result:
        self.calls.append(f"do {run.input.machine}")
        if run.input.machine.startswith("bad"):
            raise JobNotFound(job="planted")
        return RetryAfter(60, "waits") if run.input.machine.startswith("slow") and run.attempt == 1 else DONE

    def undo(self, run: StepRun[One]) -> Result:
        self.calls.append(f"undo {run.input.machine}")
        return DONE

    def after(self, run: StepRun[Group]) -> Result:
        self.calls.append("undo group")
        return DONE


def children(site: Site, parent: str) -> dict[str, JobState]:
    with site.worker.database.read() as connection:
        return {job.title: job.state for job in records.listed(connection, parent=parent)}


@pytest.fixture
def site(timed: Database) -> Site:
    return Site(timed)


def test_a_child_a_machine_and_the_parent_counts_them(site: Site) -> None:
    job = site.worker.start("Group", Group(["a", "slow", "c"]))
    site.worker.idle()
    waiting = site.worker.get(job)
    assert (waiting.state, waiting.worker) == (JobState.IN_PROGRESS, None)
    assert children(site, job) == {
        "a": JobState.SUCCEEDED,
        "slow": JobState.IN_PROGRESS,
        "c": JobState.SUCCEEDED,
    }
    site.worker.clock.advance(61)
    site.worker.idle()
    assert site.worker.get(job).output == '{"good":3}'
    assert sorted(site.calls) == ["do a", "do c", "do slow", "do slow"], (
        "one child for each, also when asked again"
    )
    with site.worker.database.read() as connection:
        assert [one.id for one in records.listed(connection)] == [job], (
            "children stand in no list of their own"
        )


def test_children_are_of_their_parents_vault(site: Site) -> None:
    with site.worker.database.write() as connection:
        job = site.worker.jobs.start(connection, "Group", Group(["a", "b"]), "ann", vault="north")
    site.worker.idle()
    with site.worker.database.read() as connection:
        assert {one.vault for one in records.listed(connection, parent=job)} == {"north"}
        assert [one.id for one in records.listed(connection, vaults=["north"])] == [job]
        assert records.listed(connection, vaults=["south"]) == []


def test_a_child_that_fails_is_the_parents_to_judge(site: Site) -> None:
    job = site.worker.start("Group", Group(["a", "bad"]))
    site.worker.idle()
    assert site.worker.get(job).state is JobState.FAILED
    assert children(site, job) == {"a": JobState.SUCCEEDED, "bad": JobState.FAILED}
    assert site.calls[-1] == "undo group"


def test_a_cancel_reaches_the_children_and_waits_for_them(site: Site) -> None:
    job = site.worker.start("Group", Group(["a", "slow1", "slow2"]))
    site.worker.idle()
    with site.worker.database.write() as connection:
        site.worker.jobs.cancel(connection, job, "ann")
    site.worker.idle()
    assert site.worker.get(job).state is JobState.CANCELLED
    assert children(site, job) == {
        "a": JobState.SUCCEEDED,
        "slow1": JobState.CANCELLED,
        "slow2": JobState.CANCELLED,
    }
    assert site.calls[-1] == "undo group"
    assert site.calls.index("undo slow1") < len(site.calls) - 1


def test_a_group_waits_for_a_machine_that_is_worked_on(site: Site) -> None:
    """The lock of a child is refused to the parent's step, which fails with the name of the holder."""
    other = site.worker.start("One", One("slow"))
    site.worker.idle()
    job = site.worker.start("Group", Group(["slow"]))
    site.worker.idle()
    found = site.worker.get(job)
    assert found.error is not None
    assert (found.state, found.error.code) == (JobState.FAILED, "job.locked")
    assert other in found.error.happened


def test_children_go_with_their_parent(site: Site) -> None:
    job = site.worker.start("Group", Group(["a", "b"]))
    site.worker.idle()
    with site.worker.database.write() as connection:
        assert site.worker.jobs.delete_ended(connection, "9") == 1
    assert children(site, job) == {}
