"""What items need of other areas of the server: policies, mappings, events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.policies import ReplicationPolicy
from secondsite.transfer.desired import WantedMapping


class PolicySource(Protocol):
    """`policies.service`."""

    def get(self, connection: Connection, policy: str) -> tuple[ReplicationPolicy, int]:
        """A policy by its id, and its revision."""

    def named(self, vault: str, text: str) -> str:
        """The id of a vault's policy, by id or name."""

    def failback(
        self, connection: Connection, policy: str | None, settings: ReplicationPolicy
    ) -> tuple[str | None, ReplicationPolicy, int]:
        """What a machine replicates by on its way back: id, settings, revision.

        policy: the one it replicated by, None: settings of its own.
        """


class MappingSource(Protocol):
    """`mappings`."""

    def for_pair(
        self, connection: Connection, source_gateway: str, target_gateway: str, machine: str
    ) -> WantedMapping:
        """Where a machine's things go at the target, as its sites are mapped; gateways by their ids."""


class Events(Protocol):
    """`events.service`: what happened to an item, kept and told."""

    def emit(
        self,
        connection: Connection,
        vault: str,
        severity: Severity,
        code: str,
        text: str,
        *,
        item: str,
        gateway: str,
        machine: str,
    ) -> object:
        """In the transaction of what happened, last. gateway: its name."""


@dataclass
class Seams:
    """All three; replaced as a server is put together."""

    policies: PolicySource
    mappings: MappingSource
    events: Events
