"""Jobs over the real API: a page at a time, looked into, steered, each with its row in the audit log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from secondsite.base.errors import InvalidInput
from secondsite.server.database.engine import Database
from secondsite.server.jobs.definitions import DONE, Ask, Definition, Done, Registry, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.worker import Worker, WorkerSettings
from secondsite.server.people.roles import THE_SERVER, Grant, Role
from secondsite.server.people.tokens import Limit
from support.server import Answer, Caller, RunningApi, make_services, owner, running_api, user_with

SECONDS_MAX = 30.0


class Errand(msgspec.Struct, frozen=True):
    """What the test's jobs are asked to do."""

    text: str = "x"
    ask: bool = False


class Found(msgspec.Struct, frozen=True):
    """What they leave."""

    letters: int


@dataclass
class Switches:
    """How the steps behave just now."""

    broken: set[str] = field(default_factory=set)

    def run(self, run: StepRun[Errand]) -> Result:
        if run.input.text in self.broken:
            raise InvalidInput(what=f"the errand {run.input.text!r}", why="the test says so")
        if run.input.ask and run.answer is None:
            return Ask("Go on?", ("yes", "no"))
        return Done(Found(len(run.input.text)))


@dataclass
class Rig:
    """An API, and a worker for its jobs."""

    api: RunningApi
    jobs: Jobs
    worker: Worker
    switches: Switches
    call: Caller

    def start(self, errand: Errand) -> str:
        with self.api.services.database.write() as connection:
            job = self.jobs.start(connection, "test.errand", errand, "olga")
        self.worker.nudge()
        return job

    def wait(self, job: str, *states: str) -> dict[str, object]:
        never = threading.Event()
        for _ in range(int(SECONDS_MAX / 0.02)):
            found: dict[str, object] = self.call("GET", f"/api/v1/jobs/{job}").json()
            if found["stateDescription"] in states:
                return found
            never.wait(0.02)
        raise AssertionError(f"{job} is {found}")


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Iterator[Rig]:
    switches = Switches()
    errand = Definition(
        kind="test.errand",
        version=1,
        input=Errand,
        steps=(Step[Errand]("prepare", lambda _: DONE), Step[Errand]("run", switches.run, tries=1)),
        title=lambda given: f"Errand {given.text}",
    )
    services = make_services(database, tmp_path)
    services.jobs = jobs = Jobs(Registry([errand]), database.clock)
    worker = Worker(database, jobs, WorkerSettings(threads=2))
    services.nudge_jobs = worker.nudge
    worker.start()
    with running_api(services) as api:
        yield Rig(api, jobs, worker, switches, api.call.as_(owner(services)))
    worker.stop()


def _rows(rig: Rig, operation: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = rig.call("GET", f"/api/v1/audit?operation={operation}").json()["value"]
    return found


def test_a_job_is_followed_to_its_end(rig: Rig) -> None:
    job = rig.start(Errand("hello"))
    done = rig.wait(job, "Completed")
    assert done["state"] == "Succeeded"
    assert done["title"] == "Errand hello"
    assert done["progress"] == 1.0
    assert done["output"] == {"letters": 5}
    assert [(step["name"], step["state"]) for step in done["steps"]] == [  # type: ignore[attr-defined]
        ("prepare", "Succeeded"),
        ("run", "Succeeded"),
    ]
    assert done["allowedOperations"] == ["restart"]
    log = rig.call("GET", f"/api/v1/jobs/{job}/log").json()["value"]
    assert log[0]["text"] == "asked for by olga"


def test_a_failed_job_is_retried_and_says_why_it_failed(rig: Rig) -> None:
    rig.switches.broken.add("bad")
    job = rig.start(Errand("bad"))
    failed = rig.wait(job, "Failed")
    assert failed["error"]["code"] == "input.invalid"  # type: ignore[index]
    assert "the test says so" in failed["error"]["happened"]  # type: ignore[index]
    rig.switches.broken.clear()
    answer = rig.call("POST", f"/api/v1/jobs/{job}/retry")
    assert answer.status == 202
    assert answer.headers["location"] == f"/api/v1/jobs/{job}"
    rig.wait(job, "Completed")
    row = _rows(rig, "job.retry")[0]
    assert (row["actor"], row["target"], row["outcome"]) == ("olga", job, "succeeded")


def test_a_suspended_job_is_answered_or_cancelled(rig: Rig) -> None:
    first, second = rig.start(Errand("one", ask=True)), rig.start(Errand("two", ask=True))
    waiting = rig.wait(first, "WaitingForAnswer")
    assert waiting["state"] == "Suspended"
    assert waiting["question"] == {"question": "Go on?", "choices": ["yes", "no"], "approval": None}
    operator = rig.call.as_(user_with(rig.api.services, "anna", Grant("*", Role.OPERATOR)))
    approver = rig.call.as_(user_with(rig.api.services, "adam", Grant("*", Role.APPROVER)))
    for what in ("cancel", "resume"):
        assert approver("POST", f"/api/v1/jobs/{second}/{what}", {"answer": "x"}).code == "access.forbidden"
    assert operator("POST", f"/api/v1/jobs/{first}/resume", {"answer": "yes"}).status == 202
    rig.wait(first, "Completed")
    rig.wait(second, "WaitingForAnswer")
    assert rig.call("POST", f"/api/v1/jobs/{second}/cancel").status == 202
    rig.wait(second, "Cancelled")
    row = _rows(rig, "job.resume")[0]
    assert row["detail"] == {"answer": "yes"}
    assert row["actor"] == "anna"


def test_what_makes_no_sense_now_is_refused_with_what_does(rig: Rig) -> None:
    job = rig.start(Errand())
    rig.wait(job, "Completed")
    for what, body in (("cancel", None), ("retry", None), ("resume", {"answer": "x"})):
        answer = rig.call("POST", f"/api/v1/jobs/{job}/{what}", body)
        assert (answer.status, answer.code) == (409, "job.illegal")
        assert "restart" in answer.json()["action"]
        assert _rows(rig, f"job.{what}") == []
    again = rig.call("POST", f"/api/v1/jobs/{job}/restart")
    assert again.status == 202
    other = again.json()["id"]
    assert again.headers["location"] == f"/api/v1/jobs/{other}"
    assert again.json()["restartOf"] == job
    rig.wait(other, "Completed")
    missing = "0" * 8 + "-0000-0000-0000-" + "0" * 12
    assert rig.call("GET", f"/api/v1/jobs/{missing}").code == "job.not-found"
    assert rig.call("POST", f"/api/v1/jobs/{missing}/cancel").code == "job.not-found"


def _pages(rig: Rig, link: str | None) -> list[str]:
    ids: list[str] = []
    while link:
        page: Answer = rig.call("GET", link)
        assert page.status == 200, page.data
        ids += [job["id"] for job in page.json()["value"]]
        link = page.json()["nextLink"]
    return ids


def test_pages_and_filters(rig: Rig) -> None:
    rig.switches.broken.add("bad")
    jobs = [rig.start(Errand("bad" if number % 3 == 0 else "good")) for number in range(9)]
    for job in jobs:
        rig.wait(job, "Completed", "Failed")
    assert sorted(_pages(rig, "/api/v1/jobs?limit=2")) == sorted(jobs)
    assert set(_pages(rig, "/api/v1/jobs?state=Failed&limit=1")) == set(jobs[::3])
    assert set(_pages(rig, "/api/v1/jobs?state=Failed&state=Succeeded")) == set(jobs)
    assert _pages(rig, "/api/v1/jobs?kind=other") == []
    assert _pages(rig, f"/api/v1/jobs?parent={jobs[0]}") == []
    assert rig.call("GET", "/api/v1/jobs?state=Nonsense").status == 400
    metrics = rig.call("GET", "/metrics").data.decode()
    assert 'secondsite_jobs{state="Failed"} 3.0' in metrics
    assert 'secondsite_jobs{state="Succeeded"} 6.0' in metrics


def test_a_jobs_vault_says_who_sees_and_steers_it(rig: Rig) -> None:
    """Also in listings; who may not see a job is told that there is none."""
    services = rig.api.services
    rig.switches.broken.add("bad")
    with services.database.write() as connection:
        ids = {
            vault: rig.jobs.start(connection, "test.errand", Errand("bad"), "olga", vault=vault)
            for vault in ("north", "south", None)
        }
    rig.worker.nudge()
    for job in ids.values():
        rig.wait(job, "Failed")
    reader = rig.call.as_(user_with(services, "rita", Grant("north", Role.READER)))
    operator = rig.call.as_(user_with(services, "otto", Grant("north", Role.OPERATOR)))
    limited = services.tokens.create(
        THE_SERVER, services.users.get("olga").id, "olga", name="north", days=1, limit=Limit(vault="north")
    )
    for call in (reader, operator, rig.call.as_(limited.text)):
        assert [job["id"] for job in call("GET", "/api/v1/jobs").json()["value"]] == [ids["north"]]
        assert call("GET", f"/api/v1/jobs/{ids['north']}").json()["vaultId"] == "north"
        for foreign in (ids["south"], ids[None]):
            for path in ("", "/log"):
                assert call("GET", f"/api/v1/jobs/{foreign}{path}").code == "job.not-found"
            for path in ("/cancel", "/retry", "/restart"):
                # a reader learns no more: it is the answer for every job there is or is not
                refused = "access.forbidden" if call is reader else "job.not-found"
                assert call("POST", f"/api/v1/jobs/{foreign}{path}").code == refused
    assert reader("POST", f"/api/v1/jobs/{ids['north']}/retry").code == "access.forbidden"
    again = operator("POST", f"/api/v1/jobs/{ids['north']}/restart")
    assert again.status == 202
    assert again.json()["vaultId"] == "north"
    assert _rows(rig, "job.restart")[0]["vault"] == "north"
    assert len(rig.call("GET", "/api/v1/jobs").json()["value"]) == 4
