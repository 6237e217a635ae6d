"""What becomes of a machine that was taken over, as jobs: another point, kept for good, or given back.

Each asks the gateway once under what it knows of the failover, and follows it to its end. What stopped is
begun again where it stopped by the job tried again; nothing is taken back by itself.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from secondsite.model import confirmations
from secondsite.model.failover import FailoverState
from secondsite.server.items.errors import FailoverMoved, FailoverOther
from secondsite.server.items.records import Item, lock_key
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway
from secondsite.server.operations.failover import BOOT_STEPS, taken_over
from secondsite.server.operations.failoverparts import (
    Status,
    connected,
    doing,
    look,
    show,
    standing,
    stopped,
    target_of,
)
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.server.people.asking import ask_approval

CHANGE_POINT, COMMIT, ROLL_BACK = "item.change-point", "item.commit", "item.roll-back"
COMMIT_APPROVAL, ROLL_BACK_APPROVAL = "commit", "roll-back"
_F = FailoverState


class ChangePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item, to which point. confirm: what the person said, and of which failover (`said_of`)."""

    vault: str
    item: str
    machine: str
    name: str
    point: str
    confirm: str = ""
    failover: str = ""
    by: str = ""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item; bytes_per_second: at most, of all its disks together. point: it was said of that one."""

    vault: str
    item: str
    machine: str
    name: str
    confirm: str = ""
    failover: str = ""
    point: int | None = None
    bytes_per_second: int | None = None
    delete_points: bool = True  # of the machine at that site, once nobody reads or holds them
    by: str = ""


class RollBack(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item."""

    vault: str
    item: str
    machine: str
    name: str
    confirm: str = ""
    failover: str = ""
    by: str = ""


def said_of(item: Item) -> str:
    """The failover a person sees when something is said of it; empty: this server knows of none."""
    return item.failover.id if item.failover is not None else ""


class _Given(Protocol):
    """What the three have in common."""

    @property
    def vault(self) -> str: ...
    @property
    def item(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def failover(self) -> str: ...
    @property
    def by(self) -> str: ...


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The failover that is gone on with."""

    operation: str
    name: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. flattened_bytes: copied into disks that are the site's own."""

    operation: str
    name: str
    state: str
    point: int
    epoch: int | None
    flattened_bytes: int


def change_point(tools: Tools) -> Definition[ChangePoint]:
    """The job."""
    return Definition(
        kind=CHANGE_POINT,
        version=1,
        input=ChangePoint,
        steps=(
            Step("target-connected", do=lambda run: connected(tools, run.input.item), tries=3, weight=0.2),
            Step("find", do=lambda run: _find(tools, run, _CHANGEABLE, "another point"), weight=0.2),
            Step("ask", do=lambda run: _ask(tools, run)),
            Step("booted", do=lambda run: _changed(tools, run), weight=5.0),
        ),
        title=lambda given: f"Move {given.name} to another recovery point ({given.point})",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def commit(tools: Tools) -> Definition[Commit]:
    """The job. Refused by the gateway unless it sees the machine run."""
    return Definition(
        kind=COMMIT,
        version=1,
        input=Commit,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, COMMIT_APPROVAL)),
            Step("target-connected", do=lambda run: connected(tools, run.input.item), tries=3, weight=0.2),
            Step("runs", do=lambda run: _find(tools, run, _COMMITTABLE, "a commit"), weight=0.2),
            Step("ask", do=lambda run: _ask(tools, run)),
            Step("disks-plain", do=lambda run: _ended(tools, run, _F.COMMITTING, _F.COMMITTED), weight=20.0),
        ),
        title=lambda given: f"Commit the failover of {given.name}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(COMMIT_APPROVAL,),
        on_failure=OnFailure.KEEP,
    )


def roll_back(tools: Tools) -> Definition[RollBack]:
    """The job. The machine at the target goes; its source is the authority again, and replication goes on."""
    return Definition(
        kind=ROLL_BACK,
        version=1,
        input=RollBack,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, ROLL_BACK_APPROVAL)),
            Step("target-connected", do=lambda run: connected(tools, run.input.item), tries=3, weight=0.2),
            Step("find", do=lambda run: _find(tools, run, _CANCELLABLE, "a roll-back"), weight=0.2),
            Step("ask", do=lambda run: _ask(tools, run)),
            Step(
                "given-back", do=lambda run: _ended(tools, run, _F.ROLLING_BACK, _F.ROLLED_BACK), weight=5.0
            ),
        ),
        title=lambda given: f"Roll the failover of {given.name} back",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(ROLL_BACK_APPROVAL,),
        on_failure=OnFailure.KEEP,
    )


# Also where it is on its way already: the job goes on with it.
_CHANGEABLE = frozenset({_F.CLAIMED, _F.COMPLETED, _F.CHANGING})
_COMMITTABLE = frozenset({_F.COMPLETED, _F.COMMITTING, _F.COMMITTED})
_CANCELLABLE = frozenset({_F.CLAIMED, _F.COMPLETED, _F.ROLLING_BACK, _F.ROLLED_BACK})


def _find(tools: Tools, run: StepRun[Any], fits: frozenset[FailoverState], what: str) -> Result:
    """The failover as its target knows it, whoever began it: what this server remembers may be old."""
    given: _Given = run.input
    item = tools.item(given.item)
    found = standing(tools, run, item)
    if isinstance(found, RetryAfter):
        return found
    show(tools, run, item.id, found)
    _require_same(run.input, found, item.target_name)
    if found.state not in fits:
        raise FailoverMoved(name=item.name, state=found.state.value, gateway=item.target_name, operation=what)
    return Done(Standing(operation=found.id, name=found.name))


def _require_same(given: ChangePoint | Commit | RollBack, found: Status, gateway: str) -> None:
    """Raise FailoverOther where what was said, perhaps hours ago, was said of something else."""
    point = given.point if isinstance(given, Commit) else None
    if given.failover not in ("", found.id) or point not in (None, found.point):
        raise FailoverOther(name=given.name, gateway=gateway, point=found.point, requested=found.requested_at)


def _found(run: StepRun[Any]) -> Standing:
    step = "runs" if isinstance(run.input, Commit) else "find"
    return run.output_of(step, Standing)


def _verb(run: StepRun[Any]) -> tuple[str, dict[str, object]]:
    """How the gateway is asked, with what is peculiar to it."""
    given = run.input
    if isinstance(given, ChangePoint):
        return "change-point", {"point": given.point}
    if isinstance(given, Commit):
        return "commit", {
            "bytesPerSecond": given.bytes_per_second,
            "deletePoints": given.delete_points,
        }
    return "roll-back", {}


def _asked(tools: Tools, run: StepRun[Any], item: Item) -> Asked:
    given, target = run.input, target_of(tools, item)
    verb, more = _verb(run)
    body = {"confirm": given.confirm, "requestedBy": given.by, **more}
    path = f"/v1/failovers/{_found(run).operation}/{verb}"
    return Asked(target.id, target.name, "POST", path, msgspec.json.encode(body).decode(), key=verb)


def _ask(tools: Tools, run: StepRun[Any]) -> Result:
    item = tools.item(run.input.item)
    status = ask_fresh(tools, run, _asked(tools, run, item), Status)
    if isinstance(status, RetryAfter):
        return status
    show(tools, run, item.id, status)
    return DONE


def _look(tools: Tools, run: StepRun[Any]) -> tuple[Item, Status] | RetryAfter:
    """How far it is; in a job that is tried again, what stopped is begun again first, once."""
    item = tools.item(run.input.item)
    if run.retries:
        again = ask_gateway(tools.calls, run, _asked(tools, run, item), Status)
        if isinstance(again, RetryAfter):
            return again
    status = look(tools, run, target_of(tools, item), _found(run).operation)
    if isinstance(status, RetryAfter):
        return status
    return show(tools, run, item.id, status), status


def _changed(tools: Tools, run: StepRun[ChangePoint]) -> Result:
    seen = _look(tools, run)
    if isinstance(seen, RetryAfter):
        return seen
    item, status = seen
    if status.error is not None:
        raise stopped(status)
    if status.state in (_F.CHANGING, _F.CLAIMED):
        return doing(run, status, BOOT_STEPS + 2)
    if status.state is not _F.COMPLETED:
        raise FailoverMoved(
            name=item.name, state=status.state.value, gateway=item.target_name, operation="another point"
        )
    return Done(taken_over(status))


def _ended(tools: Tools, run: StepRun[Any], under_way: FailoverState, end: FailoverState) -> Result:
    seen = _look(tools, run)
    if isinstance(seen, RetryAfter):
        return seen
    item, status = seen
    if status.error is not None:
        raise stopped(status)
    if status.state is under_way:
        return doing(run, status, 4)
    if status.state is not end:
        raise FailoverMoved(
            name=item.name, state=status.state.value, gateway=item.target_name, operation="waiting for it"
        )
    return Done(
        Ended(
            operation=status.id,
            name=status.name,
            state=status.state.value,
            point=status.point,
            epoch=status.epoch,
            flattened_bytes=status.flattened_bytes,
        )
    )


def confirm_change(given: ChangePoint | RollBack) -> None:
    """Raise ConfirmationMissing unless the loss was said."""
    why = f"What {given.name} wrote since it was taken over lies on its present point alone."
    confirmations.require(given.name, given.confirm, confirmations.lost(given.name), why)


def confirm_commit(given: Commit) -> None:
    """Likewise that there is no way back."""
    why = "A commit ends the time in which another point can be chosen, or the failover undone."
    confirmations.require(given.name, given.confirm, confirmations.kept(given.name), why)
