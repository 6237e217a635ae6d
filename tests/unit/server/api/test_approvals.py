"""Approvals over the real API and with the client: from the demand to the job that goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from secondsite.base.errors import InvalidInput
from secondsite.cli.server.approvals import parse_demands
from secondsite.client import approvals as client
from secondsite.server.config import ServerConfig
from secondsite.server.jobs.definitions import DONE, Definition, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.main import Server
from secondsite.server.people.asking import ask_approval
from secondsite.server.people.roles import Actor, Grant, Role
from secondsite.server.people.tokens import Limit
from support.server import Caller, RunningApi, cheap_passwords, owner, running_api, user_with

SECONDS_MAX = 30.0
NEVER = threading.Event()


class Wipe(msgspec.Struct, frozen=True):
    machine: str = "shop"


@dataclass
class Rig:
    api: RunningApi
    boss: Caller
    vault: str
    wiped: list[str] = field(default_factory=list)

    def wipe(self, actor: str) -> str:
        services = self.api.services
        assert services.jobs is not None
        with services.database.write() as connection:
            job = services.jobs.start(connection, "wipe", Wipe(), actor, vault=self.vault)
        services.nudge_jobs()
        return job

    def wait(self, job: str, state: str) -> dict[str, object]:
        for _ in range(int(SECONDS_MAX / 0.02)):
            found: dict[str, object] = self.boss("GET", f"/api/v1/jobs/{job}").json()
            if found["state"] == state:
                return found
            NEVER.wait(0.02)
        raise AssertionError(found)

    def user(self, name: str, role: Role, vault: str | None = None) -> Caller:
        return self.boss.as_(user_with(self.api.services, name, Grant(vault or self.vault, role)))


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    wiped: list[str] = []

    def wipe(run: StepRun[Wipe]) -> Result:
        wiped.append(run.job)
        return DONE

    definition = Definition(
        "wipe",
        1,
        Wipe,
        (Step("approval", lambda run: ask_approval(run, "wipe")), Step("wipe", wipe)),
        title=lambda given: f"Wipe {given.machine}",
        approvals=("wipe",),
    )
    config = ServerConfig(state_dir=tmp_path, database=database_url, url="https://server.example")
    server = Server(config, passwords=cheap_passwords(), definitions=[definition])
    services = server.open()
    assert services.identity is not None
    server._worker.start()
    vault = services.identity.vaults.create("North").id
    with running_api(services) as api:
        yield Rig(api, api.call.as_(owner(services)), vault, wiped)
    server._worker.stop()
    server.stop()


def test_from_the_demand_to_the_job_that_goes_on(rig: Rig) -> None:
    shown = rig.boss("GET", "/api/v1/vaults/North/approvals").json()
    assert shown["demands"] == []
    assert "wipe" in shown["known"]
    unknown = {"demands": [{"operation": "no-such", "people": 1}]}
    assert rig.boss("PUT", "/api/v1/vaults/North/approvals", unknown).code == "approval.operation-unknown"
    wanted = {"demands": [{"operation": "wipe", "people": 1}]}
    changed = rig.boss("PUT", "/api/v1/vaults/North/approvals", wanted)
    assert changed.status == 202
    rig.wait(changed.json()["id"], "Succeeded")
    assert rig.boss("GET", "/api/v1/vaults/North/approvals").json()["demands"] == wanted["demands"]

    job = rig.wipe("otto")
    waiting = rig.wait(job, "Suspended")
    assert waiting["allowedOperations"] == ["approve", "reject", "cancel"]
    operator, approver = rig.user("otto", Role.OPERATOR), rig.user("anna", Role.APPROVER)
    foreign = rig.user("fred", Role.APPROVER, "another")
    assert (
        operator("POST", f"/api/v1/jobs/{job}/resume", {"answer": "approved"}).code == "job.approval-needed"
    )
    assert operator("POST", f"/api/v1/jobs/{job}/approve", {}).code == "access.forbidden"
    assert foreign("POST", f"/api/v1/jobs/{job}/approve", {}).code == "job.not-found"
    assert foreign("GET", f"/api/v1/jobs/{job}/approvals").code == "job.not-found"
    assert foreign("GET", "/api/v1/approvals").json()["value"] == []
    (asked,) = approver("GET", "/api/v1/approvals").json()["value"]
    assert (asked["job"], asked["operation"], asked["askedBy"]) == (job, "wipe", "otto")
    assert rig.wiped == []
    given = approver("POST", f"/api/v1/jobs/{job}/approve", {"comment": "agreed"})
    assert given.status == 202
    rig.wait(job, "Succeeded")
    (told,) = approver("GET", f"/api/v1/jobs/{job}/approvals").json()["value"]
    assert (told["state"], told["votes"][0]["voter"]) == ("Approved", "anna")
    rows = rig.boss("GET", "/api/v1/audit?operation=approval.approve").json()["value"]
    assert [(row["actor"], row["vault"], row["outcome"]) for row in rows] == [
        ("anna", rig.vault, "succeeded")
    ]

    told = rig.boss("GET", "/api/v1/events").json()["value"]
    codes = [event["code"] for event in told if event["code"].startswith("approval.")]
    assert sorted(codes) == ["approval.approved", "approval.asked"]

    weaker = rig.boss("PUT", "/api/v1/vaults/North/approvals", {"demands": []}).json()["id"]
    rig.wait(weaker, "Suspended")
    assert rig.boss("POST", f"/api/v1/jobs/{weaker}/approve", {}).code == "approval.four-eyes"
    assert approver("POST", f"/api/v1/jobs/{weaker}/reject", {"comment": "no"}).status == 202
    assert rig.wait(weaker, "Failed")["error"]["code"] == "approval.rejected"  # type: ignore[index]


def test_an_approvers_token_approves_and_changes_nothing_else(rig: Rig) -> None:
    services = rig.api.services
    made = services.users.get("olga")
    limit = Limit(role=Role.APPROVER)
    actor = rig.api.services.tokens.caller(rig.boss.token)
    text = services.tokens.create(_actor(actor.name), made.id, "olga", name="bell", days=1, limit=limit).text
    bell = rig.boss.as_(text)
    wanted = {"demands": [{"operation": "wipe"}]}
    rig.wait(rig.boss("PUT", "/api/v1/vaults/North/approvals", wanted).json()["id"], "Succeeded")
    job = rig.wipe("otto")
    rig.wait(job, "Suspended")
    for method, path, body in (
        ("PUT", "/api/v1/vaults/North/approvals", wanted),
        ("POST", f"/api/v1/jobs/{job}/cancel", None),
        ("POST", f"/api/v1/jobs/{job}/resume", {"answer": "yes"}),
        ("POST", f"/api/v1/jobs/{job}/retry", None),
        ("POST", "/api/v1/me/tokens", {"name": "more"}),
        ("PUT", "/api/v1/me/password", {"password": "correct horse battery"}),
        ("PATCH", "/api/v1/vaults/North", {"description": "x"}),
        ("POST", "/api/v1/users", {"name": "second"}),
    ):
        assert bell(method, path, body).code == "access.forbidden", path
    assert bell("GET", f"/api/v1/jobs/{job}").status == 200
    assert bell("POST", f"/api/v1/jobs/{job}/approve", {}).status == 202
    rig.wait(job, "Succeeded")


def _actor(name: str) -> Actor:
    return Actor(name, "token:1")


def test_the_clients_words_are_the_descriptions(rig: Rig) -> None:
    schemas = rig.boss("GET", "/api/v1/openapi.json").json()["components"]["schemas"]
    for kind, name in (
        (client.Vote, "VoteView"),
        (client.Approval, "ApprovalView"),
        (client.Demand, "DemandView"),
        (client.Demands, "DemandsView"),
    ):
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(
            schemas[name]["properties"]
        )


def test_demands_as_they_are_typed() -> None:
    assert parse_demands(["a-b,c=2", "d"]) == {"a-b": 1, "c": 2, "d": 1}
    for wrong in ("a=0", "a b", "", "a,,b", "=2"):
        with pytest.raises(InvalidInput):
            parse_demands([wrong])
