"""Four eyes: who may approve, how often it counts, when it ends; and that nothing goes round it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.server.api.services import Services
from secondsite.server.database.engine import open_database
from secondsite.server.identity.vaults import Vaults
from secondsite.server.jobs.definitions import DONE, Definition, Result, Step
from secondsite.server.jobs.errors import ApprovalNeeded
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.states import JobIllegal, JobState
from secondsite.server.operations.approvals import CHANGE_APPROVALS, ChangeApprovals, change_approvals
from secondsite.server.people.approval_errors import ApprovalExpired, ApprovalNone, FourEyes
from secondsite.server.people.approvals import Approvals
from secondsite.server.people.asking import ASKED_FOR, HOLDS, Verdict, ask_approval, set_demanded, weaker
from secondsite.server.people.roles import Actor
from support.job_hand import HandWorker
from support.server import make_services

WIPE = "wipe"


class Wipe(msgspec.Struct, frozen=True):
    machine: str = "shop"


@dataclass
class Rig:
    """A vault where wiping needs an approval, and jobs turned by hand."""

    services: Services
    worker: HandWorker
    approvals: Approvals
    vault: str
    clock: FakeClock
    wiped: list[str] = field(default_factory=list)
    broken: bool = False
    told: list[str] = field(default_factory=list)

    def wipe(self, actor: str = "ann") -> str:
        with self.services.database.write() as connection:
            job = self.worker.jobs.start(connection, WIPE, Wipe(), actor, vault=self.vault)
        self.worker.idle()
        return job

    def say(self, who: str, job: str, verdict: Verdict = Verdict.APPROVED, comment: str = "") -> JobState:
        self.approvals.vote(Actor(who, "token:1"), job, verdict, comment)
        self.worker.idle()
        return self.worker.get(job).state

    def refused(self, who: str, job: str) -> type[SecondsiteError]:
        with pytest.raises(SecondsiteError) as found:
            self.say(who, job)
        return type(found.value)

    def demand(self, **wanted: int) -> str:
        given = ChangeApprovals(vault=self.vault, vault_name="North", wanted=wanted, actor="olga")
        job = self.worker.start(CHANGE_APPROVALS, given, "olga")
        self.worker.idle()
        return job

    def audit(self) -> list[tuple[str, str, str]]:
        entries = self.services.audit.entries()
        return [(one.operation, one.actor, one.outcome) for one in entries if "approval" in one.operation]


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    clock = FakeClock()
    database = open_database(database_url, clock)
    services = make_services(database, tmp_path)
    vault = Vaults(database, clock).create("North").id

    def wipe(run: StepRun[Wipe]) -> Result:
        if made.broken:
            raise InvalidInput(what="the disk", why="the test says so")
        made.wiped.append(run.job)
        return DONE

    definition = Definition(
        WIPE,
        1,
        Wipe,
        (Step("approval", lambda run: ask_approval(run, WIPE)), Step("wipe", wipe, tries=1)),
        title=lambda given: f"Wipe {given.machine}",
        approvals=(WIPE,),
    )
    ending = Definition(
        "end",
        1,
        Wipe,
        (Step("approval", lambda run: ask_approval(run, "end", "delete")),),
        title=lambda given: f"End {given.machine}",
        approvals=("end", "delete"),
    )
    worker = HandWorker(database, [definition, ending, change_approvals(services.audit)])
    made = Rig(services, worker, None, vault, clock)  # type: ignore[arg-type]
    made.approvals = Approvals(
        database, services.audit, worker.jobs, lambda _c, _v, severity, code, _t: made.told.append(code)
    )
    worker.jobs.on_approval = made.approvals.asked
    with database.write() as connection:
        set_demanded(connection, vault, {WIPE: 1})
    yield made
    database.close()


def test_another_person_approves_and_only_then_it_happens(rig: Rig) -> None:
    job = rig.wipe()
    waiting = rig.worker.get(job)
    assert waiting.state is JobState.SUSPENDED
    assert waiting.allowed == ("approve", "reject", "cancel")
    assert waiting.question is not None
    assert waiting.question.approval == WIPE
    assert rig.wiped == []
    assert rig.refused("ann", job) is FourEyes
    with pytest.raises(ApprovalNeeded), rig.services.database.write() as connection:
        rig.worker.jobs.resume(connection, job, "approved", "ann")
    rig.worker.idle()
    assert rig.wiped == []
    (asked,) = rig.approvals.waiting(vaults=[rig.vault])
    assert (asked.job, asked.asked_by, asked.subject, asked.needed) == (job, "ann", "Wipe shop", 1)
    assert rig.approvals.waiting(vaults=["another"]) == []
    assert rig.say("bob", job, comment="go on") is JobState.SUCCEEDED
    assert rig.wiped == [job]
    assert rig.approvals.waiting(vaults=None) == []
    assert [(vote.voter, vote.comment) for vote in rig.approvals.of_job(job)[0].votes] == [("bob", "go on")]
    assert rig.audit() == [
        ("approval.ask", "ann", "succeeded"),
        ("approval.approve", "ann", "refused"),
        ("approval.approve", "bob", "succeeded"),
    ]
    assert rig.told == ["approval.asked", "approval.approved"]
    assert rig.refused("carl", job) is ApprovalNone


def test_two_others_are_two_people(rig: Rig) -> None:
    with rig.services.database.write() as connection:
        set_demanded(connection, rig.vault, {WIPE: 2})
    job = rig.wipe()
    assert rig.say("bob", job) is JobState.SUSPENDED
    assert "1 of 2" in str(rig.worker.get(job).note)
    assert rig.refused("bob", job) is FourEyes
    assert rig.wiped == []
    assert rig.say("carl", job) is JobState.SUCCEEDED


def test_one_no_is_enough_and_a_retry_asks_anew(rig: Rig) -> None:
    job = rig.wipe()
    assert rig.say("bob", job, Verdict.REJECTED, "not on a Friday") is JobState.FAILED
    failed = rig.worker.get(job)
    assert failed.error is not None
    assert failed.error.code == "approval.rejected"
    assert "bob" in failed.error.happened
    assert "not on a Friday" in failed.error.happened
    with rig.services.database.write() as connection:
        rig.worker.jobs.retry(connection, job, "bob")
    rig.worker.idle()
    assert rig.worker.get(job).state is JobState.SUSPENDED
    assert rig.refused("bob", job) is FourEyes  # who had it tried again
    assert rig.refused("ann", job) is FourEyes
    assert rig.say("carl", job) is JobState.SUCCEEDED
    assert rig.wiped == [job]


def test_who_started_it_may_take_it_back(rig: Rig) -> None:
    job = rig.wipe()
    assert rig.say("ann", job, Verdict.REJECTED) is JobState.FAILED
    other = rig.wipe()
    with rig.services.database.write() as connection:
        rig.worker.jobs.cancel(connection, other, "ann")
    rig.worker.idle()
    assert rig.worker.get(other).state is JobState.CANCELLED
    assert rig.approvals.waiting(vaults=None) == []
    assert rig.refused("bob", other) is JobIllegal
    assert rig.wiped == []


def test_nobody_answers_in_time(rig: Rig) -> None:
    job = rig.wipe()
    rig.clock.advance(ASKED_FOR.total_seconds() - 1)
    assert rig.approvals.expire() == 0
    rig.clock.advance(1)
    assert rig.refused("bob", job) is ApprovalExpired  # also before the housekeeping has come round
    assert rig.approvals.expire() == 1
    assert rig.approvals.expire() == 0
    rig.worker.idle()
    found = rig.worker.get(job)
    assert found.error is not None
    assert (found.state, found.error.code) == (JobState.FAILED, "approval.expired")
    assert rig.told[-1] == "approval.expired"
    assert rig.audit()[-1] == ("approval.expire", "server", "succeeded")
    assert rig.wiped == []


@pytest.mark.parametrize("late", [False, True])
def test_an_approval_holds_for_a_day(rig: Rig, late: bool) -> None:
    rig.broken = True
    job = rig.wipe()
    assert rig.say("bob", job) is JobState.FAILED
    rig.broken = False
    if late:
        rig.clock.advance(HOLDS.total_seconds())
    with rig.services.database.write() as connection:
        rig.worker.jobs.retry(connection, job, "ann")
    rig.worker.idle()
    assert rig.worker.get(job).state is (JobState.SUSPENDED if late else JobState.SUCCEEDED)


def test_a_vault_that_demands_nothing_waits_for_nobody(rig: Rig) -> None:
    with rig.services.database.write() as connection:
        set_demanded(connection, rig.vault, {})
    assert rig.worker.get(rig.wipe()).state is JobState.SUCCEEDED


def test_more_is_demanded_at_once_and_less_only_by_two(rig: Rig) -> None:
    more = rig.demand(wipe=2)
    assert rig.worker.get(more).state is JobState.SUCCEEDED
    assert rig.approvals.demanded(rig.vault) == {WIPE: 2}
    less = rig.demand(wipe=1)
    assert rig.worker.get(less).state is JobState.SUSPENDED
    assert rig.refused("olga", less) is FourEyes
    assert rig.say("bob", less) is JobState.SUSPENDED
    assert rig.approvals.demanded(rig.vault) == {WIPE: 2}
    assert rig.say("carl", less) is JobState.SUCCEEDED
    assert rig.approvals.demanded(rig.vault) == {WIPE: 1}
    nothing = rig.demand()
    assert rig.say("bob", nothing, Verdict.REJECTED) is JobState.FAILED
    assert rig.approvals.demanded(rig.vault) == {WIPE: 1}
    assert rig.services.audit.verify().entries > 0


def test_what_is_weaker() -> None:
    assert not weaker({}, {})
    assert not weaker({"a": 1}, {"a": 1, "b": 1})
    assert not weaker({"a": 1}, {"a": 2})
    assert weaker({"a": 2}, {"a": 1, "b": 5})
    assert weaker({"a": 1}, {"b": 1})


def test_what_is_two_things_needs_what_the_stricter_demand_says(rig: Rig) -> None:
    """Deleting a replica is also ending a protection."""
    asked: list[str] = []
    for wanted in ({"end": 1}, {"delete": 2}, {"end": 2, "delete": 1}, {}):
        with rig.services.database.write() as connection:
            set_demanded(connection, rig.vault, wanted)
            job = rig.worker.jobs.start(connection, "end", Wipe(), "ann", vault=rig.vault)
        rig.worker.idle()
        found = rig.approvals.of_job(job)
        asked.append(f"{found[0].operation} {found[0].needed}" if found else "nothing")
    assert asked == ["end 1", "delete 2", "end 2", "nothing"]
