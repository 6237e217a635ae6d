"""What a gateway knows better than its server: protected there by hand, or newer than a restored backup."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.items import TABLE, ProtectedEvent, ProtectedState
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_items import ITEMS, REPORTS
from secondsite.server.database.values import to_json
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.items.failovers import known_failover
from secondsite.server.items.generations import raise_generations
from secondsite.server.items.news import is_news
from secondsite.server.items.reconcile import RECONCILED
from secondsite.server.items.records import Item
from secondsite.server.items.search import name_key
from secondsite.server.items.service import FRESH, GatewayRef, Items, NewItem
from secondsite.server.items.turning import TURNED, around, columns_before
from secondsite.transfer.desired import WantedProtection
from secondsite.transfer.reports import ProtectionReport

# Of one server's memory; what is beyond shows in the log of the gateways alone.
CONFLICTS_MAX = 10_000


def take_over(
    items: Items,
    connection: Connection,
    who: GatewayIdentity,
    said: ProtectionReport,
    conflicts: set[tuple[str, str]],
) -> None:
    """Take what a gateway says of one machine into the items; what another gateway protects is left alone.

    What it works towards is known only from its next report (`ReportAnswer.tell`): until then the item is
    seen, and nothing is wanted of the gateway that could change what it does. conflicts: those told of.
    """
    found = items.of_machine(connection, who.vault_id, said.machine)
    if found is None:
        _adopt(items, connection, who, said)
        return
    ended = found.state is ProtectedState.UNPROTECTED and found.source_done
    if _is_reverse(found, who, said):
        if said.wanted is not None and not found.live_job:
            _reversed(items, connection, who, found, said)
        return
    if found.source_id != who.id and not (ended and found.target_done):
        _tell_conflict(items, connection, found, who, conflicts)
        return
    wanted = said.wanted
    if wanted is None or found.live_job:  # a job changes it now: the next report tells again
        return
    if ended and wanted.enabled:
        _again(items, connection, who, found, wanted)
    elif is_news(found, said):
        _newer(items, connection, who, found, wanted)


_E = ProtectedEvent
_ENDING = (ProtectedState.DISABLING, ProtectedState.DISABLING_FAILED)
_TAKEN = (ProtectedState.COMMITTED, ProtectedState.REPROTECTING, ProtectedState.REPROTECT_FAILED)


def _is_reverse(found: Item, who: GatewayIdentity, said: ProtectionReport) -> bool:
    """Whether the gateway that took the machine over protects it: by a job that was lost, or a command."""
    return found.state in _TAKEN and found.target_id == who.id and said.state != "DisablingProtection"


def _reversed(
    items: Items, connection: Connection, who: GatewayIdentity, found: Item, said: ProtectionReport
) -> None:
    """The item is turned round as the gateway says; with its first point there it is protected."""
    assert said.wanted is not None, "looked at before"
    target = _gateway(connection, who.vault_id, said.peer)
    values = around(found) | _columns(connection, who, said.wanted)
    same = target.id == found.source_id
    values |= {
        "target_id": target.id,
        "target_name": target.name,
        "target_revision": found.source_revision if same else 0,
        "source_revision": said.revision,
        "failover_id": known_failover(connection, target.id, found.machine),
        "revision": max(said.wanted.revision + int(said.wanted.item != found.id), found.revision),
        "managed": 1,
        "finalized_at": items.now(),
        "changed_at": items.now(),
        "refused": "",
    }
    kept = [name for name in values if name in TURNED]
    values["before_change"] = to_json({"columns": columns_before(found, kept)})
    connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == found.id))
    moved = items.move(connection, found.id, ProtectedEvent.REPROTECTING, values)
    text = (
        f"{moved.name} is protected from {moved.source_name} to {moved.target_name}, as {who.name} says: the "
        f"item is turned round."
    )
    items.tell(connection, moved, Severity.WARNING, RECONCILED, text)


def lacking_target(connection: Connection, who: GatewayIdentity) -> list[str]:
    """The ids of items whose peer is this gateway by its name, and that were known before it was."""
    waiting = (ITEMS.c.vault_id == who.vault_id, ITEMS.c.target_id.is_(None), ITEMS.c.target_name == who.name)
    return list(connection.execute(sa.select(ITEMS.c.id).where(*waiting).order_by(ITEMS.c.id)).scalars())


def take_as_target(connection: Connection, who: GatewayIdentity, found: Sequence[str]) -> None:
    """Their replicas are this gateway's from now on: it is told whose they are, and who may write them."""
    told = raise_generations(connection, [who.id])
    values = {"target_id": who.id, "target_generation": told[who.id]}
    still = (ITEMS.c.id.in_(found), ITEMS.c.target_id.is_(None))
    connection.execute(sa.update(ITEMS).where(*still).values(**values))


def _newer(
    items: Items, connection: Connection, who: GatewayIdentity, found: Item, wanted: WantedProtection
) -> None:
    """The gateway's word instead of ours."""
    # one more where it does not know the item's id: it is to take that
    revision = wanted.revision + (0 if wanted.item == found.id else 1)
    values = _columns(connection, who, wanted) | {
        "revision": max(revision, found.revision),
        "managed": 1,
        "changed_at": items.now(),
        "refused": "",
    }
    connection.execute(sa.update(ITEMS).where(ITEMS.c.id == found.id).values(**values))
    _follow(items, connection, found, wanted)
    text = f"What gateway {who.name} does for {found.name} was taken over (revision {wanted.revision})."
    items.tell(connection, found, Severity.INFORMATION, "item.adopted", text)


def _follow(items: Items, connection: Connection, found: Item, wanted: WantedProtection) -> None:
    """What somebody asked for that this server does not remember, as a state."""
    row = TABLE[found.state]
    event = None
    if wanted.enabled and found.state in _ENDING:
        event = _E.DISABLE_TAKEN_BACK
    elif not wanted.enabled and found.state not in (*_ENDING, *_TAKEN):
        event = _E.DISABLING
    elif wanted.paused and found.state is not ProtectedState.PAUSED:
        event = _E.PAUSED
    elif not wanted.paused and found.state is ProtectedState.PAUSED:
        event = _E.RESUMED
    if event is not None and event in row:
        items.move(connection, found.id, event)


def _again(
    items: Items, connection: Connection, who: GatewayIdentity, found: Item, wanted: WantedProtection
) -> None:
    """Its protection ended here once; the gateway has begun another one by itself."""
    values = _columns(connection, who, wanted) | {
        **FRESH,
        "paused": int(wanted.paused),
        "resync": wanted.resync,
        "source_id": who.id,
        "source_name": who.name,
        "name": wanted.name,
        "name_key": name_key(wanted.name),
        "managed": 1,
        "revision": max(wanted.revision, found.revision) + 1,
        "changed_at": items.now(),
        "finalized_at": items.now(),
    }
    moved = items.move(connection, found.id, ProtectedEvent.ADOPTED, values)
    text, severity = f"{moved.name} is protected again, at gateway {who.name} itself.", Severity.INFORMATION
    if found.left_behind:  # e.g. given up by force: nothing of it was deleted
        text = (
            f"Gateway {who.name} is back with {moved.name}, whose item had been ended here "
            f"({found.left_behind} was left behind): it is an item again. Look at it (`secondsite item "
            "show`) and end it in order."
        )
        severity = Severity.WARNING
    items.tell(connection, moved, severity, "item.adopted", text)


def _adopt(items: Items, connection: Connection, who: GatewayIdentity, said: ProtectionReport) -> None:
    if said.state == "DisablingProtection":
        return  # it is on its way out
    target = _gateway(connection, who.vault_id, said.peer)
    new = NewItem(who.vault_id, said.machine, said.name, GatewayRef(who.id, who.name), target)
    wanted = said.wanted
    values: dict[str, object] = {
        "policy_id": None,
        "policy_revision": 0,
        "policy": "{}",
        "disks": None,
        "left_out": "[]",
        "mapping": "{}",
        "managed": 0,
        "source_revision": said.revision,
    }
    if wanted is not None:
        values |= _columns(connection, who, wanted)
        values |= {"managed": 1, "revision": wanted.revision + 1}
    items.adopt(connection, new, values)


def _columns(connection: Connection, who: GatewayIdentity, wanted: WantedProtection) -> dict[str, object]:
    """Also for the target's gateway something new is wanted: who may write there."""
    target = _gateway(connection, who.vault_id, wanted.peer)
    told = raise_generations(connection, [one for one in (who.id, target.id) if one is not None])
    return {
        "source_generation": told[who.id],
        "target_generation": told[target.id] if target.id is not None else 0,
        "target_id": target.id,
        "target_name": target.name,
        "policy_id": None,  # the gateway knows what the policy says, not which one it was
        "policy_revision": 0,
        "policy": wanted.policy.model_dump_json(by_alias=True),
        "disks": None if wanted.disks is None else to_json(list(wanted.disks)),
        "left_out": to_json(list(wanted.left_out)),
        "mapping": wanted.mapping.model_dump_json(by_alias=True),
        "own_mapping": 1,
        "paused": int(wanted.paused),
        "resync": wanted.resync,
        "enabled": int(wanted.enabled),
    }


def _gateway(connection: Connection, vault: str, name: str) -> GatewayRef:
    query = sa.select(gateways.c.id).where(gateways.c.name == name, gateways.c.vault_id == vault)
    return GatewayRef(connection.execute(query).scalar_one_or_none(), name)


def _tell_conflict(
    items: Items,
    connection: Connection,
    found: Item,
    who: GatewayIdentity,
    conflicts: set[tuple[str, str]],
) -> None:
    """Two gateways say that they protect the machine; told once by each server."""
    if (found.id, who.id) in conflicts or len(conflicts) >= CONFLICTS_MAX:
        return
    text = f"Gateway {who.name} says that it protects {found.name}, which {found.source_name} protects."
    items.tell(connection, found, Severity.WARNING, "item.two-sources", text)
    conflicts.add((found.id, who.id))
