"""kill -9 of a whole server at every step of its jobs that move machines: each ends right, or is undone.

The server is a process, and dies by SIGKILL where a step is begun, where it was carried out and is not kept,
where that is kept, and where a gateway's answer comes in, before and after it is kept. The next one goes on
at once; both gateways live. Each job dies at every such point in turn, and is compared with what one run does
that nobody disturbs. Every step of every kind is died at by `./run kills`; one of each sort in every run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from secondsite.base.crash import MARKS
from secondsite.base.errors import InvalidInput
from secondsite.gateway.common import wanted
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.model import confirmations, reversals
from secondsite.server.calls import service
from secondsite.server.jobs import runner
from secondsite.server.jobs.definitions import Definition
from secondsite.server.operations import (
    failback,
    failover,
    failoverends,
    held,
    migration,
    plannedfailover,
    reprotect,
)
from secondsite.server.operations.kinds import item_operations
from secondsite.server.operations.tools import Tools
from support.databases import KINDS, Databases
from support.joined import ITEMS, A, B
from support.killed_server import DISK, KilledServer, killed_server
from support.until import until

FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
pytestmark = [pytest.mark.fault, pytest.mark.timeout(7200 if FULL else 120)]
full = pytest.mark.skipif(not FULL, reason="every point of every step: ./run kills")

LOST, KEPT, TURNED = confirmations.lost("shop"), confirmations.kept("shop"), reversals.reversed_onto("shop")
EVERYWHERE = ["*"]
DEFINITIONS: dict[str, Definition[Any]] = {
    one.kind: one for one in item_operations(cast("Tools", mock.Mock()))
}
# Kinds that move a machine, each died at by a test here; of the others the engine's own chaos is enough
# (tests/fault/test_jobs_chaos.py): they change what is wanted, and a gateway follows it whoever asks.
MOVING = {
    failover.FAILOVER,
    plannedfailover.PLANNED_FAILOVER,
    failoverends.CHANGE_POINT,
    failoverends.COMMIT,
    failoverends.ROLL_BACK,
    reprotect.REPROTECT,
    failback.FAILBACK,
    migration.COMPLETE,
    held.RELEASE,
    held.DISCARD,
}
OTHERS = {
    *("item.protect", "item.finalize", "item.disable", "item.pause", "item.resume", "item.resync"),
    *("item.change", "item.test-failover", "item.test-failover-cleanup", "recovery-key.prove", "item.group"),
    "item.forget",  # moves nothing, and asks no gateway
}


# On PostgreSQL there are two servers, and the one that lives goes on with what the other one began.
@pytest.fixture(params=KINDS if FULL else ["sqlite"])
def place(databases: Databases, request: pytest.FixtureRequest) -> Iterator[KilledServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sk") as name,  # short: sockets lie below it
        databases.ready(request.param) as url,
        killed_server(url, Path(name)) as made,
    ):
        yield made


def points(kind: str, *, undone: bool = False) -> set[str]:
    """Where it is died at the least, by its definition: around each step, or each taken back."""
    found = set()
    for step in DEFINITIONS[kind].steps:
        assert step.verify is None, "a proof is one more thing to die at"
        assert step.clean_up is None, "likewise a clean-up"
        if undone and step.undo is None:
            continue
        within = f"{kind}/{step.name}/{'undo' if undone else 'do'}"
        found |= {f"{runner.BEGUN} {within}", f"{runner.CALLED} {within}/Done", f"{runner.NOTED} {within}"}
    return found


def dying(
    place: KilledServer, path: str, body: object, at: Sequence[str] = EVERYWHERE, **more: Any
) -> tuple[dict[str, Any], set[str]]:
    """A job whose server dies there; the job, and where it died."""
    place.arm(at)
    done = place.ended(place.begin(f"{ITEMS}/{place.machine}/{path}", body), **more)
    died = place.disarm()
    if at is not EVERYWHERE:
        assert died == set(at), place.evidence(done["id"])
    place.require_nothing_half()
    return done, died


def succeeded(place: KilledServer, job: dict[str, Any]) -> dict[str, Any]:
    assert job["state"] == "Succeeded", (job["error"], place.evidence(job["id"]))
    return dict(job["output"] or {})


def shows(place: KilledServer, state: str) -> dict[str, Any]:
    until(lambda: place.item(place.machine)["state"] == state, f"the item as {state}")
    return place.item(place.machine)


def runs(place: KilledServer) -> tuple[bool, bool]:
    return place.host(A).runs(place.machine), place.host(B).runs(place.machine)


def unplanned(place: KilledServer, **more: Any) -> dict[str, Any]:
    return {"confirm": confirmations.taken_over("shop", A), **more}


def in_order(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"confirm": confirmations.moved("shop", source, target), "seconds": 60, **more}


def test_every_kind_and_mark_is_died_at() -> None:
    assert set(DEFINITIONS) == MOVING | OTHERS, "a new kind of job: does it move a machine?"
    assert not MOVING & OTHERS
    ours = {runner.BEGUN, runner.CALLED, runner.NOTED, service.ANSWERING, service.ANSWERED}
    assert ours == {mark for mark in MARKS if mark.startswith(("jobs.", "calls."))}


# asked and not answered, answered and not kept, claimed and not noted, about to look whether it runs
TAKEN = [
    f"{runner.CALLED} item.failover/begin/do/RetryAfter",
    f"{service.ANSWERING} begin/do/N",
    f"{runner.CALLED} item.failover/claimed/do/Done",
    f"{runner.BEGUN} item.failover/booted/do",
]
BACK = [f"{service.ANSWERED} ask/do/roll-back", f"{runner.NOTED} item.roll-back/given-back/do"]


def test_a_failover_and_its_end_whose_server_dies_at_a_step_of_each_sort(place: KilledServer) -> None:
    done, _ = dying(place, "unplannedFailover", unplanned(place, shutDown=True), TAKEN)
    assert succeeded(place, done)["epoch"] == 2
    _require_taken_over(place)
    done, _ = dying(place, "failoverCancel", {"confirm": LOST}, BACK)
    _require_rolled_back(place, done)


def _require_taken_over(place: KilledServer) -> None:
    assert place.did == [("A", "asked to shut down"), ("B", "started")], place.evidence()
    assert runs(place) == (False, True)
    assert [claim.epoch for claim in place.claims(B)] == [1, 2]
    shows(place, "UnplannedFailoverCompleted")
    place.require_one_operation(f"/v1/machines/{place.machine}/failover")


def _require_rolled_back(place: KilledServer, done: dict[str, Any]) -> None:
    succeeded(place, done)
    shows(place, "Protected")
    until(lambda: runs(place) == (True, False), "it runs where it was")
    assert place.did.count(("B", "removed")) == 1
    assert [claim.reason for claim in place.claims(B)][-1] == "roll-back"
    assert place.host(B).recovered() == []
    place.run(f"{ITEMS}/{place.machine}/recoveryPoints")  # and is copied on


def _refused_before_the_claim(name: str) -> None:
    if name == failoverclaim.BEFORE_CLAIM:
        raise InvalidInput(what="a test", why="it is not to be claimed")


def _require_undone(place: KilledServer, done: dict[str, Any], *, started: int) -> None:
    """It never left its site: a failure before the claim."""
    assert (done["state"], done["error"]["code"]) == ("Failed", "input.invalid"), place.evidence(done["id"])
    shows(place, "Protected")
    until(lambda: runs(place) == (True, False), "it runs where it was")
    assert ("B", "started") not in place.did
    assert place.did.count(("A", "let run")) == started
    assert [claim.reason for claim in place.claims(B)][-1] != "failover"
    place.run(f"{ITEMS}/{place.machine}/recoveryPoints")


@full
def test_an_unplanned_failover_turned_and_rolled_back(place: KilledServer) -> None:
    with mock.patch.object(failoverclaim, "crash_point", _refused_before_the_claim):
        done, died = dying(place, "unplannedFailover", unplanned(place, shutDown=True))
    _require_undone(place, done, started=1)
    assert points(failover.FAILOVER, undone=True) <= died

    done, died = dying(place, "unplannedFailover", unplanned(place, shutDown=True))
    succeeded(place, done)
    assert points(failover.FAILOVER) <= died
    assert place.did == [("A", "asked to shut down"), ("B", "started")]
    shows(place, "UnplannedFailoverCompleted")

    with place.client(B) as client:
        earlier = [point.number for point in client.points(place.machine)][-2]
    done, died = dying(place, "applyRecoveryPoint", {"recoveryPoint": str(earlier), "confirm": LOST})
    assert succeeded(place, done)["point"] == earlier
    assert points(failoverends.CHANGE_POINT) <= died
    assert place.did == [("B", "removed"), ("B", "started")]
    assert runs(place) == (False, True)

    done, died = dying(place, "failoverCancel", {"confirm": LOST})
    _require_rolled_back(place, done)
    assert points(failoverends.ROLL_BACK) <= died


@full
def test_a_machine_moved_and_committed(place: KilledServer) -> None:
    """Refused and undone, moved with all that people are asked on the way, and committed."""
    place.host(A).write(place.machine, DISK, 0, b"written at a")
    with mock.patch.object(failoverclaim, "crash_point", _refused_before_the_claim):
        done, died = dying(place, "plannedFailover", in_order(A, B))
    _require_undone(place, done, started=1)
    assert points(plannedfailover.PLANNED_FAILOVER, undone=True) <= died

    demanded = {"demands": [{"operation": one, "people": 1} for one in ("failover", "commit")]}
    place.run("/api/v1/vaults/North/approvals", demanded, method="PUT")
    place.host(A).deaf.add(place.machine)
    people = People(place)
    done, died = dying(place, "plannedFailover", in_order(A, B, seconds=2), answers=people)
    assert succeeded(place, done)["loss_seconds"] == 0
    assert people.answered == ["approve", "power-off"], "each is asked once"
    assert points(plannedfailover.PLANNED_FAILOVER) <= died
    assert f"{runner.CALLED} item.planned-failover/approval/do/Ask" in died
    assert place.did.count(("B", "started")) == place.did.count(("A", "switched off")) == 1
    assert runs(place) == (False, True)

    people = People(place)
    done, died = dying(place, "failoverCommit", {"confirm": KEPT}, answers=people)
    assert succeeded(place, done)["state"] == "CommitFailoverCompleted"
    assert people.answered == ["approve"]
    assert points(failoverends.COMMIT) <= died
    assert place.did == [("B", "settled")]
    assert place.host(B).content(place.machine, DISK)[:12] == b"written at a", "nothing is lost"
    shows(place, "CommitFailoverCompleted")


def moved(place: KilledServer) -> None:
    """It is at B and stays there; nobody died of it."""
    place.host(A).write(place.machine, DISK, 0, b"written at a")
    item = f"{ITEMS}/{place.machine}"
    place.run(f"{item}/plannedFailover", in_order(A, B))
    place.run(f"{item}/failoverCommit", {"confirm": KEPT})
    shows(place, "CommitFailoverCompleted")


@full
def test_a_machine_protected_the_other_way_round(place: KilledServer) -> None:
    """Refused and undone, then done."""
    moved(place)
    real = wanted.why_not
    refuse: Any = lambda now, before, asked: "a test" if asked.enabled else real(now, before, asked)  # noqa: E731
    with mock.patch.object(wanted, "why_not", refuse):
        done, died = dying(place, "reprotect", {"confirm": TURNED})
    assert done["state"] == "Failed", done
    assert points(reprotect.REPROTECT, undone=True) <= died
    shows(place, "CommitFailoverCompleted")
    assert runs(place) == (False, True)
    assert place.claims(A)[-1].claimant != B, "the other site may not begin any more"

    done, died = dying(place, "reprotect", {"confirm": TURNED})
    assert succeeded(place, done)["reversed_onto"] is True
    assert points(reprotect.REPROTECT) <= died
    place.require_one_operation(f"/v1/held/{place.machine}/reverse")
    item = shows(place, "Protected")
    assert (item["provider"], item["targetProvider"]) == (B, A)
    assert runs(place) == (False, True)


@full
def test_a_machine_failed_back(place: KilledServer) -> None:
    """One job over a move, its commit and the protection in the first direction."""
    moved(place)
    place.run(f"{ITEMS}/{place.machine}/reprotect", {"confirm": TURNED})
    shows(place, "Protected")
    place.host(B).write(place.machine, DISK, 4096, b"written at b")
    said = [confirmations.moved("shop", B, A), KEPT, TURNED]
    asked = {"oldMachine": "remove-with-disks", "seconds": 60, "commit": True, "reprotect": True}
    done, died = dying(place, "failback", {**asked, "confirm": said})
    succeeded(place, done)
    for kind in (
        failback.FAILBACK,
        plannedfailover.PLANNED_FAILOVER,
        failoverends.COMMIT,
        reprotect.REPROTECT,
    ):
        assert points(kind) <= died, kind
    effects = [one for one in place.did if one[1] in ("old machine removed", "started", "settled")]
    assert effects == [("A", "old machine removed"), ("A", "started"), ("A", "settled")]
    item = shows(place, "Protected")
    assert (item["provider"], item["targetProvider"]) == (A, B)
    assert runs(place) == (True, False)
    content = place.host(A).content(place.machine, DISK)
    assert (content[:12], content[4096:4108]) == (b"written at a", b"written at b"), "nothing is lost"
    place.run(f"{ITEMS}/{place.machine}/recoveryPoints")


class People:
    """Who answers what a job asks, each question once as it seems to them."""

    def __init__(self, place: KilledServer) -> None:
        self._place, self.answered = place, list[str]()
        self._seen: set[str] = set()

    def __call__(self, job: dict[str, Any]) -> None:
        asked = job["question"]
        if asked["question"] in self._seen:
            return
        what = "approve" if asked["approval"] else "power-off"
        path = f"/api/v1/jobs/{job['id']}/{'approve' if asked['approval'] else 'resume'}"
        body = {"comment": "go on"} if asked["approval"] else {"answer": what}
        answer = self._place.steady("POST", path, body, self._place.bob)
        # taken although its answer was lost: then it waits for nobody any more
        assert answer.status in {202, 409}, answer.data
        self._seen.add(asked["question"])
        self.answered.append(what)


@full
@pytest.mark.parametrize("decision", ["heldRelease", "heldDiscard"])
def test_a_lost_site_that_returns(place: KilledServer, decision: str) -> None:
    for host in (place.host(A), place.host(B)):
        host.together = True  # nobody at A can know
    place.stop(A)
    done, died = dying(place, "unplannedFailover", unplanned(place))
    succeeded(place, done)
    assert points(failover.FAILOVER) <= died
    assert place.did == [("B", "started")]
    done, died = dying(place, "failoverCommit", {"confirm": KEPT})
    succeeded(place, done)
    assert points(failoverends.COMMIT) <= died
    place.start(A)
    until(lambda: runs(place) == (False, True), "it is held at A")
    until(lambda: place.item(place.machine)["held"] is not None, "the server knows")
    release = decision == "heldRelease"
    said = confirmations.released("shop", B) if release else confirmations.discarded("shop")
    done, died = dying(place, decision, {"confirm": said})
    assert succeeded(place, done)["state"] == ("Released" if release else "Discarded")
    assert points(held.RELEASE if release else held.DISCARD) <= died
    assert runs(place) == (release, True)
    if not release:
        final = {"confirm": reversals.migrated("shop")}
        done, died = dying(place, "completeMigration", final)
        succeeded(place, done)
        assert points(migration.COMPLETE) <= died

        def kept() -> object:
            return place.item(place.machine)["failover"]["kept"]

        until(lambda: kept() == "MigrationCompleted", "the gateway's report of it")
