"""Failing a machine back to its first site, as one job over those that do the parts.

    moved in order -> committed there -> its recovery machine removed -> protected in the first direction

Only the first is always done; what is wished beyond stands in the input. Each part is a child job of its own,
with what it looks at and how it is taken back; what one comes to stays when a later one fails, and a retry of
this job goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.model import confirmations, reversals
from secondsite.model.items import ItemOperation, OperationNotAllowed, check_operation
from secondsite.server.jobs.definitions import DONE, Definition, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.errors import LockHeld
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.states import ENDED_BADLY, JobState
from secondsite.server.operations.failoverends import COMMIT, Commit
from secondsite.server.operations.failoverparts import Ends
from secondsite.server.operations.held import DISCARD, NOTHING, Decide
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from secondsite.server.operations.tools import LOOK_SECONDS, Tools

FAILBACK = "item.failback"
# A quarter of an hour, by the looks of the step that waits.
HELD_LOOKS_MAX = 180


class PartCalledOff(SecondsiteError):
    """Somebody cancelled a part of it."""

    code = "item.failback-called-off"
    outcome = Outcome.CANCELLED
    happened = "The failback of {name} stopped: {part} was called off."
    cause = "Somebody cancelled that job, which took back what it had done."
    action = "Look at the machine (`secondsite item show`), and begin again what is possible now."


class Failback(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item. source, target: names of the gateways it moves from and to.

    old_machine: how its former copy there goes (remove, remove-with-disks); None: there is none. recovery:
    what is removed of the one it leaves (nothing, machine, machine-and-disks), before it is protected again.
    """

    vault: str
    item: str
    machine: str
    name: str
    source: str
    target: str
    network: str = "mapped"
    seconds: float = 300.0  # for its guest to shut down
    power_off: bool = False
    old_machine: str | None = None
    commit: bool = False
    recovery: str = NOTHING
    reprotect: bool = False
    by: str = ""


Run = StepRun[Failback]


def sentences(given: Failback) -> tuple[str, ...]:
    """What a person says to it, all of it."""
    said = [confirmations.moved(given.name, given.source, given.target)]
    said += [confirmations.kept(given.name)] * given.commit
    said += [confirmations.discarded(given.name, given.recovery)] * (given.recovery != NOTHING)
    said += [reversals.reversed_onto(given.name)] * (given.reprotect and given.recovery == NOTHING)
    return tuple(said)


def fail_back(tools: Tools) -> Definition[Failback]:
    """The job."""
    parts: dict[str, Callable[[Run], Result]] = {
        "move": lambda run: _part(
            tools, run, PLANNED_FAILOVER, _planned(run.input), ItemOperation.PLANNED_FAILOVER
        ),
        "commit": lambda run: _wished(
            run.input.commit, lambda: _part(tools, run, COMMIT, _commit(run.input), ItemOperation.COMMIT)
        ),
        "remove-recovery-machine": lambda run: _wished(
            run.input.recovery != NOTHING,
            lambda: _remove(tools, run),
        ),
        "reprotect": lambda run: _wished(
            run.input.reprotect,
            lambda: _part(tools, run, REPROTECT, _reprotect(run.input), ItemOperation.REPROTECT),
        ),
    }
    return Definition(
        kind=FAILBACK,
        version=1,
        input=Failback,
        steps=tuple(Step(name, do=part) for name, part in parts.items()),
        title=lambda given: f"Fail {given.name} back to {given.target}",
        locks=lambda given: (f"failback:{given.machine}",),
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def _wished(wish: bool, part: Callable[[], Result]) -> Result:
    return part() if wish else DONE


def _remove(tools: Tools, run: Run) -> Result:
    """Once the site it left tells of the claim that this moved it by: an earlier hold is another's."""
    item = tools.item(run.input.item)
    moved = item.failover.epoch if item.failover is not None else None
    held = item.held.epoch if item.held is not None else 0
    if DISCARD not in run.children() and held < (moved or 0) and run.attempt <= HELD_LOOKS_MAX:
        return RetryAfter(LOOK_SECONDS, f"{run.input.source} has not told of its copy yet")
    return _part(tools, run, DISCARD, _discard(run.input, held), ItemOperation.HELD_DISCARD)


def _part(tools: Tools, run: Run, kind: str, given: msgspec.Struct, operation: ItemOperation) -> Result:
    """Have one child job do it, and come to its end. Raises what it failed with."""

    def check(connection: Connection) -> None:
        item = tools.items.get(connection, run.input.item)
        check_operation(item.name, item.state, item.facts, operation)

    children = run.children()
    if kind not in children:
        try:
            run.start_child(kind, given, kind, check=check)
        except LockHeld as error:  # a moment between two parts is enough for somebody else's job
            return RetryAfter(LOOK_SECONDS, str(error))
        except OperationNotAllowed as error:
            # the site it left tells that it isolated its copy, a moment after it has
            if operation is not ItemOperation.HELD_DISCARD or run.attempt > HELD_LOOKS_MAX:
                raise
            return RetryAfter(LOOK_SECONDS, str(error))
        return RetryAfter(LOOK_SECONDS, "begun")
    child = children[kind]
    if child.live:
        text = child.progress_text or child.note or child.shown[1]
        run.progress(child.progress, text)
        return RetryAfter(LOOK_SECONDS, f"{child.title}: {text}"[:200])
    if child.state is JobState.SUCCEEDED:
        return DONE
    if child.state in ENDED_BADLY and child.parent_retries < run.retries:
        run.retry_child(kind)
        return RetryAfter(LOOK_SECONDS, "tried again")
    if child.error is not None and child.state in ENDED_BADLY:
        raise RemoteError({**msgspec.structs.asdict(child.error), "outcome": "failed"})
    raise PartCalledOff(name=run.input.name, part=child.title)


def _which(given: Failback) -> dict[str, Any]:
    return {
        "vault": given.vault,
        "item": given.item,
        "machine": given.machine,
        "name": given.name,
        "by": given.by,
    }


def _planned(given: Failback) -> PlannedFailover:
    return PlannedFailover(
        **_which(given),
        network=given.network,
        confirm=confirmations.moved(given.name, given.source, given.target),
        seconds=given.seconds,
        power_off=given.power_off,
        ends=Ends(old_machine=given.old_machine),
    )


def _commit(given: Failback) -> Commit:
    return Commit(**_which(given), confirm=confirmations.kept(given.name))


def _discard(given: Failback, epoch: int) -> Decide:
    said = confirmations.discarded(given.name, given.recovery)
    return Decide(**_which(given), epoch=epoch, confirm=said, remove=given.recovery)


def _reprotect(given: Failback) -> Reprotect:
    return Reprotect(**_which(given), confirm=reversals.reversed_onto(given.name))
