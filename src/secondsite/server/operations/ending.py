"""Ending a protection at both of its gateways: each says when it is done; none is waited for forever."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.database.tables_items import ITEMS, REPORTS
from secondsite.server.items.errors import GatewayRefused
from secondsite.server.items.failovers import follow
from secondsite.server.items.records import Item, lock_key
from secondsite.server.jobs.definitions import (
    DONE,
    Ask,
    Definition,
    Done,
    OnFailure,
    Result,
    RetryAfter,
    Step,
)
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.tools import LOOK_SECONDS, Tools, change_once
from secondsite.server.people.asking import ask_approval

DISABLE = "item.disable"
# What a vault can demand the approval of a second person for.
APPROVALS = ("disable", "disable-with-replica")
# A gateway that restarts is back by then; a person is asked for no less.
ASK_SECONDS = 60.0
# One that is connected and does not come to an end has to be looked at.
ASK_BUSY_SECONDS = 900.0
LEAVE, WAIT = "leave", "wait"
# A gateway's word for a replica that somebody needs; a sentence of its own names who, and what to do.
IN_USE = "replica.in-use"
NOTE_MAX = 1000


class Disable(msgspec.Struct, frozen=True, kw_only=True):
    """Which item. force: what a gateway that is away cannot remove is left behind, and nobody is asked."""

    vault: str
    item: str
    machine: str
    name: str
    with_replica: bool = False
    force: bool = False


class Unprotected(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. left_behind: what was not removed, and where; empty: nothing."""

    item: str
    left_behind: str


def disable(tools: Tools) -> Definition[Disable]:
    """The job."""
    return Definition(
        kind=DISABLE,
        version=1,
        input=Disable,
        steps=(
            Step("approval", do=_approved),
            Step("disable", do=lambda run: _disable(tools, run), undo=lambda run: _enable_again(tools, run)),
            Step("source-ended", do=lambda run: _ended(tools, run, "source"), weight=3.0),
            Step("replica-ended", do=lambda run: _ended(tools, run, "target"), weight=3.0),
            Step("unprotect", do=lambda run: _unprotected(tools, run, run.input.item)),
        ),
        title=lambda given: (
            f"End the protection of {given.name}" + (" and delete its replica" if given.with_replica else "")
        ),
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=APPROVALS,
        on_failure=OnFailure.KEEP,
    )


def _approved(run: StepRun[Disable]) -> Result:
    """What deletes the replica, too, needs what either of the two demands."""
    return ask_approval(run, *(APPROVALS if run.input.with_replica else APPROVALS[:1]))


def _disable(tools: Tools, run: StepRun[Disable]) -> Result:
    given = run.input
    change_once(
        tools,
        run,
        given.item,
        ProtectedEvent.DISABLING,
        # a pause ends with what was paused
        lambda _item: {
            "enabled": 0,
            "paused": 0,
            "delete_replica": int(given.with_replica),
            "left_behind": "",
        },
        force=True,
    )
    return DONE


def _enable_again(tools: Tools, run: StepRun[Disable]) -> Result:
    found = tools.item(run.input.item)
    if found.enabled or found.state is ProtectedState.UNPROTECTED:
        return DONE
    back = {"enabled": 1, "delete_replica": 0, "source_done": 0, "target_done": 0, "left_behind": ""}
    event = ProtectedEvent.DISABLE_TAKEN_BACK
    item = change_once(tools, run, found.id, event, lambda _item: back, force=True)
    over = item.failover
    if item.state is ProtectedState.ENABLING and over is not None and over.id == item.failover_id:
        # what is taken over still: nothing its source says would lead it there again
        unseen = msgspec.structs.replace(item, failover_id="")
        events = follow(unseen, over) if item.reported is not None else ()
        if events:
            run.write(lambda connection: tools.items.lead(connection, item.id, events, failover=over.id))
    return DONE


def _ended(tools: Tools, run: StepRun[Disable], end: str) -> Result:
    given = run.input
    item = tools.item(given.item)
    if item.refused:
        if item.state is ProtectedState.DISABLING:
            run.write(lambda c: tools.items.move(c, item.id, ProtectedEvent.DISABLE_FAILED))
        raise GatewayRefused(gateway=item.source_name, name=item.name, why=item.refused)
    if _done(item, end):
        return DONE
    gateway, what = _what(item, end)
    if gateway is None or tools.gateway(gateway) is None:
        return _leave(run, item, what)
    here, why = tools.connected(gateway), in_the_way(item) if end == "target" else ""
    waited = (tools.items.clock.utc() - item.changed_at).total_seconds()
    if run.answer == LEAVE or (given.force and not here):
        return _leave(run, item, what)
    # what somebody has to end first does not end by being waited for
    if run.answer is None and waited > (ASK_BUSY_SECONDS if here and not why else ASK_SECONDS):
        state = f"does not remove it yet ({why})" if why else "does not come to an end"
        state = state if here else "is not connected"
        return Ask(
            f"Gateway {gateway} {state}: {what} would be left behind, and removed when it is back and the "
            f"item still says so. Wait for it, or leave that behind?",
            (WAIT, LEAVE),
        )
    text = f"waits until gateway {gateway} has removed {what}"
    return RetryAfter(LOOK_SECONDS, f"{text}: {why}" if why else text)


def in_the_way(item: Item) -> str:
    """Why its target does not delete the replica, and what to do, in its own sentences; "": nothing."""
    found = item.replica
    if found is None or found.code != IN_USE or not item.delete_replica:
        return ""
    return found.note[:NOTE_MAX]


def _done(item: Item, end: str) -> bool:
    return item.source_done if end == "source" else item.target_done


def _what(item: Item, end: str) -> tuple[str | None, str]:
    """The gateway's name (None: no gateway of this server), and what is to go there."""
    if end == "source":
        return item.source_name, f"what protects {item.name} at {item.source_name}"
    what = "the replica of" if item.delete_replica else "what keeps the replica of"
    return (item.target_name if item.target_id else None), f"{what} {item.name} at {item.target_name}"


def _leave(run: StepRun[Any], item: Item, what: str) -> Result:
    if what not in item.left_behind:
        text = f"{item.left_behind}; {what}" if item.left_behind else what

        def work(connection: Connection) -> None:
            connection.execute(sa.update(ITEMS).where(ITEMS.c.id == item.id).values(left_behind=text))

        run.write(work)
        run.log(f"left behind: {what}; it goes when that gateway is heard of again", "warning")
    return DONE


def _unprotected(tools: Tools, run: StepRun[Any], item: str) -> Result:
    def work(connection: Connection) -> Item:
        found = tools.items.get(connection, item)
        if found.state is ProtectedState.UNPROTECTED:
            return found
        connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == item))
        moved = tools.items.move(connection, item, ProtectedEvent.DISABLED)
        left = f" Left behind: {moved.left_behind}." if moved.left_behind else ""
        severity = Severity.WARNING if left else Severity.INFORMATION
        text = f"The protection of {moved.name} has ended.{left}"
        tools.items.tell(connection, moved, severity, "item.unprotected", text)
        return moved

    done = run.write(work)
    return Done(Unprotected(item=item, left_behind=done.left_behind))


def ended_without_asking(tools: Tools, run: StepRun[Any], item: Item) -> Result:
    """The same for a protection that is taken back, where nobody can be asked."""
    waited = (tools.items.clock.utc() - item.changed_at).total_seconds()
    for end in ("source", "target"):
        found = tools.item(item.id)
        if _done(found, end):
            continue
        gateway, what = _what(found, end)
        gone = gateway is None or tools.gateway(gateway) is None
        here = not gone and tools.connected(str(gateway))
        if gone or found.refused or waited > (ASK_BUSY_SECONDS if here else ASK_SECONDS):
            _leave(run, found, what)
            continue
        return RetryAfter(LOOK_SECONDS, f"waits until gateway {gateway} has removed {what}")
    _unprotected(tools, run, item.id)
    return DONE
