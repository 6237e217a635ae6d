"""Protecting a machine in the other direction as a job, after a failover that was committed.

    looked at -> begun -> old site reversed onto -> item turned round -> taken by its new source
    -> first point at the old site -> former replica retired -> Protected

Where the old machine is gone, or another target is wanted, nothing is reversed onto and the first copy is a
plain one. Until the first point is there all can be taken back: then the old machine is held as before. From
it on the other direction is the machine's protection, and what fails waits for a retry.
"""

from __future__ import annotations

from collections.abc import Callable

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.model import reversals
from secondsite.model.failover import KeptState
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.items.errors import GatewayRefused
from secondsite.server.items.records import lock_key
from secondsite.server.items.returnerrors import TurnedBack
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.operations.failoverparts import POLL_SECONDS
from secondsite.server.operations.reprotectlooks import (
    connected,
    direction,
    keeps_store,
    key_proved,
    machine_there,
    old_site,
    places_there,
    way_open,
)
from secondsite.server.operations.reprotectparts import (
    Old,
    Over,
    Reprotect,
    Returned,
    Run,
    asked,
    has_point,
    reversal,
    way_of,
)
from secondsite.server.operations.reprotectsteps import (
    as_it_was,
    begin,
    finish,
    reverse,
    take_back,
    taken,
    turn,
    turn_back,
)
from secondsite.server.operations.tools import LOOK_SECONDS, Tools, ask_fresh, tell_progress

REPROTECT = "item.reprotect"
RETIRED, RETIRING = KeptState.RETIRED.value, KeptState.RETIRING.value
RETIRE_EARLY = "retire.needed"
_S, _E = ProtectedState, ProtectedEvent


def reprotect(tools: Tools) -> Definition[Reprotect]:
    """The job."""
    looks: dict[str, Callable[[Run], Result]] = {
        "direction": lambda run: direction(tools, run),
        "gateways-connected": lambda run: connected(tools, run),
        "machine-there": lambda run: machine_there(tools, run),
        "target-keeps-a-store": lambda run: keeps_store(tools, run),
        "recovery-key-proved": lambda run: key_proved(tools, run),
        "way": lambda run: way_open(tools, run),
        "old-machine": lambda run: old_site(tools, run),
        "places": lambda run: places_there(tools, run),
    }

    def kept(name: str, do: Callable[[Run], Result], weight: float = 1.0) -> Step[Reprotect]:
        told = lambda run: _telling(tools, run, do)  # noqa: E731 - one line beside its use
        return Step(name, do=told, weight=weight, on_failure=OnFailure.KEEP)

    return Definition(
        kind=REPROTECT,
        version=1,
        input=Reprotect,
        steps=(
            *(Step(name, do=look, tries=3, weight=0.2) for name, look in looks.items()),
            Step("begin", do=lambda run: begin(tools, run), undo=lambda run: as_it_was(tools, run)),
            Step("reverse", do=lambda run: reverse(tools, run), undo=lambda run: take_back(tools, run)),
            Step("turn", do=lambda run: turn(tools, run), undo=lambda run: turn_back(tools, run)),
            Step("taken-by-gateway", do=lambda run: taken(tools, run), tries=1),
            kept("first-point", lambda run: _first_point(tools, run), weight=20.0),
            kept("retire-replica", lambda run: _retire(tools, run)),
            kept("protected", lambda run: _protected(tools, run)),
        ),
        title=lambda given: f"Protect {given.name} in the other direction",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
    )


# from its first point on nothing is taken back


def _telling(tools: Tools, run: Run, do: Callable[[Run], Result]) -> Result:
    """A step whose failure the item says, and whose retry, too."""
    item = tools.item(run.input.item)
    if item.source_name != way_of(run).source:
        raise TurnedBack(name=item.name, gateway=way_of(run).source)
    if item.state is _S.REPROTECT_FAILED:
        fresh = {"health": "Normal", "health_code": "", "health_note": ""}
        run.write(lambda connection: tools.items.move(connection, item.id, _E.REPROTECTING, fresh))
    try:
        return do(run)
    except SecondsiteError as error:
        if error.retryable or tools.item(item.id).state is not _S.REPROTECTING:
            raise
        code = str(error.as_dict().get("code", ""))
        values = {"health": "Critical", "health_code": code, "health_note": str(error)[:4000]}
        run.write(lambda connection: tools.items.move(connection, item.id, _E.REPROTECT_FAILED, values))
        raise


def _first_point(tools: Tools, run: Run) -> Result:
    item, way = tools.item(run.input.item), way_of(run)
    if item.refused:
        raise GatewayRefused(gateway=item.source_name, name=item.name, why=item.refused)
    old, sent = run.output_of("old-machine", Old), None
    if not has_point(item):
        what = "comparison with the old disks" if old.reversed_onto else "first copy"
        return RetryAfter(LOOK_SECONDS, tell_progress(run, item, what))
    if old.reversed_onto:
        status = reversal(tools, run, item, tools.gateways.get(way.target))
        if isinstance(status, RetryAfter):
            return status
        if status is not None and status.point is None:
            return RetryAfter(LOOK_SECONDS, f"waits until {way.target} has seen the first point")
        sent = None if status is None else status.sent_bytes
    run.log(f"the first recovery point of {item.name} is at {way.target}")
    return Done(
        Returned(
            item=item.id,
            source=way.source,
            target=way.target,
            reversed_onto=old.reversed_onto,
            points=item.points,
            sent_bytes=sent,
        )
    )


def _retire(tools: Tools, run: Run) -> Result:
    """Delete what is left of the replica the machine was taken over from: its points are gone already."""
    old, way = run.output_of("old-machine", Old), way_of(run)
    if not old.failover:
        return DONE
    item, source = tools.item(run.input.item), tools.gateways.get(way.source)
    path = f"/v1/failovers/{old.failover}"
    status = ask_fresh(tools, run, asked(source, "GET", path, "look"), Over)
    if isinstance(status, RetryAfter):
        return status
    if status.kept == RETIRED:
        return DONE
    told = f"what is left of the replica at {source.name} is deleted"
    if status.kept == RETIRING and status.error is None:
        return RetryAfter(POLL_SECONDS, told)
    body: dict[str, object] = {
        "operation": way.operation,
        "confirm": reversals.retired(item.name),
        "requestedBy": run.input.by,
    }
    try:
        begun = ask_fresh(tools, run, asked(source, "POST", f"{path}/retire", "retire", body), Over)
    except RemoteError as error:
        if error.body.get("code") != RETIRE_EARLY:
            raise
        return RetryAfter(LOOK_SECONDS, str(error))
    return begun if isinstance(begun, RetryAfter) else RetryAfter(POLL_SECONDS, told)


def _protected(tools: Tools, run: Run) -> Result:
    finish(tools, run)
    return Done(run.output_of("first-point", Returned))
