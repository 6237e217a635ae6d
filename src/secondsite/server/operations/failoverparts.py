"""What jobs that fail over share: how a gateway tells of a failover, and the item that follows it.

Every step asks by the operation's id, which the server chose before it asked: asked again after a lost
answer, or by the worker that took the job over, the gateway says how far that same failover is.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from secondsite.base.errors import RemoteError
from secondsite.base.units import format_bytes
from secondsite.model import confirmations
from secondsite.model.differences import differences, not_as_asked
from secondsite.model.failover import AUTO_COMMIT_BYTES_PER_SECOND, FailoverState
from secondsite.model.itemfailovers import home
from secondsite.model.items import ProtectedState
from secondsite.model.outlook import Outlook
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.errors import FailoverNone, TargetElsewhere
from secondsite.server.items.failovers import follow, keep
from secondsite.server.items.records import Item
from secondsite.server.jobs.definitions import DONE, Result, RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.transfer.reports import FailoverReport

# A boot and a removal take seconds, and are told of by nobody but the gateway that is asked.
POLL_SECONDS = 1.0
ASK_SECONDS = 60.0
UNKNOWN = "failover.unknown"
_UNCLAIMED = frozenset({ProtectedState.PLANNED, ProtectedState.UNPLANNED})


class GatewayStep(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A step as a gateway tells it."""

    name: str
    started_at: str
    ended_at: str | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at before a failover, or of the machine that was taken over."""

    name: str
    passed: bool
    required: bool = True
    cause: str = ""
    action: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A failover as its gateway tells it."""

    id: str
    machine: str
    machine_name: str
    name: str
    kind: str
    state: FailoverState
    point: int
    point_at: str
    consistency: str
    network: str
    requested_at: str
    requested_by: str = ""
    writer: str = ""
    expected_loss_seconds: float
    epoch: int | None = None
    claimed_at: str | None = None
    loss_seconds: float | None = None
    booted_at: str | None = None
    console_at: str | None = None
    userspace_at: str | None = None
    verified: tuple[Check, ...] = ()  # whether the machine is what was asked for
    ended_at: str | None = None
    steps: tuple[GatewayStep, ...] = ()
    flattened_bytes: int = 0
    total_bytes: int = 0
    note: str = ""
    kept: str | None = None
    error: dict[str, str] | None = None
    serial: int = 0

    def told(self) -> FailoverReport:
        """As a report would tell it."""
        error = self.error or {}
        values: dict[str, Any] = {
            name: getattr(self, name) for name in FailoverReport.model_fields if hasattr(self, name)
        }
        sentences = " ".join(error[key] for key in ("happened", "cause", "action") if key in error)
        values |= {
            "state": self.state.value,
            "kept": self.kept or "",
            "code": error.get("code", "failover.failed" if error else "")[:100],
            "note": (sentences or self.note or self._differs())[:4000],
        }
        return FailoverReport.model_validate(values)

    def _differs(self) -> str:
        """As its gateway's reports say it."""
        return not_as_asked(differences(self.verified)) if self.state is FailoverState.COMPLETED else ""


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """How a failover is to end: by itself after so long (one of the two at most), and with its host."""

    auto_commit_after: float | None = None  # seconds since its machine was last started
    auto_roll_back_after: float | None = None
    confirm_timer: str = ""  # what a person said to that: as to a commit, or to a roll-back
    autostart: bool = False  # once committed
    old_machine: str | None = None  # of its former copy there: remove, or remove-with-disks
    bytes_per_second: int | None = None  # of the copying at its commit, also at one by itself

    def body(self) -> dict[str, object]:
        """As the gateway takes it."""
        return {
            "autoCommitAfter": self.auto_commit_after,
            "autoRollBackAfter": self.auto_roll_back_after,
            "confirmTimer": self.confirm_timer,
            "autostart": self.autostart,
            "oldMachine": self.old_machine,
            # a gateway of an earlier version does not know of it, and refuses what it does not know
            **({} if self.bytes_per_second is None else {"bytesPerSecond": self.bytes_per_second}),
        }

    def require_said(self, name: str) -> None:
        """Raise ConfirmationMissing where what happens by itself was not said."""
        why = "It happens by itself then, with nobody asked again."
        if self.auto_commit_after is not None:
            rate = self.bytes_per_second or AUTO_COMMIT_BYTES_PER_SECOND
            copied = f"{why} Its disks are copied at {rate / 1e6:,.0f} MB/s at most."
            confirmations.require(name, self.confirm_timer, confirmations.kept(name), copied)
        if self.auto_roll_back_after is not None:
            confirmations.require(name, self.confirm_timer, confirmations.lost(name), why)


class Preview(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a failover would do and cost now, as the target sees it in its store."""

    machine_name: str
    point: int
    point_at: str
    consistency: str
    expected_loss_seconds: float
    writer: str = ""
    confirm: str
    checks: tuple[Check, ...] = ()
    outlook: Outlook | None = None  # what the machine would be there; None: that cannot be known


class TakenOver(msgspec.Struct, frozen=True, kw_only=True):
    """What a failover came to."""

    operation: str
    kind: str
    name: str
    point: int
    point_at: str
    consistency: str
    network: str
    epoch: int | None
    expected_loss_seconds: float
    loss_seconds: float | None
    booted_seconds: float | None
    console_seen: bool = False
    userspace_seen: bool = False


def machine_path(item: Item, what: str) -> str:
    """Of the target's control API."""
    return f"/v1/machines/{quote(item.machine, safe='')}/{what}"


def target_of(tools: Tools, item: Item) -> Gateway:
    """The gateway that takes over. Raises TargetElsewhere, GatewayUnknown."""
    if item.target_id is None:
        raise TargetElsewhere(name=item.name, gateway=item.target_name)
    return tools.gateways.get(item.target_name)


def look(tools: Tools, run: StepRun[Any], target: Gateway, operation: str) -> Status | RetryAfter:
    """How far it is. Raises RemoteError, of code UNKNOWN where there is no such failover."""
    asked = Asked(
        target.id, target.name, "GET", f"/v1/failovers/{operation}", seconds_max=ASK_SECONDS, key="look"
    )
    return ask_fresh(tools, run, asked, Status)


def show(tools: Tools, run: StepRun[Any], item: str, status: Status) -> Item:
    """The item follows at once: the gateway's next report says the same, a moment later."""
    told = status.told()

    def work(connection: Connection) -> Item:
        found = tools.items.get(connection, item)
        keep(connection, found, told)
        # the job asked for it, so that it is no news
        events = follow(replace(found, failover_id=told.id), told)
        if events:
            tools.items.lead(connection, item, events, failover=told.id)
        return tools.items.get(connection, item)

    return run.write(work)


def give_up(tools: Tools, run: StepRun[Any], item: str, operation: str) -> None:
    """Nothing was claimed by this operation, and nothing will be: the item is at its source as before."""

    def work(connection: Connection) -> None:
        found = tools.items.get(connection, item)
        if found.failover_id != operation or found.state not in _UNCLAIMED:
            return  # it never was begun here, follows another one, or belongs to its target
        events = home(found.state, finalized=found.finalized_at is not None, paused=found.paused)
        if events:
            tools.items.lead(connection, item, events, failover=found.failover_id)

    run.write(work)


def why(status: Status) -> dict[str, Any]:
    """What it stopped with."""
    unknown = {
        "code": "failover.failed",
        "happened": f"The failover of {status.machine_name} is {status.state.value}.",
        "cause": "Its gateway does not say why.",
        "action": "Read the gateway's log; then retry the job.",
    }
    return {**(status.error or unknown)}


def stopped(status: Status) -> RemoteError:
    """The same to be raised; of what stopped nothing is to come, however often it is looked at."""
    return RemoteError({**why(status), "outcome": "failed"})


def doing(run: StepRun[Any], status: Status, steps: int) -> RetryAfter:
    """It goes on: say how far it is. steps: as many as the gateway makes of it."""
    if status.total_bytes:
        part, whole = format_bytes(status.flattened_bytes), format_bytes(status.total_bytes)
        text = status.note or f"{part} of {whole} are on plain disks"
        run.progress(status.flattened_bytes / status.total_bytes, text)
        return RetryAfter(POLL_SECONDS, text[:200])
    ended = [step for step in status.steps if step.ended_at is not None]
    text = f"{status.name}: {status.steps[-1].name}" if status.steps else f"{status.name} is taken over"
    run.progress(min(1.0, len(ended) / steps), text)
    return RetryAfter(POLL_SECONDS, text[:200])


def connected(tools: Tools, item: str) -> Result:
    """Whether the target can be asked; the source need not be there."""
    found = tools.item(item)
    return tools.hear_of(target_of(tools, found).name) or DONE


def standing(tools: Tools, run: StepRun[Any], item: Item) -> Status | RetryAfter:
    """The failover of the item that its target has now, whoever began it. Raises FailoverNone."""
    target = target_of(tools, item)
    asked = Asked(target.id, target.name, "GET", "/v1/failovers", seconds_max=ASK_SECONDS, key="standing")
    found = ask_fresh(tools, run, asked, list[Status])
    if isinstance(found, RetryAfter):
        return found
    mine = [one for one in found if one.machine == item.machine and one.state is not FailoverState.FAILED]
    if not mine:
        raise FailoverNone(name=item.name, gateway=target.name)
    return mine[-1]
