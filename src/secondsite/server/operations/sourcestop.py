"""Stopping a source in order through its gateway: to move it with nothing lost, or as a mere attempt.

The server chooses the stop's number before it asks; asked again after a lost answer it is the same stop.
Taken back, the source runs on: its gateway refuses that itself once another site has claimed the machine.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.model.events import Severity
from secondsite.server.database.values import from_moment
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.records import Item
from secondsite.server.jobs.definitions import DONE, Ask, Done, Result, RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway, call_of
from secondsite.server.operations.failoverparts import GatewayStep
from secondsite.server.operations.gathering import key_for
from secondsite.server.operations.tools import LOOK_SECONDS, Tools, ask_fresh

POLL_SECONDS = 1.0
ASK_SECONDS = 60.0
# What only tries to shut a source down waits no longer for its gateway to answer at all.
TRY_SECONDS, TRY_SECONDS_MIN = 20.0, 5.0
PASSING = ("ShuttingDown", "LastChanges", "Proving")
WAITING, COMPLETED, CANCELLED = "Waiting", "Completed", "Cancelled"
UNKNOWN = "planned.unknown"
TAKEN_OVER = "failover.taken-over"
WAIT, POWER_OFF = "wait", "power-off"
# So often a gateway that is away is looked for before a stop is left to whoever brings it back: a minute.
LEAVE_AFTER = 12
STOP_STEPS = 3  # as a gateway names them: shut down, last changes, proof


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the source's gateway."""

    operation: str
    seconds: float
    power_off: bool = False
    prove: bool = True
    by: str = ""


class StopStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A stop as its gateway tells it."""

    operation: str
    name: str
    state: str
    shut_down_by: str = ""
    point: int | None = None
    point_at: str | None = None
    proved: bool = False
    steps: tuple[GatewayStep, ...] = ()
    note: str = ""
    error: dict[str, str] | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. point None: it was not stopped in order."""

    point: int | None = None
    point_at: str | None = None
    shut_down_by: str = ""
    proved: bool = False
    note: str = ""


def _path(item: Item) -> str:
    return f"/v1/protections/{quote(item.machine, safe='')}/planned-stop"


def _post(item: Item, source: Gateway, stop: Stop, *, key: str, seconds: float = ASK_SECONDS) -> Asked:
    body = {
        "operation": stop.operation,
        "secondsMax": stop.seconds,
        "powerOff": stop.power_off,
        "prove": stop.prove,
        "requestedBy": stop.by,
    }
    return Asked(
        source.id, source.name, "POST", _path(item), msgspec.json.encode(body).decode(), seconds, key=key
    )


def _look(
    tools: Tools, run: StepRun[Any], item: Item, source: Gateway, *, seconds: float = ASK_SECONDS
) -> StopStatus | RetryAfter:
    asked = Asked(source.id, source.name, "GET", _path(item), seconds_max=seconds, key="look")
    return ask_fresh(tools, run, asked, StopStatus)


# in order


def stop_in_order(tools: Tools, run: StepRun[Any], item: Item, stop: Stop) -> Result:
    """Until it is off and its last point holds everything; what does not shut down in time is for a person.

    Done with `Stopped`. Raises what the gateway stopped with.
    """
    source = tools.gateways.get(item.source_name)
    # once for each time the job was tried again: what failed goes on where it stopped
    begun = ask_gateway(tools.calls, run, _post(item, source, stop, key="stop"), StopStatus)
    if isinstance(begun, RetryAfter):
        return begun
    status = _look(tools, run, item, source)
    if isinstance(status, RetryAfter):
        return status
    if status.operation != stop.operation or status.state == CANCELLED:
        raise RemoteError(_interfered(item, status))
    if status.error is not None:
        raise RemoteError({**status.error, "outcome": "failed"})
    if status.state == COMPLETED:
        return Done(_stopped(status))
    if status.state == WAITING:
        return _waiting(tools, run, item, source, stop, status)
    text = f"{status.name}: {status.steps[-1].name}" if status.steps else f"{status.name} is shut down"
    ended = [step for step in status.steps if step.ended_at is not None]
    run.progress(len(ended) / STOP_STEPS, f"{text}, {status.note}" if status.note else text)
    return RetryAfter(POLL_SECONDS, text)


def _waiting(  # noqa: PLR0917 - one call, cut out of the function above
    tools: Tools, run: StepRun[Any], item: Item, source: Gateway, stop: Stop, status: StopStatus
) -> Result:
    """It did not shut down: a person says how to go on, once for each time."""
    # by the times of the steps: each try leaves others, and is another question
    key = f"again-{key_for(*(step.started_at for step in status.steps))}"
    power_off = run.answer == POWER_OFF
    wanted = msgspec.structs.replace(stop, power_off=power_off)
    asked = _post(item, source, wanted, key=key)
    prefix = f"{run.job}:{run.step}:{run.action.value}:again-"
    earlier = [call for call in tools.calls.answered(prefix) if call != call_of(run, asked).id]
    if run.answer is None or earlier:
        tools.calls.forget(earlier)  # the next answer is to this question
        return Ask(
            f"{item.name} runs on: it did not shut down within {format_seconds(stop.seconds)}. Wait as long "
            f"again, or have it switched off (what its guest has not written to disk is lost)?",
            (WAIT, POWER_OFF),
        )
    again = ask_gateway(tools.calls, run, asked, StopStatus)
    return again if isinstance(again, RetryAfter) else RetryAfter(POLL_SECONDS, "it is asked again")


def _stopped(status: StopStatus) -> Stopped:
    return Stopped(
        point=status.point,
        point_at=status.point_at,
        shut_down_by=status.shut_down_by,
        proved=status.proved,
        note=status.note,
    )


def _interfered(item: Item, status: StopStatus) -> dict[str, Any]:
    return {
        "code": "item.stop-interfered",
        "outcome": "refused",
        "happened": f"{item.name} was not stopped by this job: {status.state} by another operation.",
        "cause": f"Somebody stops it, or let it run again, at gateway {item.source_name} itself.",
        "action": "Agree with them; nothing was claimed. Then begin again.",
    }


# as an attempt


def try_to_stop(tools: Tools, run: StepRun[Any], item: Item, stop: Stop, begun_at: str) -> Result:
    """Whatever comes of it, the failover goes on: within the stop's time, or at once. Never raises for it.

    begun_at: since when it is tried (moment text).
    """
    source = tools.gateway(item.source_name)
    if source is None or not tools.connected(item.source_name):
        return _without(run, item, f"its gateway {item.source_name} is not connected")
    waited = (run.clock.utc() - from_moment(begun_at)).total_seconds()
    if waited > stop.seconds + TRY_SECONDS:
        return _without(run, item, f"it did not stand still within {format_seconds(stop.seconds)}")
    try:
        patience = min(TRY_SECONDS, max(TRY_SECONDS_MIN, stop.seconds))
        asked = _post(item, source, stop, key="stop", seconds=patience)
        begun = ask_gateway(tools.calls, run, asked, StopStatus)
        if isinstance(begun, RetryAfter):
            return begun
        status = _look(tools, run, item, source, seconds=patience)
    except SecondsiteError as error:
        return _without(run, item, str(error))
    if isinstance(status, RetryAfter):
        return status
    if status.state in PASSING and status.error is None:
        text = f"{status.name}: {status.steps[-1].name}" if status.steps else f"{status.name} is shut down"
        run.progress(min(1.0, waited / stop.seconds), text)
        return RetryAfter(POLL_SECONDS, text)
    if status.state != COMPLETED or status.operation != stop.operation:
        why = " ".join((status.error or {}).values()) or status.note or status.state
        return _without(run, item, why)
    run.log(f"{item.name} was shut down ({status.shut_down_by}); point {status.point} holds all of it")
    return Done(_stopped(status))


def _without(run: StepRun[Any], item: Item, why: str) -> Result:
    run.log(f"{item.name} was not shut down at its source, and is taken over all the same: {why}", "warning")
    return Done(Stopped(note=why[:1000]))


# taking back


def let_run(tools: Tools, run: StepRun[Any], item: Item, operation: str) -> Result:
    """The source runs on, unless another site has claimed its machine: then its gateway refuses."""
    source = tools.gateway(item.source_name)
    if source is None or not tools.connected(item.source_name):
        if source is not None and run.attempt <= LEAVE_AFTER:
            return RetryAfter(LOOK_SECONDS, f"waits for gateway {source.name}, to let {item.name} run again")
        return _left_stopped(tools, run, item)
    try:
        status = _look(tools, run, item, source)
    except RemoteError as error:
        if error.body.get("code") != UNKNOWN:
            raise
        return DONE
    if isinstance(status, RetryAfter):
        return status
    if status.operation != operation or status.state == CANCELLED:
        return DONE
    if status.state in PASSING and status.error is None:
        return RetryAfter(POLL_SECONDS, f"waits until the stop of {item.name} can be taken back")
    asked = Asked(source.id, source.name, "DELETE", _path(item), "{}", ASK_SECONDS, key="let-run")
    try:
        done = ask_fresh(tools, run, asked, StopStatus)
    except RemoteError as error:
        if error.body.get("code") != TAKEN_OVER:
            raise
        run.log(f"{item.name} stays stopped at {item.source_name}: {error}", "warning")
        return DONE
    return done if isinstance(done, RetryAfter) else DONE


def _left_stopped(tools: Tools, run: StepRun[Any], item: Item) -> Result:
    """Not waited for any longer: the job has the machine, which may have to be failed over without it."""
    text = (
        f"Gateway {item.source_name} is not connected: if it has stopped {item.name} in order, that stays so "
        f"until somebody lets it run again there (`secondsite failover cancel-stop`)."
    )

    def work(connection: Connection) -> None:
        tools.items.tell(connection, item, Severity.CRITICAL, "item.left-stopped", text)

    run.log(text, "warning")
    run.write(work)
    return DONE
