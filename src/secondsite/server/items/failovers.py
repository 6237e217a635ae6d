"""Failovers and held machines of items: kept as gateways tell them, and followed by the items' own states.

Whoever tells first counts, a report or the answer to a job: both lead the item to the same place. A failover
that nobody asked this server for is followed as well, and told as an event.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.failover import FailoverKind, FailoverState, HeldState, KeptState
from secondsite.model.itemfailovers import BACK, STANDING, home, state_of, way
from secondsite.model.items import TABLE, ProtectedEvent, ProtectedState
from secondsite.server.database.tables_failovers import FAILOVERS, HELD
from secondsite.server.database.tables_identity import gateways
from secondsite.server.items.records import Item
from secondsite.transfer.reports import FailoverReport, HeldReport

FOLLOWED, MIGRATED = "item.failover-found", "item.migrated"
# What these names mean is the gateways'; a newer one may use others, which say nothing here.
_STATES = {state.value: state for state in FailoverState}


def follow(item: Item, told: FailoverReport, *, epoch: int = 0) -> Sequence[ProtectedEvent]:
    """The events that lead an item to where its gateway says the failover is; none: it is there.

    epoch: the newest claim in the gateway's store, as it says now.
    """
    state, known = _STATES.get(told.state), item.failover
    if state is None or (known is not None and is_older(told, known)):
        return ()
    if item.failover_id != told.id:
        # an older one, which came to its end before what this server knows; or one that is over by now
        if state in BACK or (item.live_job and item.state in STANDING) or _superseded(item, told, epoch):
            return ()
    elif state is FailoverState.COMMITTED and item.state not in STANDING:
        # followed to its end: what came after it is another story, but that it is final
        final = item.state is ProtectedState.COMMITTED and is_final(item, told) and not item.live_job
        return (ProtectedEvent.MIGRATED,) if final else ()
    if state in BACK:
        back = home(item.state, finalized=item.finalized_at is not None, paused=item.paused)
        return back or ()
    to = state_of(FailoverKind(told.kind), state, failed=bool(told.code))
    if to is ProtectedState.COMMITTED and is_final(item, told) and not item.live_job:
        to = ProtectedState.MIGRATED
    return () if to is None else way(item.state, to) or ()


def is_final(item: Item, told: FailoverReport) -> bool:
    """Whether somebody said that the machine stays there for good, as either of its sites tells.

    The site it left tells it also after the replica was retired, of which the other one says no more.
    """
    held = item.held
    by_source = held is not None and held.final and told.epoch is not None and held.epoch >= told.epoch
    return told.kept == KeptState.MIGRATED.value or by_source


def is_older(told: FailoverReport, known: FailoverReport) -> bool:
    """Whether what is told was on its way while a job was answered."""
    return told.id == known.id and told.serial < known.serial


def _superseded(item: Item, told: FailoverReport, epoch: int) -> bool:
    """A claim counts as long as the store knows none above it."""
    by_source = item.reported.epoch if item.reported is not None else 0
    known = max(epoch, by_source, item.replica_epoch)
    return told.epoch is not None and told.epoch < known


def walk(state: ProtectedState, events: Sequence[ProtectedEvent]) -> ProtectedState:
    """Where the events lead."""
    for event in events:
        state = TABLE[state][event]
    return state


def found_text(item: Item, told: FailoverReport, gateway: str) -> tuple[Severity, str, str]:
    """The event of a failover that this server was not asked for."""
    by = f" by {told.requested_by}" if told.requested_by else ""
    text = (
        f"{item.name} was failed over at gateway {gateway} itself{by}: {told.kind.lower()}, to point "
        f"{told.point}. The item follows it."
    )
    return Severity.WARNING, FOLLOWED, text


def migrated_text(item: Item) -> tuple[Severity, str, str]:
    """The event of a final move, whoever was asked for it."""
    text = f"{item.name} stays at {item.target_name} for good: nothing fails back from there."
    return Severity.INFORMATION, MIGRATED, text


def health_of(item: Item, state: ProtectedState, told: FailoverReport) -> tuple[str, str, str]:
    """Health, its code and its note while a failover stands, or is committed."""
    where = f"{item.name} runs at {item.target_name} from point {told.point}"
    if told.code:
        return "Critical", "item.failover-stopped", told.note or f"The failover of {item.name} stopped."
    if state is ProtectedState.MIGRATED:
        return "Normal", "", ""
    if state is ProtectedState.COMMITTED:
        text = f"{item.name} belongs to {item.target_name} and is not protected there yet."
        return "Warning", "item.unprotected-there", text
    if told.booted_at is None:
        return "Warning", "item.failing-over", f"{item.name} is taken over by {item.target_name}."
    open_end = f"{where}; it is neither committed nor rolled back, nor protected. {told.note}".rstrip()
    return "Warning", "item.failed-over", open_end


def keep(connection: Connection, item: Item, told: FailoverReport) -> None:
    """Keep what a gateway answered a job; its next report takes its place."""
    assert item.target_id is not None, "only a gateway of this server answers"
    row = {"gateway": item.target_id, "machine": item.machine, "told": told.model_dump_json(by_alias=True)}
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(FAILOVERS).values(**row, sent_at="")
    changed = {"told": statement.excluded.told}
    keys = ["gateway", "machine"]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))


def keep_held(connection: Connection, gateway: str, told: HeldReport) -> None:
    """Likewise of a held machine."""
    mine = (HELD.c.gateway == gateway, HELD.c.machine == told.machine)
    connection.execute(sa.update(HELD).where(*mine).values(told=told.model_dump_json(by_alias=True)))


def held_at(connection: Connection, vault: str, gateway: str, machine: str) -> HeldReport | None:
    """What the gateway with that name told of the machine there; None: nothing, or it is of another vault."""
    query = (
        sa.select(HELD.c.told)
        .join_from(HELD, gateways, gateways.c.id == HELD.c.gateway)
        .where(gateways.c.vault_id == vault, gateways.c.name == gateway, HELD.c.machine == machine)
    )
    told = connection.execute(query).scalar_one_or_none()
    return None if told is None else HeldReport.model_validate_json(told)


def told_failover(connection: Connection, gateway: str | None, machine: str) -> FailoverReport | None:
    """The newest that a gateway, by its id, told of."""
    mine = (FAILOVERS.c.gateway == gateway, FAILOVERS.c.machine == machine)
    told = connection.execute(sa.select(FAILOVERS.c.told).where(*mine)).scalar_one_or_none()
    return None if told is None else FailoverReport.model_validate_json(told)


def known_failover(connection: Connection, target: str | None, machine: str) -> str:
    """The newest there, of an earlier circle: it came to its end, and leads the item nowhere any more."""
    told = told_failover(connection, target, machine)
    return "" if told is None else told.id


def has_claim(connection: Connection, target: str | None, machine: str) -> bool:
    """Whether a failover's claim in its store says whose the machine is, also where no point is left."""
    told = told_failover(connection, target, machine)
    over = {state.value for state in BACK}
    return told is not None and told.state not in over and told.kept != KeptState.RETIRED.value


def held_machines(connection: Connection, vault: str, *, everything: bool) -> list[tuple[str, HeldReport]]:
    """Gateway name and held machine, by machine name. everything: also those that were decided."""
    query = (
        sa.select(gateways.c.name, HELD.c.told)
        .join_from(HELD, gateways, gateways.c.id == HELD.c.gateway)
        .where(gateways.c.vault_id == vault)
    )
    found = [(name, HeldReport.model_validate_json(told)) for name, told in connection.execute(query)]
    shown = [pair for pair in found if everything or pair[1].state == HeldState.HELD.value]
    return sorted(shown, key=lambda pair: (pair[1].name, pair[0], pair[1].machine))
