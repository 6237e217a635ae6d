"""What a reprotection changes until the other direction has a point, and how each is taken back."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.errors import RemoteError
from secondsite.model.events import Severity
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.database.tables_items import REPORTS
from secondsite.server.database.values import to_json
from secondsite.server.items.errors import GatewayTakesLong
from secondsite.server.items.records import Item
from secondsite.server.items.returnerrors import ReversalStopped
from secondsite.server.items.turning import columns_before, turned
from secondsite.server.jobs.definitions import DONE, Result, RetryAfter
from secondsite.server.jobs.errors import OutputMissing
from secondsite.server.operations.ending import ASK_BUSY_SECONDS
from secondsite.server.operations.failoverparts import POLL_SECONDS
from secondsite.server.operations.reprotectparts import (
    Before,
    Old,
    Reversal,
    Run,
    asked,
    is_turned,
    reversal,
    reverse_path,
    turning,
    way_of,
)
from secondsite.server.operations.tools import LOOK_SECONDS, Tools, action_of, ask_fresh, wait_taken

_S, _E = ProtectedState, ProtectedEvent


def begin(tools: Tools, run: Run) -> Result:
    """The item says that it is under way."""
    item = tools.item(run.input.item)
    if item.state is _S.COMMITTED:
        # what an earlier change kept for taking it back is not of this one
        fresh = {"before_change": "{}"}
        run.write(lambda connection: tools.items.move(connection, item.id, _E.REPROTECTING, fresh))
    return DONE


def as_it_was(tools: Tools, run: Run) -> Result:
    """It is committed at its target as before, unless it is protected already."""
    item = tools.item(run.input.item)
    if item.state not in (_S.REPROTECTING, _S.REPROTECT_FAILED):
        return DONE
    if is_turned(run, item):  # its first point came before it was called off
        run.log(f"{item.name} is protected in the other direction already: that is not taken back", "warning")
        finish(tools, run)
        return DONE
    run.write(lambda connection: tools.items.move(connection, item.id, _E.REPROTECT_TAKEN_BACK))
    return DONE


def reverse(tools: Tools, run: Run) -> Result:
    """Ask for it once, under one number, and look until the other site may begin."""
    old = run.output_of("old-machine", Old)
    if not old.reversed_onto:
        return DONE
    item, way = tools.item(run.input.item), way_of(run)
    target = tools.gateways.get(way.target)
    status = reversal(tools, run, item, target)
    if isinstance(status, RetryAfter):
        return status
    mine = status is not None and status.operation == way.operation
    over = status is not None and not mine and (status.state == "TakenBack" or status.point is not None)
    if status is None or over:
        body: dict[str, object] = {
            "operation": way.operation,
            "confirm": old.confirm,
            "requestedBy": run.input.by,
        }
        begun = ask_fresh(tools, run, asked(target, "POST", reverse_path(item), "reverse", body), Reversal)
        return begun if isinstance(begun, RetryAfter) else RetryAfter(POLL_SECONDS, "offers the old disks")
    if status.state == "Ready":  # also where somebody did it at the gateway itself
        return DONE
    if mine and status.state == "Failed":
        raise RemoteError({**(status.error or {}), "outcome": "failed"})
    if status.state in ("Failed", "TakingBack", "TakenBack"):
        raise ReversalStopped(gateway=target.name, name=item.name, state=status.state)
    return RetryAfter(
        POLL_SECONDS, status.note or f"the old {item.name} is shut off and its disks are offered"
    )


def take_back(tools: Tools, run: Run) -> Result:
    """Have the old machine held as before; what was never begun there is none to take back."""
    try:
        old = run.output_of("old-machine", Old)
    except OutputMissing:
        return DONE
    item, way = tools.item(run.input.item), way_of(run)
    target = tools.gateway(way.target)
    if not old.reversed_onto or is_turned(run, item):
        return DONE
    if target is None:
        run.log(f"gateway {way.target} was removed from the server: what it has stays there", "warning")
        return DONE
    status = reversal(tools, run, item, target)
    if isinstance(status, RetryAfter):
        return status
    if status is None or status.operation != way.operation or status.state == "TakenBack":
        return DONE
    if status.state == "TakingBack" and status.error is None:
        return RetryAfter(POLL_SECONDS, f"the old {item.name} is held again at {target.name}")
    gone = ask_fresh(tools, run, asked(target, "DELETE", reverse_path(item), "take-back"), Reversal)
    return gone if isinstance(gone, RetryAfter) else RetryAfter(POLL_SECONDS, "takes the reversal back")


def turn(tools: Tools, run: Run) -> Result:
    """From here on the new source is told what is wanted of it, and the old one to keep the replica."""
    wanted = turning(tools, run, tools.item(run.input.item))

    def work(connection: Connection) -> None:
        item = tools.items.get(connection, run.input.item)
        if item.changed_by == action_of(run):
            return
        values = turned(connection, tools.items.seams, item, wanted)
        values |= {"changed_by": action_of(run), "before_change": _before(item, values)}
        connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == item.id))
        tools.items.change(connection, item.id, _E.REPROTECTING, values)

    run.write(work)
    for name in (way_of(run).source, way_of(run).target):
        tools.calls.bells.ring(tools.gateways.get(name).id)
    return DONE


def _before(item: Item, values: dict[str, object]) -> str:
    return to_json(Before(columns=columns_before(item, values)))


def turn_back(tools: Tools, run: Run) -> Result:
    """End what the new source began, then have the item as it was."""
    item = tools.item(run.input.item)
    if not item.changed_by.startswith(f"{run.job}/") or item.source_name != way_of(run).source:
        return DONE
    if is_turned(run, item):
        return DONE
    if item.enabled:
        ended = {"enabled": 0, "delete_replica": 0, "changed_by": f"{run.job}/ending"}
        run.write(lambda c: tools.items.change(c, item.id, _E.REPROTECTING, ended, force=True))
        tools.calls.bells.ring(item.source_id)
        return RetryAfter(LOOK_SECONDS, f"waits until {item.source_name} has ended what it began")
    if not item.source_done:
        waited = (tools.items.clock.utc() - item.changed_at).total_seconds()
        if waited > ASK_BUSY_SECONDS:
            raise GatewayTakesLong(gateway=item.source_name, name=item.name, seconds=ASK_BUSY_SECONDS)
        return RetryAfter(LOOK_SECONDS, f"waits until {item.source_name} has ended what it began")
    before = msgspec.json.decode(item.before_change, type=Before).columns

    def work(connection: Connection) -> None:
        connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == item.id))
        values = {**before, "enabled": 1, "changed_by": f"{run.job}/back", "before_change": "{}"}
        tools.items.change(connection, item.id, _E.REPROTECTING, values, force=True)

    run.write(work)
    for gateway in (item.source_id, item.target_id):  # the target may have heard that it keeps no replica
        if gateway is not None:
            tools.calls.bells.ring(gateway)
    return DONE


def taken(tools: Tools, run: Run) -> Result:
    """Wait until the new source works towards it."""
    found = wait_taken(tools, run.input.item)
    return found if isinstance(found, RetryAfter) else DONE


def finish(tools: Tools, run: Run) -> None:
    """The item is protected, in the other direction."""

    def work(connection: Connection) -> None:
        item = tools.items.get(connection, run.input.item)
        if item.state not in (_S.REPROTECTING, _S.REPROTECT_FAILED):
            return
        if item.state is _S.REPROTECT_FAILED:
            tools.items.move(connection, item.id, _E.REPROTECTING)
        fresh = {"health": "Normal", "health_code": "", "health_note": ""}
        moved = tools.items.move(connection, item.id, _E.REPROTECTED, fresh)
        text = f"{moved.name} is protected from {moved.source_name} to {moved.target_name}."
        tools.items.tell(connection, moved, Severity.INFORMATION, "item.reprotected", text)

    run.write(work)
