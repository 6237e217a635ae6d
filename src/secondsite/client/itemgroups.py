"""The same operation on several protected items over the server's API, as one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Job

# kinds of jobs that have child jobs
GROUP, FAILBACK = "item.group", "item.failback"


@dataclass(frozen=True)
class Which:
    """Items by name, or a filter: what it says is as the API takes it (`ItemFilter`)."""

    items: Sequence[str] = ()
    only: Mapping[str, object] | None = None


@dataclass(frozen=True)
class How:
    """parameters: as for one item; per_item: of single ones, by name; confirm: a sentence a machine."""

    parameters: Mapping[str, object] = field(default_factory=dict)
    per_item: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    confirm: Sequence[str] = ()
    parallel_per_provider: int = 4


def operate(server: ServerClient, vault: str, operation: str, which: Which, how: How | None = None) -> Job:
    """Begin an operation on several items; the job has a child job for each."""
    how = how or How()
    body: dict[str, object] = {
        "operation": operation,
        "parameters": dict(how.parameters),
        "perItem": {name: dict(own) for name, own in how.per_item.items()},
        "confirm": list(how.confirm),
        "parallelPerProvider": how.parallel_per_provider,
    }
    if which.only is None:
        body["items"] = list(which.items)
    else:
        body["filter"] = dict(which.only)
    return server.call("POST", at("vaults", vault, "replicationProtectedItems", "operations"), Job, body)
