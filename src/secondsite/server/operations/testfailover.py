"""Test failovers as jobs: a machine booted from a point at the target, beside the original, and its removal.

The server chooses the operation's id before it asks: asked again after a lost answer, or by the worker that
took the job over, the gateway says how far that same test failover is. What is taken back before its request
arrived is called off there, so that it never begins.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.errors import RemoteError
from secondsite.model.outlook import Outlook
from secondsite.model.recovered import RecoveredSettings
from secondsite.server.database.tables_items import REPLICAS
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.errors import TestFailoverGone, TestFailoverNone
from secondsite.server.items.records import Item, lock_key
from secondsite.server.items.recovered import described, settings_for, way_of
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.errors import OutputMissing
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway, call_of
from secondsite.server.operations.gathering import key_for
from secondsite.server.operations.tools import Tools, ask_fresh

TEST_FAILOVER, TEST_CLEANUP = "item.test-failover", "item.test-failover-cleanup"
# A boot and a removal take seconds, and are told of by nobody but the gateway that is asked.
POLL_SECONDS = 1.0
ASK_SECONDS = 60.0
BOOT_STEPS = 3  # as a gateway names them: export, network, machine
INITIATED, COMPLETED, FAILED = "Initiated", "Completed", "Failed"
CLEANING, CLEANED, NOT_CLEANED = "CleanupInitiated", "CleanupCompleted", "CompletionFailed"


class TestFailover(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item, from which point, on which network. test_name None: the gateway's choice."""

    __test__ = False  # not a test class, whatever its name

    vault: str
    item: str
    machine: str
    name: str
    point: str = "latest"
    network: str = "isolated"
    test_name: str | None = None
    settings: RecoveredSettings | None = None  # None: as they are kept for the item
    by: str = ""


class TestCleanup(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item; notes: what was learnt. force: also one whose record its gateway cannot read."""

    __test__ = False

    vault: str
    item: str
    machine: str
    name: str
    notes: str
    force: bool = False
    by: str = ""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What will be booted, and the id it is asked for with."""

    operation: str
    point: int
    name: str
    settings: RecoveredSettings | None = None


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the target now."""

    operation: str
    point: int
    point_at: str
    consistency: str
    name: str
    network: str
    booted_seconds: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The test failover that stands; operation "": none that is known, and it is looked for by force."""

    operation: str
    point: int
    name: str


class _Point(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    at: str
    consistency: str


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    point: _Point
    name: str
    outlook: Outlook | None = None


class _Done(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    started_at: str
    ended_at: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A test failover as its gateway tells it."""

    id: str
    name: str
    state: str
    point: int
    point_at: str
    consistency: str
    network: str
    requested_at: str
    booted_at: str | None = None
    steps: tuple[_Done, ...] = ()
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class _Standing:
    gateway: Gateway
    item: Item
    operation: str
    notes: str
    by: str


def boot_test(tools: Tools) -> Definition[TestFailover]:
    """The job. Taken back, nothing of the test is left at the target."""
    return Definition(
        kind=TEST_FAILOVER,
        version=1,
        input=TestFailover,
        steps=(
            Step("gateway-connected", do=lambda run: _connected(tools, run.input.item), tries=3, weight=0.2),
            Step("prerequisites", do=lambda run: _prerequisites(tools, run), tries=3),
            Step("start", do=lambda run: _start(tools, run), undo=lambda run: _take_back(tools, run)),
            Step("booted", do=lambda run: _booted(tools, run), weight=5.0),
        ),
        title=lambda given: f"Test the failover of {given.name} from {_point_text(given.point)}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
    )


def remove_test(tools: Tools) -> Definition[TestCleanup]:
    """The job. What it removed stays removed; what failed is tried again from there."""
    return Definition(
        kind=TEST_CLEANUP,
        version=1,
        input=TestCleanup,
        steps=(
            Step("gateway-connected", do=lambda run: _connected(tools, run.input.item), tries=3, weight=0.2),
            Step("find", do=lambda run: _find(tools, run), weight=0.2),
            Step("clean-up", do=lambda run: _clean_up(tools, run), weight=5.0),
        ),
        title=lambda given: f"Clean up the test failover of {given.name}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def _point_text(point: str) -> str:
    return f"the point {point}" if point.startswith("la") else f"point {point}"


def _connected(tools: Tools, item: str) -> Result:
    return tools.hear_of(tools.item(item).target_name) or DONE


def _path(item: Item) -> str:
    return f"/v1/machines/{quote(item.machine, safe='')}/test-failover"


# booting


def _prerequisites(tools: Tools, run: StepRun[TestFailover]) -> Result:
    """The gateway looks at its site as it is now, and names all that is in the way."""
    given, item = run.input, tools.item(run.input.item)
    target = tools.gateways.get(item.target_name)
    settings = given.settings
    if settings is None:
        with tools.items.database.read() as connection:
            settings = settings_for(connection, item, way_of(item))
    wanted = {"point": given.point, "network": given.network}
    if given.test_name is not None:
        wanted["name"] = given.test_name
    asked = Asked(
        target.id, target.name, "GET", f"{_path(item)}?{urlencode(wanted)}", seconds_max=ASK_SECONDS
    )
    if settings is not None:
        # in a body: an address holds no settings of any length
        text = msgspec.json.encode({**wanted, "settings": settings}).decode()
        asked = Asked(target.id, target.name, "POST", f"{_path(item)}/check", text, ASK_SECONDS)
    plan = ask_fresh(tools, run, asked, _Plan)
    if isinstance(plan, RetryAfter):
        return plan
    point = plan.point
    run.log(f"point {point.number} of {point.at}, {point.consistency}, will be booted as {plan.name}")
    if plan.outlook is not None:
        run.log(described(plan.outlook))
    chosen = Chosen(operation=secrets.token_hex(16), point=point.number, name=plan.name, settings=settings)
    return Done(chosen)


def _start(tools: Tools, run: StepRun[TestFailover]) -> Result:
    given, item = run.input, tools.item(run.input.item)
    chosen = run.output_of("prerequisites", Chosen)
    target = tools.gateways.get(item.target_name)
    body: dict[str, object] = {
        "point": str(chosen.point),
        "network": given.network,
        "name": chosen.name,
        "requestedBy": given.by,
        "operation": chosen.operation,
    }
    if chosen.settings is not None:
        body["settings"] = chosen.settings
    # by the operation: a job that is tried again must not be given the answer to its first try
    asked = Asked(
        target.id, target.name, "POST", _path(item), msgspec.json.encode(body).decode(), key=chosen.operation
    )
    status = ask_fresh(tools, run, asked, Status)
    if isinstance(status, RetryAfter):
        return status
    _show(run, item, status)
    return DONE


def _booted(tools: Tools, run: StepRun[TestFailover]) -> Result:
    item, chosen = tools.item(run.input.item), run.output_of("prerequisites", Chosen)
    status = _status(tools, run, tools.gateways.get(item.target_name), chosen.operation)
    if isinstance(status, RetryAfter):
        return status
    if status.state == INITIATED:
        done = [step.name for step in status.steps if step.ended_at is not None]
        text = f"{status.name}: {status.steps[-1].name}" if status.steps else f"{status.name} is being booted"
        run.progress(min(1.0, len(done) / BOOT_STEPS), text)
        return RetryAfter(POLL_SECONDS, text)
    if status.state in (FAILED, NOT_CLEANED):
        # of one that failed nothing is to come, however often it is looked at
        raise RemoteError({**_why(status), "outcome": "failed"})
    if status.state != COMPLETED or status.booted_at is None:
        raise TestFailoverGone(name=item.name, test=status.name, state=status.state)
    _show(run, item, status)
    seconds = datetime.fromisoformat(status.booted_at) - datetime.fromisoformat(status.requested_at)
    return Done(
        Tested(
            operation=status.id,
            point=status.point,
            point_at=status.point_at,
            consistency=status.consistency,
            name=status.name,
            network=status.network,
            booted_seconds=round(seconds.total_seconds(), 3),
        )
    )


def _take_back(tools: Tools, run: StepRun[TestFailover]) -> Result:
    try:
        chosen = run.output_of("prerequisites", Chosen)
    except OutputMissing:
        return DONE
    item = tools.item(run.input.item)
    gateway = tools.gateway(item.target_name)
    if gateway is None:
        run.log(
            f"gateway {item.target_name} was removed from the server: {chosen.name} stays there", "warning"
        )
        return DONE
    notes = f"Taken back by the job {run.job} that asked for it."
    removed = _removed(tools, run, _Standing(gateway, item, chosen.operation, notes, run.input.by))
    return removed if isinstance(removed, RetryAfter) else DONE


# removing


def _find(tools: Tools, run: StepRun[TestCleanup]) -> Result:
    item = tools.item(run.input.item)
    target = tools.gateways.get(item.target_name)
    path = f"/v1/test-failovers?{urlencode({'standing': item.machine})}"
    asked = Asked(target.id, target.name, "GET", path, seconds_max=ASK_SECONDS)
    standing = ask_fresh(tools, run, asked, list[Status])
    if isinstance(standing, RetryAfter):
        return standing
    if not standing and run.input.force:
        run.log(f"gateway {target.name} knows no test failover of {item.name}: what it can find is removed")
        return Done(Found(operation="", point=0, name=""))
    if not standing:
        run.write(lambda connection: _shown(connection, item, "", ""))
        raise TestFailoverNone(name=item.name, gateway=target.name)
    one = standing[0]
    return Done(Found(operation=one.id, point=one.point, name=one.name))


def _clean_up(tools: Tools, run: StepRun[TestCleanup]) -> Result:
    given, found = run.input, run.output_of("find", Found)
    item = tools.item(given.item)
    target = tools.gateways.get(item.target_name)
    operation: str | RetryAfter = found.operation
    if not operation:
        operation = _forced(tools, run, item, target)
    if isinstance(operation, RetryAfter):
        return operation
    return _removed(tools, run, _Standing(target, item, operation, given.notes, given.by))


def _forced(tools: Tools, run: StepRun[TestCleanup], item: Item, target: Gateway) -> str | RetryAfter:
    """The id of what its gateway made out without the record, as it was answered once."""
    body = {"notes": run.input.notes, "cleanedUpBy": run.input.by, "force": True}
    text = msgspec.json.encode(body).decode()
    asked = Asked(target.id, target.name, "DELETE", _path(item), text, ASK_SECONDS, key="remove-forced")
    try:
        answer = ask_gateway(tools.calls, run, asked, Status)
    except RemoteError as error:
        if error.body.get("code") != "test-failover.none":
            raise
        run.write(lambda connection: _shown(connection, item, "", ""))
        raise TestFailoverNone(name=item.name, gateway=target.name) from None
    if isinstance(answer, RetryAfter):
        return answer
    _show(run, item, answer)
    return answer.id


def _removed(tools: Tools, run: StepRun[Any], test: _Standing) -> Result:
    """Have it gone: asked for once for each state it can be removed in. Raises why it cannot be removed."""
    item = test.item
    try:
        status = _status(tools, run, test.gateway, test.operation)
        if isinstance(status, RetryAfter):
            return status
        if status.state == INITIATED:
            return RetryAfter(POLL_SECONDS, f"waits until {status.name} is booted, to remove it")
        if status.state == CLEANING:
            text = f"{status.name}: {status.steps[-1].name}" if status.steps else f"removes {status.name}"
            run.progress(0.5, text)
            return RetryAfter(POLL_SECONDS, text)
        if status.state in (COMPLETED, NOT_CLEANED):
            return _ask_removal(tools, run, test, status)
    except RemoteError as error:
        if error.body.get("code") != "operation.unknown":
            raise
        return _call_off(tools, run, test)
    tools.calls.forget(tools.calls.answered(_removals(run)))
    run.write(lambda connection: _shown(connection, item, "", ""))
    return DONE


def _ask_removal(tools: Tools, run: StepRun[Any], test: _Standing, status: Status) -> Result:
    """Each try at the gateway leaves other times in its steps: by these the next one is another request."""
    began = [step.started_at for step in status.steps]
    asked = _removal(test, key=f"remove-{key_for(status.state, *began)}")
    earlier = [call for call in tools.calls.answered(_removals(run)) if call != call_of(run, asked).id]
    if status.state == NOT_CLEANED and earlier:
        tools.calls.forget(earlier)  # tried again, it is asked for again
        raise RemoteError(_why(status))
    try:
        answer = ask_gateway(tools.calls, run, asked, Status)
    except RemoteError as error:
        if error.body.get("code") != "test-failover.none":
            raise
        return RetryAfter(POLL_SECONDS, "somebody else removed it; looks again")
    if isinstance(answer, RetryAfter):
        return answer
    _show(run, test.item, answer)
    return RetryAfter(POLL_SECONDS, f"removes {status.name}")


def _call_off(tools: Tools, run: StepRun[Any], test: _Standing) -> Result:
    """It was never begun; its request may still be on its way."""
    try:
        answer = ask_fresh(tools, run, _removal(test, key="call-off"), Status)
    except RemoteError as error:
        if error.body.get("code") == "test-failover.none":
            return DONE
        raise
    # it began between the two looks
    return answer if isinstance(answer, RetryAfter) else RetryAfter(POLL_SECONDS, f"removes {answer.name}")


def _removal(test: _Standing, *, key: str) -> Asked:
    body = {"notes": test.notes, "cleanedUpBy": test.by, "operation": test.operation}
    text = msgspec.json.encode(body).decode()
    return Asked(test.gateway.id, test.gateway.name, "DELETE", _path(test.item), text, ASK_SECONDS, key=key)


def _removals(run: StepRun[Any]) -> str:
    return f"{run.job}:{run.step}:{run.action.value}:remove-"


# what both share


def _status(tools: Tools, run: StepRun[Any], gateway: Gateway, operation: str) -> Status | RetryAfter:
    path = f"/v1/operations/{operation}"
    asked = Asked(gateway.id, gateway.name, "GET", path, seconds_max=ASK_SECONDS, key="look")
    return ask_fresh(tools, run, asked, Status)


def _why(status: Status) -> dict[str, Any]:
    unknown = {
        "code": "test-failover.failed",
        "happened": f"The test failover {status.name} is {status.state}.",
        "cause": "Its gateway does not say why.",
        "action": "Read the gateway's log; then retry the job.",
    }
    return {**(status.error or unknown)}


def _show(run: StepRun[Any], item: Item, status: Status) -> None:
    """At once: the gateway's next report says the same, a moment later."""
    run.write(lambda connection: _shown(connection, item, status.state, status.name))


def _shown(connection: Connection, item: Item, state: str, name: str) -> None:
    mine = (REPLICAS.c.gateway == item.target_id, REPLICAS.c.machine == item.machine)
    connection.execute(sa.update(REPLICAS).where(*mine).values(test_state=state, test_name=name))
