"""Changing what of a vault needs an approval: to more at once, to less only with the approval of another."""

from __future__ import annotations

import msgspec
from sqlalchemy.engine import Connection

from secondsite.server.jobs.definitions import DONE, Definition, Done, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.people.asking import WEAKEN, ask_approval, demanded, set_demanded, weaker
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import Actor

CHANGE_APPROVALS = "vault.approvals"


class ChangeApprovals(msgspec.Struct, frozen=True, kw_only=True):
    """What is to need an approval from now on: operation -> of how many people besides who asks."""

    vault: str  # its id
    vault_name: str
    wanted: dict[str, int]
    actor: str


class ApprovalsChanged(msgspec.Struct, frozen=True, kw_only=True):
    """What it was, and is."""

    before: dict[str, int]
    after: dict[str, int]


def change_approvals(audit: Audit) -> Definition[ChangeApprovals]:
    """The job. Only one at a time changes a vault's settings: what was approved is what is changed."""

    def approve(run: StepRun[ChangeApprovals]) -> Result:
        given = run.input
        before = run.write(lambda connection: demanded(connection, given.vault))
        if not weaker(before, given.wanted):
            return DONE
        after = said(given.wanted)
        subject = f"{given.vault_name}: what needs an approval, from {said(before)} to {after}"
        return ask_approval(run, WEAKEN, subject=subject, needed=max(before.values()))

    def apply(run: StepRun[ChangeApprovals]) -> Result:
        given = run.input

        def work(connection: Connection) -> ApprovalsChanged:
            before = demanded(connection, given.vault)
            set_demanded(connection, given.vault, given.wanted)
            detail = {"before": said(before), "after": said(given.wanted)}
            actor = Actor(given.actor, f"job:{run.job}")
            audit.append(
                connection, actor, "approval.write", given.vault_name, vault=given.vault, detail=detail
            )
            return ApprovalsChanged(before=before, after=given.wanted)

        return Done(run.write(work))

    return Definition(
        kind=CHANGE_APPROVALS,
        version=1,
        input=ChangeApprovals,
        steps=(Step("approval", approve), Step("apply", apply)),
        title=lambda given: f"Change what of {given.vault_name} needs an approval",
        locks=lambda given: (f"vault-approvals:{given.vault}",),
        vault=lambda given: given.vault,
    )


def said(wanted: dict[str, int]) -> str:
    """For people: ``disable=2, failover``, or ``nothing``."""
    found = sorted(wanted.items())
    return ", ".join(name if needed == 1 else f"{name}={needed}" for name, needed in found) or "nothing"
