"""All parts of protected items, put together once a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secondsite.server.calls.service import Calls
from secondsite.server.database.engine import Database
from secondsite.server.identity.service import Identity
from secondsite.server.inventory.service import Inventories
from secondsite.server.items.neighbours import PolicyUses, VaultPolicies
from secondsite.server.items.reports import Reports
from secondsite.server.items.seams import Events, MappingSource, Seams
from secondsite.server.items.service import Items
from secondsite.server.items.untold import untold
from secondsite.server.items.wanted import Wanted
from secondsite.server.jobs.definitions import Definition
from secondsite.server.operations.kinds import item_operations
from secondsite.server.operations.tools import Tools
from secondsite.server.policies.service import Policies


@dataclass(frozen=True)
class ItemParts:
    """Starting and closing the reports is the server's."""

    items: Items
    wanted: Wanted
    reports: Reports
    policies: Policies

    def operations(
        self, identity: Identity, inventories: Inventories, calls: Calls
    ) -> Sequence[Definition[Any]]:
        """The kinds of jobs on them."""
        started = self.items.clock.monotonic()
        return item_operations(Tools(self.items, identity.gateways, inventories, calls, started))


def open_items(database: Database, identity: Identity, mappings: MappingSource, events: Events) -> ItemParts:
    """All of them, and the policies they follow; gateways and vaults in use may not leave."""
    clock = database.clock
    items = Items(database, clock, Seams(VaultPolicies(database), mappings, events))
    identity.gateways.watch(items.gateway_uses)
    identity.gateways.watch_leaving(untold)
    identity.vaults.watch(items.vault_uses)
    policies = Policies(database, clock, PolicyUses(items))
    reports = Reports(items, clock)
    reports.connected = identity.gateways.connected
    return ItemParts(items, Wanted(database), reports, policies)
