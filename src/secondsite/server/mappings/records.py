"""Pairs, what their hosts said, and mappings as readers see them."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

import msgspec

from secondsite.server.topology.records import Cloud


class PairState(enum.StrEnum):
    """Where a pair stands."""

    PAIRING = "PairingInProgress"
    PAIRED = "Paired"
    FAILED = "PairingFailed"  # at least one host does not reach the target


class Kind(enum.StrEnum):
    """What is mapped."""

    NETWORK = "network"
    POOL = "pool"


# The source of a pool mapping that stands for every pool that is not named.
DEFAULT_POOL = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a host's way, in sentences."""

    code: str = ""
    happened: str = ""
    cause: str = ""
    action: str = ""


class HostCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway of a host said of its way to one gateway of the target."""

    host: str
    gateway: str  # id
    gateway_name: str
    target: str  # id
    target_name: str
    ok: bool
    url: str = ""
    version: str = ""
    round_trip_seconds: float | None = None
    clock_seconds: float | None = None
    free_bytes: int | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Checked:
    """A check and when it was made."""

    check: HostCheck
    at: dt.datetime


@dataclass(frozen=True)
class HostState:
    """A host of the primary cloud: it is ready when one of its gateways reaches one of the target's."""

    host: str
    ready: bool | None  # None: never asked
    problems: tuple[Problem, ...]
    checks: tuple[Checked, ...]


@dataclass(frozen=True)
class Pair:
    """A primary cloud and the cloud its machines are recovered in."""

    id: str
    vault_id: str
    primary: Cloud
    target: Cloud
    state: PairState
    created_at: dt.datetime
    created_by: str
    hosts: tuple[HostState, ...]
    networks: dict[str, str]
    pools: dict[str, str]  # without the default
    default_pool: str | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.primary.name} -> {self.target.name}"
