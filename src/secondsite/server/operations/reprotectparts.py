"""What the steps of a reprotection share: their input, what they leave, and how gateways tell of theirs."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from secondsite.base.errors import RemoteError
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.records import Item
from secondsite.server.items.service import GatewayRef
from secondsite.server.items.turning import Turn
from secondsite.server.jobs.definitions import RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.failoverparts import ASK_SECONDS
from secondsite.server.operations.protect import machine_of
from secondsite.server.operations.returnchecks import old_machine
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.transfer.desired import WantedMapping

REVERSE_UNKNOWN = "reverse.unknown"


class Reprotect(msgspec.Struct, frozen=True, kw_only=True):
    """Which item, and what is wanted otherwise than it is preset.

    target: a gateway's name; None: the one the machine came from. policy: an id; None: the failback policy,
    or the first one again. mapping: JSON; None: as the sites are mapped. confirm: what the person said.
    """

    vault: str
    item: str
    machine: str
    name: str
    target: str | None = None
    policy: str | None = None
    mapping: str | None = None
    confirm: str = ""
    by: str = ""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Where to, as it was chosen at first. asked_at: moment text; operation: what gateways are asked with."""

    source: str
    target: str
    asked_at: str
    operation: str


class Old(msgspec.Struct, frozen=True, kw_only=True):
    """What is at the old site, and by which failover the machine left it."""

    reversed_onto: bool
    failover: str
    confirm: str = ""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The columns as they were, for taking back."""

    columns: dict[str, str | int | None]


class Returned(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. sent_bytes: what travelled for the first point where old disks were begun with."""

    item: str
    source: str
    target: str
    reversed_onto: bool
    points: int
    sent_bytes: int | None = None


class Reversal(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A reversal as its gateway tells it (`gateway.reversemessages.ReverseStatus`)."""

    operation: str
    state: str
    done_bytes: int = 0
    total_bytes: int = 0
    point: int | None = None
    sent_bytes: int | None = None
    note: str = ""
    error: dict[str, str] | None = None


class Over(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A failover as far as it matters here."""

    id: str
    machine: str
    state: str
    kept: str | None = None
    error: dict[str, str] | None = None


Run = StepRun[Reprotect]


def way_of(run: Run) -> Way:
    """As it was chosen at first."""
    return run.output_of("direction", Way)


def asked(gateway: Gateway, method: str, path: str, key: str, body: dict[str, object] | None = None) -> Asked:
    """A request of a step, which tells its calls apart by `key`."""
    text = "" if body is None else msgspec.json.encode(body).decode()
    return Asked(gateway.id, gateway.name, method, path, text, ASK_SECONDS, key=key)


def reverse_path(item: Item) -> str:
    """Of the old site's control API."""
    return f"/v1/held/{quote(item.machine, safe='')}/reverse"


def reversal(tools: Tools, run: Run, item: Item, target: Gateway) -> Reversal | RetryAfter | None:
    """How far the old site is; None: nothing was reversed onto there."""
    try:
        return ask_fresh(tools, run, asked(target, "GET", reverse_path(item), "look"), Reversal)
    except RemoteError as error:
        if error.body.get("code") != REVERSE_UNKNOWN:
            raise
        return None


def is_turned(run: Run, item: Item) -> bool:
    """Whether the other direction has a point: there is no way back then."""
    return item.source_name == way_of(run).source and has_point(item)


def has_point(item: Item) -> bool:
    """Whether its source told of a point, since it was turned round."""
    return item.reported is not None and item.reported.last_point is not None


def turning(tools: Tools, run: Run, item: Item) -> Turn:
    """Where to and how, by what is preset and what was asked for."""
    given, way = run.input, way_of(run)
    target = tools.gateways.get(way.target)
    return Turn(
        target=GatewayRef(target.id, target.name),
        machine=machine_of(tools, way.source, item.machine),
        old=old_machine(tools, target.id, item.machine),
        policy_id=given.policy,
        mapping=None if given.mapping is None else WantedMapping.model_validate_json(given.mapping),
    )
