"""How items and policies meet: each learns of the other through what is here."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.engine import Connection

from secondsite.model.policies import ReplicationPolicy
from secondsite.server.database.engine import Database
from secondsite.server.items.service import Items
from secondsite.server.policies import service as policies
from secondsite.server.policies.presets import failback_of


class VaultPolicies:
    """`seams.PolicySource` of a server that keeps policies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, connection: Connection, policy: str) -> tuple[ReplicationPolicy, int]:
        """Raises PolicyUnknown."""
        return policies.get(connection, policy)

    def named(self, vault: str, text: str) -> str:
        """The id of a vault's policy by id or name; vault: its id. Raises PolicyUnknown."""
        with self._database.read() as connection:
            return policies.in_vault(connection, vault, text)

    def failback(
        self, connection: Connection, policy: str | None, settings: ReplicationPolicy
    ) -> tuple[str | None, ReplicationPolicy, int]:
        """The failback policy made with one; of settings of its own what such a policy would say."""
        if policy is None:
            return None, failback_of(settings), 0
        back = policies.failback_policy(connection, policy) or policy  # itself, where it is one
        return back, *policies.get(connection, back)


class PolicyUses:
    """`policies.service.Items`: what policies ask of the items."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def counts(self, connection: Connection, policy_ids: list[str]) -> Mapping[str, int]:
        """How many items use each."""
        return self._items.policy_counts(connection, policy_ids)

    def refresh(self, connection: Connection, policy_id: str) -> int:
        """It says something else now."""
        return self._items.refresh(connection, policy=policy_id)
