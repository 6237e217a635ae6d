"""Items in the middle of something that no job leads on: taken to where their gateways say that they are.

A server that was restored from a backup, or lost a job for good, must not show for ever what was under way
then. What gateways report counts, a while after the item's last change, as long as no job has the item:

    a failover that its target does not know, or knows to be over      given back to its source
    protected by the gateway that took the machine over                turned round (`takeover`)
    turned round, and its source has a point at the other site         protected in the other direction
    turned round, and its source works towards nothing of it           committed, as before
    not turned round, and nobody protects it                           committed, as before
    taken over by what is its source here, by a later claim            turned round; that failover is followed
    ending, and both gateways have nothing of it                       ended
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.failover import FailoverState
from secondsite.model.itemfailovers import BACK, STANDING, home
from secondsite.model.items import ProtectedEvent, ProtectedState
from secondsite.server.database.tables_items import REPORTS
from secondsite.server.database.values import from_moment
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.items.failovers import follow
from secondsite.server.items.records import Item
from secondsite.server.items.service import Items
from secondsite.server.items.turning import around, is_turned, kept_columns
from secondsite.transfer.reports import FailoverReport, ProtectionReport, Report

RECONCILED = "item.reconciled"
# A report on its way says what was; a job that has just ended may have asked for what comes next.
SETTLED_SECONDS = 60.0
_S, _E = ProtectedState, ProtectedEvent
_UNCLAIMED = frozenset({_S.PLANNED, _S.UNPLANNED})
_OVER = frozenset(state.value for state in BACK)
_REPROTECTING = frozenset({_S.REPROTECTING, _S.REPROTECT_FAILED})
_STOPPED = (
    "If {item.name} was stopped at {item.source_name} for its move, `secondsite failover cancel-stop "
    "{item.name}` there lets it run again."
)


@dataclass(frozen=True)
class Settling:
    """Where an item is led. values: columns; tells: its gateways are to know of them."""

    item: Item
    events: Sequence[ProtectedEvent]
    text: str
    values: Mapping[str, object] = field(default_factory=dict)
    tells: bool = False
    code: str = RECONCILED


@dataclass(frozen=True)
class Told:
    """What one gateway says of an item's machine."""

    who: GatewayIdentity
    report: Report
    protection: ProtectionReport | None
    failover: FailoverReport | None
    epoch: int = 0  # the newest claim in its store


def reconciled(item: Item, told: Told, at: str) -> Settling | None:
    """Where an item is led by what a gateway says, heard at `at`; None: it is where it belongs, or waits."""
    if item.live_job or from_moment(at) - item.state_since < timedelta(seconds=SETTLED_SECONDS):
        return None
    if item.state in (_S.DISABLING, _S.DISABLING_FAILED):
        return _ended(item)
    if item.state in STANDING and told.who.id == item.target_id:
        return _given_back(item, told)
    if item.state is _S.COMMITTED or item.state in _REPROTECTING:
        return _around(item, told)
    return None


def settle(items: Items, connection: Connection, found: Settling) -> None:
    """Lead it there, unless it was moved or a job has it meanwhile."""
    item = items.get(connection, found.item.id)
    same = (item.state, item.revision) == (found.item.state, found.item.revision)
    if item.live_job or not same:
        return
    first, *others = found.events
    if (
        found.values or _E.DISABLED in found.events
    ):  # what was measured is of the other direction, or of nothing
        connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == item.id))
    if found.tells:
        item = items.change(connection, item.id, first, found.values, force=True)
    else:
        item = items.move(connection, item.id, first, found.values)
    for event in others:
        item = items.move(connection, item.id, event)
    items.tell(connection, item, Severity.WARNING, found.code, found.text)


def _ended(item: Item) -> Settling | None:
    if not (item.source_done and item.target_done):
        return None
    left = f" Left behind: {item.left_behind}." if item.left_behind else ""
    text = f"The protection of {item.name} has ended.{left}"
    return Settling(item, (_E.DISABLED,), text, code="item.unprotected")


def _given_back(item: Item, told: Told) -> Settling | None:
    """Its target knows nothing of the failover, or of a later one that is over."""
    one = told.failover
    if one is not None and (one.id == item.failover_id or follow(item, one, epoch=told.epoch)):
        return None
    if item.state not in _UNCLAIMED and (one is None or one.state not in _OVER):
        return None
    events = home(item.state, finalized=item.finalized_at is not None, paused=item.paused)
    if not events:
        return None
    why = "knows no such failover" if one is None else "knows only another one, which is over"
    text = f"{item.name} was being failed over, as this server remembers; gateway {told.who.name} {why}. "
    text += f"It is at {item.source_name}, as before."
    if item.state is _S.PLANNED:
        text += " " + _STOPPED.format(item=item)
    return Settling(item, events, text)


def _around(item: Item, told: Told) -> Settling | None:
    turned = item.state in _REPROTECTING and is_turned(item)
    if turned and told.who.id == item.source_id:
        return _protected(item, told.protection) or _not_protected(item, told)
    if turned:
        return None
    if told.who.id == item.source_id:
        return _came_back(item, told.failover)
    if item.state in _REPROTECTING and told.who.id == item.target_id and told.protection is None:
        text = f"{item.name} was being protected in the other direction, as this server remembers; "
        text += f"gateway {told.who.name} protects it to nobody. It can be begun again."
        return Settling(item, (_E.REPROTECT_TAKEN_BACK,), text)
    return None


def _again(item: Item) -> tuple[ProtectedEvent, ...]:
    return (_E.REPROTECTING,) if item.state in (_S.REPROTECT_FAILED, _S.COMMITTED) else ()


def _protected(item: Item, one: ProtectionReport | None) -> Settling | None:
    if one is None or one.last_point is None or one.revision < item.revision or one.state != "Protected":
        return None
    text = (
        f"{item.name} is protected from {item.source_name} to {item.target_name}. What is left of the "
        f"replica it came from goes with `secondsite failover retire {item.name}` at {item.source_name}."
    )
    return Settling(item, (*_again(item), _E.REPROTECTED), text)


def _not_protected(item: Item, told: Told) -> Settling | None:
    """It was turned round, and taken back by a server that came after the one of the backup."""
    heard_newest = told.report.generation >= item.source_generation and item.managed
    if told.protection is not None or not heard_newest:
        return None
    text = (
        f"{item.name} was turned round, as this server remembers; gateway {told.who.name} protects nothing "
    )
    text += "of it. It can be begun again."
    values = {**kept_columns(item), "enabled": 1, "changed_by": "", "before_change": "{}"}
    return Settling(item, (_E.REPROTECT_TAKEN_BACK,), text, values, tells=True)


def _came_back(item: Item, one: FailoverReport | None) -> Settling | None:
    """What is its source here took it over later than its target did: it had been protected back."""
    known = item.failover
    if one is None or one.epoch is None or known is None or known.epoch is None:
        return None
    if one.epoch <= known.epoch or one.state in (*_OVER, FailoverState.INITIATED.value):
        return None
    text = (
        f"{item.name} was protected to {item.source_name} and taken over there, which this server does not "
    )
    text += "remember: the item follows it."
    values = around(item)
    return Settling(item, (*_again(item), _E.REPROTECTED), text, values)
