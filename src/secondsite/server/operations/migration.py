"""Completing a migration as a job: a machine that was taken over stays there for good.

Its old site learns of it from the store's own claim: from then on nothing is reversed onto it, and nothing
fails back.
"""

from __future__ import annotations

import secrets

import msgspec
from sqlalchemy.engine import Connection

from secondsite.model import reversals
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.items.errors import FailoverMoved
from secondsite.server.items.failovers import migrated_text
from secondsite.server.items.records import lock_key
from secondsite.server.jobs.definitions import Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.failoverparts import connected, standing, target_of
from secondsite.server.operations.reprotectlooks import COMMITTED, MIGRATED
from secondsite.server.operations.reprotectparts import Over, asked
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.server.people.asking import ask_approval

COMPLETE = "item.complete-migration"
APPROVAL = "complete-migration"


class CompleteMigration(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item."""

    vault: str
    item: str
    machine: str
    name: str
    confirm: str = ""
    by: str = ""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The failover that becomes final, and the number it is asked with."""

    failover: str
    operation: str


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to."""

    item: str
    gateway: str


Run = StepRun[CompleteMigration]


def complete_migration(tools: Tools) -> Definition[CompleteMigration]:
    """The job. There is no way back from it, so nothing of it is taken back."""
    return Definition(
        kind=COMPLETE,
        version=1,
        input=CompleteMigration,
        steps=(
            Step("approval", do=lambda run: ask_approval(run, APPROVAL)),
            Step("target-connected", do=lambda run: connected(tools, run.input.item), tries=3, weight=0.2),
            Step("find", do=lambda run: _find(tools, run), weight=0.2),
            Step("complete", do=lambda run: _complete(tools, run)),
        ),
        title=lambda given: f"Complete the migration of {given.name}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        approvals=(APPROVAL,),
        on_failure=OnFailure.KEEP,
    )


def _find(tools: Tools, run: Run) -> Result:
    item = tools.item(run.input.item)
    found = standing(tools, run, item)
    if isinstance(found, RetryAfter):
        return found
    if found.state.value != COMMITTED:
        raise FailoverMoved(
            name=item.name, state=found.state.value, gateway=item.target_name, operation="a final move"
        )
    return Done(Chosen(failover=found.id, operation=secrets.token_hex(16)))


def _complete(tools: Tools, run: Run) -> Result:
    item, chosen = tools.item(run.input.item), run.output_of("find", Chosen)
    target = target_of(tools, item)
    body: dict[str, object] = {
        "operation": chosen.operation,
        "confirm": reversals.migrated(item.name),
        "requestedBy": run.input.by,
    }
    path = f"/v1/failovers/{chosen.failover}/complete-migration"
    status = ask_fresh(tools, run, asked(target, "POST", path, "complete", body), Over)
    if isinstance(status, RetryAfter):
        return status
    if status.kept != MIGRATED:
        kept = status.kept or "not kept"
        raise FailoverMoved(
            name=item.name, state=kept, gateway=target.name, operation="completing the migration"
        )

    run.write(lambda connection: _final(tools, connection, item.id))
    return Done(Completed(item=item.id, gateway=target.name))


def _final(tools: Tools, connection: Connection, identity: str) -> None:
    found = tools.items.get(connection, identity)
    if found.state is not ProtectedState.COMMITTED:
        return  # kept by a worker that was cut before it could say so
    fresh = {"health": "Normal", "health_code": "", "health_note": ""}
    moved = tools.items.move(connection, identity, ProtectedEvent.MIGRATED, fresh)
    tools.items.tell(connection, moved, *migrated_text(moved))
