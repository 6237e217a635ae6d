"""Unplanned failovers as jobs: a machine is taken over at its target, whether its source is there or not.

    approval, target connected, looked at and confirmed, source shut down if asked for, begun, claimed, booted

Before the claim a failure takes everything back. From the claim on the target is the machine's authority,
and nothing is taken back by itself: the job stays for a retry, and a person may turn to another point or
roll back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from secondsite.base.errors import RemoteError
from secondsite.base.units import format_seconds
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState
from secondsite.model.itemfailovers import BACK
from secondsite.model.items import ProtectedEvent
from secondsite.model.recovered import RecoveredSettings
from secondsite.server.database.values import moment
from secondsite.server.items.errors import FailoverMoved
from secondsite.server.items.records import Item, lock_key
from secondsite.server.items.recovered import described, settings_for, way_of
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.errors import OutputMissing
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway
from secondsite.server.operations.failoverparts import (
    ASK_SECONDS,
    POLL_SECONDS,
    UNKNOWN,
    Ends,
    Preview,
    Status,
    TakenOver,
    connected,
    doing,
    give_up,
    look,
    machine_path,
    show,
    stopped,
    target_of,
)
from secondsite.server.operations.sourcestop import Stop, let_run, try_to_stop
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.server.people.asking import ask_approval

FAILOVER = "item.failover"
APPROVAL = "failover"
OLD_MACHINE = "old-machine"  # a gateway's name for the check of what has to make room
BOOT_STEPS = 3  # as a gateway names them: claim, export, machine
_MAY_RUN_ON = (
    "While the link is cut nobody can know that the source stands still. Until its gateway learns of the "
    "failover it may go on working, and what it writes is not in any point."
)


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item, to which point, on which network. confirm: what the person said."""

    vault: str
    item: str
    machine: str
    name: str
    point: str = "latest"
    network: str = "mapped"
    target_name: str | None = None  # of the machine there; None: its own
    confirm: str = ""
    shut_down: bool = False  # try to shut the source down first; the failover goes on whatever comes of it
    shut_down_seconds: float = 120.0
    ends: Ends = Ends()
    by: str = ""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and the ids that are asked with. begun_at: by the server's clock (moment text)."""

    operation: str
    stop: str
    begun_at: str
    point: int
    point_at: str
    writer: str
    expected_loss_seconds: float
    settings: RecoveredSettings | None = None  # as they are kept for the item; None: as the point has it


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """The store has the claim."""

    operation: str
    epoch: int | None
    point: int
    loss_seconds: float | None


def fail_over(tools: Tools) -> Definition[Failover]:
    """The job."""
    return Definition(
        kind=FAILOVER,
        version=1,
        input=Failover,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, APPROVAL)),
            Step("target-connected", do=lambda run: connected(tools, run.input.item), tries=3, weight=0.2),
            Step("prerequisites", do=lambda run: _prerequisites(tools, run), tries=3),
            Step("shut-down", do=lambda run: _shut_down(tools, run), undo=lambda run: _let_run(tools, run)),
            Step("begin", do=lambda run: _begin(tools, run), undo=lambda run: _take_back(tools, run)),
            Step("claimed", do=lambda run: claimed(tools, run, run.input.item)),
            Step(
                "booted",
                do=lambda run: booted(tools, run, run.input.item, lambda: _body(run)),
                weight=5.0,
                on_failure=OnFailure.KEEP,
            ),
        ),
        title=lambda given: f"Fail {given.name} over to {_point_text(given.point)}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(APPROVAL,),
    )


def _point_text(point: str) -> str:
    return f"the point {point}" if point.startswith("la") else f"point {point}"


# looking


def _prerequisites(tools: Tools, run: StepRun[Failover]) -> Result:
    """What the target finds in its store now: the point, who writes the machine, what is in the way."""
    given, item = run.input, tools.item(run.input.item)
    seen = preview(
        tools,
        run,
        item,
        point=given.point,
        network=given.network,
        name=given.target_name,
        old_machine=given.ends.old_machine,
    )
    if isinstance(seen, RetryAfter):
        return seen
    confirmations.require(item.name, given.confirm, seen.confirm, _MAY_RUN_ON)
    age = format_seconds(seen.expected_loss_seconds)
    run.log(f"point {seen.point} of {seen.point_at}, {seen.consistency}: {age} are lost at the least")
    return Done(chosen(run, seen, kept_settings(tools, item)))


def kept_settings(tools: Tools, item: Item) -> RecoveredSettings | None:
    """What its recovered machine is to be, the way it would be taken over now."""
    with tools.items.database.read() as connection:
        return settings_for(connection, item, way_of(item))


def chosen(run: StepRun[Any], seen: Preview, settings: RecoveredSettings | None) -> Chosen:
    """The operation as it will be asked for."""
    if seen.outlook is not None:
        run.log(described(seen.outlook))
    return Chosen(
        operation=secrets.token_hex(16),
        stop=secrets.token_hex(16),
        begun_at=moment(run.clock.utc()),
        point=seen.point,
        point_at=seen.point_at,
        writer=seen.writer,
        expected_loss_seconds=seen.expected_loss_seconds,
        settings=settings,
    )


def looking(
    item: Item, wanted: Mapping[str, str | None], settings: RecoveredSettings | None
) -> tuple[str, str]:
    """Path and body of the look at a failover, with what its machine is to be. No body: it is a GET."""
    path, given = machine_path(item, "failover"), {key: one for key, one in wanted.items() if one is not None}
    if settings is None:
        return f"{path}?{urlencode(given)}", ""
    # in a body: an address holds no settings of any length
    return f"{path}/check", msgspec.json.encode({**given, "settings": settings}).decode()


def preview(
    tools: Tools,
    run: StepRun[Any],
    item: Item,
    *,
    point: str,
    network: str,
    name: str | None,
    old_machine: str | None = None,
) -> Preview | RetryAfter:
    """Look through the target's eyes. Raises what it says, and ChecksFailed's sentences as they are.

    old_machine: how its former copy there goes, where that was said: then it is in nobody's way.
    """
    target = target_of(tools, item)
    wanted = {"point": point, "network": network, "name": name}
    path, body = looking(item, wanted, kept_settings(tools, item))
    asked = Asked(target.id, target.name, "POST" if body else "GET", path, body, ASK_SECONDS)
    seen = ask_fresh(tools, run, asked, Preview)
    if isinstance(seen, RetryAfter):
        return seen
    failed = [check for check in seen.checks if check.required and not check.passed]
    if old_machine is not None:
        failed = [check for check in failed if check.name != OLD_MACHINE]
    if failed:
        raise RemoteError(
            {
                "code": "failover.prerequisites",
                "outcome": "refused",
                "happened": f"{item.name} was not taken over: "
                + "; ".join(check.cause.rstrip(".") for check in failed)
                + ".",
                "cause": "What is needed was looked at first; nothing was changed.",
                "action": " ".join(check.action for check in failed),
            }
        )
    return seen


# beginning


def _shut_down(tools: Tools, run: StepRun[Failover]) -> Result:
    given, found = run.input, run.output_of("prerequisites", Chosen)
    if not given.shut_down:
        return DONE
    stop = Stop(operation=found.stop, seconds=given.shut_down_seconds, prove=False, by=given.by)
    return try_to_stop(tools, run, tools.item(given.item), stop, found.begun_at)


def _let_run(tools: Tools, run: StepRun[Failover]) -> Result:
    if not run.input.shut_down:
        return DONE
    try:
        found = run.output_of("prerequisites", Chosen)
    except OutputMissing:
        return DONE
    return let_run(tools, run, tools.item(run.input.item), found.stop)


def _begin(tools: Tools, run: StepRun[Failover]) -> Result:
    return begin(tools, run, run.input.item, ProtectedEvent.UNPLANNED, lambda: _body(run))


def _take_back(tools: Tools, run: StepRun[Failover]) -> Result:
    return take_back(tools, run, run.input.item)


def _body(run: StepRun[Failover]) -> dict[str, object]:
    given, found = run.input, run.output_of("prerequisites", Chosen)
    return {
        "operation": found.operation,
        # as it was asked for: a point that came since is chosen on the head that is claimed
        "point": given.point,
        "confirm": confirmations.taken_over(given.name, found.writer),
        "kind": FailoverKind.UNPLANNED.value,
        "network": given.network,
        "name": given.target_name,
        **given.ends.body(),
        "settings": found.settings,
        "requestedBy": given.by,
    }


def begin(
    tools: Tools,
    run: StepRun[Any],
    identity: str,
    event: ProtectedEvent,
    body: Callable[[], dict[str, object]],
) -> Result:
    """Have the item say that it is under way, then ask its target."""
    found = run.output_of("prerequisites", Chosen)
    item = tools.item(identity)
    if item.failover_id != found.operation:
        run.write(
            lambda connection: tools.items.lead(connection, identity, [event], failover=found.operation)
        )
    status = ask_to_begin(tools, run, item, found.operation, body())
    if isinstance(status, RetryAfter):
        return status
    show(tools, run, identity, status)
    return DONE


def ask_to_begin(
    tools: Tools, run: StepRun[Any], item: Item, operation: str, body: dict[str, object]
) -> Status | RetryAfter:
    """The same operation asked again is the same failover; one that stopped is begun again."""
    target = target_of(tools, item)
    # by the operation: a job that is tried again must not be given the answer to its first try
    asked = Asked(
        target.id,
        target.name,
        "POST",
        machine_path(item, "failover"),
        msgspec.json.encode(body).decode(),
        key=operation,
    )
    return ask_fresh(tools, run, asked, Status)


def claimed(tools: Tools, run: StepRun[Any], identity: str) -> Result:
    """Wait for the claim; before it nothing was changed, and its failure takes all back."""
    item, found = tools.item(identity), run.output_of("prerequisites", Chosen)
    status = look(tools, run, target_of(tools, item), found.operation)
    if isinstance(status, RetryAfter):
        return status
    show(tools, run, identity, status)
    if status.state is FailoverState.INITIATED:
        return doing(run, status, BOOT_STEPS)
    if status.state is FailoverState.FAILED:
        raise stopped(status)
    return Done(
        Claimed(operation=status.id, epoch=status.epoch, point=status.point, loss_seconds=status.loss_seconds)
    )


def booted(tools: Tools, run: StepRun[Any], identity: str, body: Callable[[], dict[str, object]]) -> Result:
    """Wait until it runs. In a job that is tried again the boot is asked for again."""
    item, found = tools.item(identity), run.output_of("prerequisites", Chosen)
    if run.retries:
        again = _boot_again(tools, run, item, found.operation, body())
        if isinstance(again, RetryAfter):
            return again
    status = look(tools, run, target_of(tools, item), found.operation)
    if isinstance(status, RetryAfter):
        return status
    show(tools, run, identity, status)
    if status.state is FailoverState.CLAIMED and status.error is None:
        return doing(run, status, BOOT_STEPS)
    if status.error is not None:
        raise stopped(status)
    if status.state is not FailoverState.COMPLETED:
        raise FailoverMoved(
            name=item.name, state=status.state.value, gateway=item.target_name, operation="waiting for it"
        )
    return Done(taken_over(status))


def _boot_again(
    tools: Tools, run: StepRun[Any], item: Item, operation: str, body: dict[str, object]
) -> Status | RetryAfter:
    """Once for each time the job was tried again: the answer is kept, so that it is not asked anew."""
    target = target_of(tools, item)
    text, path = msgspec.json.encode(body).decode(), machine_path(item, "failover")
    asked = Asked(target.id, target.name, "POST", path, text, key=f"again-{operation}")
    return ask_gateway(tools.calls, run, asked, Status)


def taken_over(status: Status) -> TakenOver:
    """What it came to."""
    seconds = None
    if status.booted_at is not None:
        took = datetime.fromisoformat(status.booted_at) - datetime.fromisoformat(status.requested_at)
        seconds = round(took.total_seconds(), 3)
    return TakenOver(
        operation=status.id,
        kind=status.kind,
        name=status.name,
        point=status.point,
        point_at=status.point_at,
        consistency=status.consistency,
        network=status.network,
        epoch=status.epoch,
        expected_loss_seconds=status.expected_loss_seconds,
        loss_seconds=status.loss_seconds,
        booted_seconds=seconds,
        console_seen=status.console_at is not None,
        userspace_seen=status.userspace_at is not None,
    )


# taking back


def take_back(tools: Tools, run: StepRun[Any], identity: str) -> Result:
    """Only what was not claimed. What was is the target's: that is said, and left to a person."""
    try:
        found = run.output_of("prerequisites", Chosen)
    except OutputMissing:
        return DONE
    item = tools.item(identity)
    target = tools.gateway(item.target_name)
    if target is None:
        run.log(f"gateway {item.target_name} was removed from the server: what it has stays there", "warning")
        return DONE
    try:
        status = look(tools, run, target, found.operation)
    except RemoteError as error:
        if error.body.get("code") != UNKNOWN:
            raise
        return _call_off(tools, run, item, found.operation)
    if isinstance(status, RetryAfter):
        return status
    show(tools, run, identity, status)
    if status.state is FailoverState.INITIATED:
        return RetryAfter(POLL_SECONDS, f"waits whether {status.machine_name} is claimed")
    if status.state not in BACK:
        epoch = "" if status.epoch is None else f" since epoch {status.epoch}"
        run.log(
            f"{item.name} belongs to {item.target_name}{epoch}, which is not undone by itself: turn to "
            f"another point, commit it, or roll it back (`secondsite item roll-back`)",
            "warning",
        )
        return DONE
    give_up(tools, run, identity, found.operation)
    return DONE


def _call_off(tools: Tools, run: StepRun[Any], item: Item, operation: str) -> Result:
    """It was never begun; its request may still be on its way: it is to find itself called off."""
    target = target_of(tools, item)
    body = msgspec.json.encode({"operation": operation}).decode()
    path = machine_path(item, "failover")
    asked = Asked(target.id, target.name, "DELETE", path, body, ASK_SECONDS, key="call-off")
    try:
        answer = ask_fresh(tools, run, asked, Status)
    except RemoteError as error:
        if error.body.get("code") != UNKNOWN:
            raise
        give_up(tools, run, item.id, operation)
        return DONE
    # it began between the two looks
    return answer if isinstance(answer, RetryAfter) else RetryAfter(POLL_SECONDS, "looks again")
