"""What a policy keeps and what that costs, where a replica of a machine was measured by its gateway.

The gateway's own report says what arrives in a day and what is left of it when points become one; nothing is
measured here. Without a machine only the points are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.model.policies import ReplicationPolicy
from secondsite.model.retention import DAY, RetentionPolicy
from secondsite.model.retention_cost import Churn, WindowCost, cost_of
from secondsite.transfer.calls import Answer

# A report reads a journal's own figures: some hundred milliseconds at the gateway, more on a far store.
ANSWER_SECONDS_MAX = 30.0


class EstimateUnknown(SecondsiteError):
    """A gateway said what this server does not understand."""

    code = "policy.estimate-unknown"
    outcome = Outcome.FAILED
    happened = "Gateway {gateway} answered in a way this server does not understand: {why}."
    cause = "The two are of different versions."
    action = "Compare `secondsite --version` at both ends and update the older one."


class _Share(msgspec.Struct, rename="camel"):
    every_seconds: float
    share: float
    measured_seconds: float | None = None


class _Cost(msgspec.Struct, rename="camel"):
    points: int
    journal_bytes: int
    shares: tuple[_Share, ...] = ()


class Report(msgspec.Struct, rename="camel"):
    """What of a gateway's retention report is used."""

    machine: str
    name: str
    points: int
    journal_bytes: int = 0
    measured_seconds: float = 0.0
    stored_bytes_per_day: float | None = None
    point_seconds: float | None = None
    cost: _Cost | None = None


@dataclass(frozen=True)
class Window:
    """What one window lists at most. every_seconds 0: every point. point_bytes: None: not measured."""

    every_seconds: float
    reach_seconds: float
    points: int
    point_bytes: int | None


@dataclass(frozen=True)
class Estimate:
    """What a retention keeps once every window is full, at most. measured: None: no machine was asked for."""

    retention: RetentionPolicy
    points: int
    windows: tuple[Window, ...]
    measured: Report | None = None


class Asks(Protocol):
    """What reads from gateways (`calls.service.Calls`)."""

    def ask_now(self, gateway: str, path: str, *, seconds_max: float) -> Answer:
        """One reading request. Raises GatewaySilent."""


def measure(asks: Asks, gateway: tuple[str, str], machine: str, retention: str) -> Report:
    """Ask the gateway (id, name) that keeps a machine's replica what a retention costs there.

    Raises what the gateway says (RemoteError), GatewaySilent or EstimateUnknown.
    """
    gateway_id, name = gateway
    path = f"/v1/machines/{quote(machine, safe='')}/retention?{urlencode({'policy': retention})}"
    answer = asks.ask_now(gateway_id, path, seconds_max=ANSWER_SECONDS_MAX)
    try:
        if not answer.ok:
            raise RemoteError(msgspec.json.decode(answer.body, type=dict[str, Any]))
        return msgspec.json.decode(answer.body, type=Report)
    except JSON_ERRORS as error:
        raise EstimateUnknown(gateway=name, why=str(error)) from None


def estimate(
    policy: ReplicationPolicy, retention: str | None = None, measured: Report | None = None
) -> Estimate:
    """What a policy keeps, or another retention at its copy frequency. Raises InvalidInput."""
    kept = RetentionPolicy.parse(policy.retention if retention is None else retention)
    cost = cost_of(kept, Churn(0.0, 0.0, policy.copy_frequency_seconds), disk_bytes=0)
    windows = tuple(
        Window(one.every_seconds, one.reach_seconds, one.points, _point_bytes(measured, one, policy))
        for one in cost.windows
    )
    return Estimate(kept, cost.points, windows, measured)


def _point_bytes(measured: Report | None, window: WindowCost, policy: ReplicationPolicy) -> int | None:
    """What one point of a window stores: what arrives in its time, and of that what merging leaves."""
    if measured is None or measured.cost is None or measured.stored_bytes_per_day is None:
        return None
    shares = {share.every_seconds: share.share for share in measured.cost.shares}
    seconds = window.every_seconds or policy.copy_frequency_seconds
    return int(shares.get(window.every_seconds, 1.0) * seconds * measured.stored_bytes_per_day / DAY)
