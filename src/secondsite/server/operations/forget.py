"""Giving an item up by force: its machine was taken over, and both of its gateways are gone for good.

Nothing is asked of the gateways, and nothing of what they have is deleted. One that returns after all is seen
with what it protects and has taken over, as an item again, and told of.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.database.tables_items import REPORTS
from secondsite.server.items.errors import GatewayStillThere
from secondsite.server.items.records import lock_key
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.tools import Tools
from secondsite.server.people.asking import ask_approval

FORGET = "item.forget"
APPROVAL = "disable"
FORGOTTEN = "item.forgotten"


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item. confirm: what the person said."""

    vault: str
    item: str
    machine: str
    name: str
    confirm: str = ""
    by: str = ""


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was given up, and where it may still be."""

    item: str
    left_behind: str


def forget(tools: Tools) -> Definition[Forget]:
    """The job."""
    return Definition(
        kind=FORGET,
        version=1,
        input=Forget,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, APPROVAL)),
            Step("gateways-away", do=lambda run: _away(tools, run)),
            Step("forget", do=lambda run: _forget(tools, run)),
        ),
        title=lambda given: f"Give {given.name} up by force",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(APPROVAL,),
        on_failure=OnFailure.KEEP,
    )


def _away(tools: Tools, run: StepRun[Forget]) -> Result:
    """As long as one of them can be asked there is another way."""
    item = tools.item(run.input.item)
    for name in (item.source_name, item.target_name):
        if tools.connected(name):
            raise GatewayStillThere(name=item.name, gateway=name)
    return DONE


def _forget(tools: Tools, run: StepRun[Forget]) -> Result:
    def work(connection: Connection) -> str:
        found = tools.items.get(connection, run.input.item)
        if found.state is ProtectedState.UNPROTECTED:
            return found.left_behind
        left = f"all that {found.source_name} and {found.target_name} have of {found.name}"
        # done at both ends: neither is ever asked to end or to delete anything
        values = {"enabled": 0, "source_done": 1, "target_done": 1, "left_behind": left, "paused": 0}
        connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == found.id))
        moved = tools.items.move(connection, found.id, ProtectedEvent.FORGOTTEN, values)
        text = (
            f"{moved.name} was given up by force while it was {found.state.value}: {left} stays as it is. A "
            f"gateway that returns is shown with it, and its failover can be ended then."
        )
        tools.items.tell(connection, moved, Severity.CRITICAL, FORGOTTEN, text)
        return left

    return Done(Forgotten(item=run.input.item, left_behind=run.write(work)))
