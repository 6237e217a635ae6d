"""Planned failovers as jobs: stopped in order at the source, moved with nothing lost, booted at the target.

    approval, gateways connected, looked at and confirmed, stopped and proved, begun, claimed, booted

It is begun on the point that holds everything, and on no other. Until the claim all is taken back: the source
runs again. What does not shut down in time is for a person to say.
"""

from __future__ import annotations

import msgspec

from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind
from secondsite.model.items import ProtectedEvent
from secondsite.server.items.records import lock_key
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.errors import OutputMissing
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.failover import (
    APPROVAL,
    Chosen,
    begin,
    booted,
    chosen,
    claimed,
    kept_settings,
    preview,
    take_back,
)
from secondsite.server.operations.failoverparts import Ends, connected, give_up
from secondsite.server.operations.sourcestop import Stop, Stopped, let_run, stop_in_order
from secondsite.server.operations.tools import Tools
from secondsite.server.people.asking import ask_approval

PLANNED_FAILOVER = "item.planned-failover"
_WHY = "It is down from its shutdown until it runs at the other site; its clients may find it elsewhere then."


class PlannedFailover(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item, on which network. confirm: what the person said. seconds: for the guest to shut down."""

    vault: str
    item: str
    machine: str
    name: str
    network: str = "mapped"
    target_name: str | None = None  # of the machine there; None: its own
    confirm: str = ""
    seconds: float = 300.0
    power_off: bool = False  # if it does not: switch it off, and ask nobody
    prove: bool = True  # read all of it and compare by hash
    ends: Ends = Ends()
    by: str = ""


def move(tools: Tools) -> Definition[PlannedFailover]:
    """The job."""
    return Definition(
        kind=PLANNED_FAILOVER,
        version=1,
        input=PlannedFailover,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, APPROVAL)),
            Step("gateways-connected", do=lambda run: _connected(tools, run), tries=3, weight=0.2),
            Step("prerequisites", do=lambda run: _prerequisites(tools, run), tries=3),
            Step(
                "stop",
                do=lambda run: _stop(tools, run),
                undo=lambda run: _let_run(tools, run),
                weight=10.0,
            ),
            Step("begin", do=lambda run: _begin(tools, run), undo=lambda run: _take_back(tools, run)),
            Step("claimed", do=lambda run: claimed(tools, run, run.input.item)),
            Step(
                "booted",
                do=lambda run: booted(tools, run, run.input.item, lambda: _body(run)),
                weight=5.0,
                on_failure=OnFailure.KEEP,
            ),
        ),
        title=lambda given: f"Move {given.name} in order",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(APPROVAL,),
    )


def _connected(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    return tools.hear_of(tools.item(run.input.item).source_name) or connected(tools, run.input.item)


def _prerequisites(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    """Everything that can be known before the guest is asked to shut down."""
    given, item = run.input, tools.item(run.input.item)
    seen = preview(
        tools,
        run,
        item,
        point="latest",
        network=given.network,
        name=given.target_name,
        old_machine=given.ends.old_machine,
    )
    if isinstance(seen, RetryAfter):
        return seen
    wanted = confirmations.moved(item.name, item.source_name, item.target_name)
    confirmations.require(item.name, given.confirm, wanted, _WHY)
    return Done(chosen(run, seen, kept_settings(tools, item)))


def _stop(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    given, found = run.input, run.output_of("prerequisites", Chosen)
    item = tools.item(given.item)
    if item.failover_id != found.operation:
        event = ProtectedEvent.PLANNED
        run.write(lambda connection: tools.items.lead(connection, item.id, [event], failover=found.operation))
    stop = Stop(
        operation=found.stop,
        seconds=given.seconds,
        power_off=given.power_off,
        prove=given.prove,
        by=given.by,
    )
    return stop_in_order(tools, run, item, stop)


def _let_run(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    """Before the claim; after it the source's gateway refuses, and the machine is the target's."""
    try:
        found = run.output_of("prerequisites", Chosen)
    except OutputMissing:
        return DONE
    result = let_run(tools, run, tools.item(run.input.item), found.stop)
    if isinstance(result, Done):
        give_up(tools, run, run.input.item, found.operation)
    return result


def _begin(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    return begin(tools, run, run.input.item, ProtectedEvent.PLANNED, lambda: _body(run))


def _take_back(tools: Tools, run: StepRun[PlannedFailover]) -> Result:
    return take_back(tools, run, run.input.item)


def _body(run: StepRun[PlannedFailover]) -> dict[str, object]:
    given, found = run.input, run.output_of("prerequisites", Chosen)
    stopped = run.output_of("stop", Stopped)
    return {
        "operation": found.operation,
        "point": str(stopped.point),  # and no other: the gateway refuses where there is a newer one
        "confirm": confirmations.stopped(given.name, found.writer),
        "kind": FailoverKind.PLANNED.value,
        "network": given.network,
        "name": given.target_name,
        **given.ends.body(),
        "settings": found.settings,
        "requestedBy": given.by,
    }
