"""What the routes of pairs and mappings give."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from pydantic import Field

from secondsite.server.api.schemas import View
from secondsite.server.mappings.records import HostState, Pair, Problem
from secondsite.server.mappings.service import Plan
from secondsite.server.mappings.things import Things


class PairProblem(View):
    """What stands in a host's way."""

    code: str
    happened: str
    cause: str
    action: str


class WayView(View):
    """From a gateway of a host to a gateway of the target, as it was when it was asked last."""

    provider: str
    target: str
    ok: bool
    url: str
    version: str
    round_trip_seconds: float | None
    clock_seconds: float | None
    free_bytes: int | None
    checked_at: datetime


class PairHostView(View):
    """A host of the primary cloud. ready: null while it was never asked."""

    name: str
    ready: bool | None
    problems: list[PairProblem]
    ways: list[WayView]

    @classmethod
    def of(cls, host: HostState) -> PairHostView:
        """As it goes out."""
        return cls.model_validate(
            {
                "name": host.host,
                "ready": host.ready,
                "problems": [_problem(problem) for problem in host.problems],
                "ways": [
                    {
                        "provider": one.check.gateway_name,
                        "target": one.check.target_name,
                        "ok": one.check.ok,
                        "url": one.check.url,
                        "version": one.check.version,
                        "round_trip_seconds": one.check.round_trip_seconds,
                        "clock_seconds": one.check.clock_seconds,
                        "free_bytes": one.check.free_bytes,
                        "checked_at": one.at,
                    }
                    for one in host.checks
                ],
            }
        )


def _problem(problem: Problem) -> PairProblem:
    return PairProblem.model_validate(msgspec.structs.asdict(problem))


class PairView(View):
    """A primary cloud and the one its machines are recovered in."""

    id: str
    primary: str
    primary_fabric: str
    target: str
    target_fabric: str
    state: Literal["PairingInProgress", "Paired", "PairingFailed"]
    hosts: list[PairHostView]
    networks: dict[str, str]
    pools: dict[str, str]
    default_pool: str | None
    created_at: datetime
    created_by: str

    @classmethod
    def of(cls, pair: Pair) -> PairView:
        """As it goes out."""
        return cls.model_validate(
            {
                "id": pair.id,
                "primary": pair.primary.name,
                "primary_fabric": pair.primary.site,
                "target": pair.target.name,
                "target_fabric": pair.target.site,
                "state": pair.state.value,
                "hosts": [PairHostView.of(host) for host in pair.hosts],
                "networks": pair.networks,
                "pools": pair.pools,
                "default_pool": pair.default_pool,
                "created_at": pair.created_at,
                "created_by": pair.created_by,
            }
        )


class NetworkSourceView(View):
    """A network of the primary cloud. target null: adapters on it come up attached to nothing."""

    name: str
    subnets: list[str]
    active: bool
    machines: list[str]
    target: str | None


class NetworkTargetView(View):
    """A network of the target cloud that may be chosen where it is at every host (missingAt is empty)."""

    name: str
    subnets: list[str]
    active: bool
    isolated: bool
    missing_at: list[str]
    used_by: list[str] = Field(description="Source networks that are mapped to it.")
    used_by_machines: list[str] = Field(description="Machines whose adapters would be on it.")


class NetworkMappingView(View):
    """What there is to map, and how it is mapped."""

    mapping: str
    primary: str
    target: str
    sources: list[NetworkSourceView]
    targets: list[NetworkTargetView]

    @classmethod
    def of(cls, pair: Pair, things: Things) -> NetworkMappingView:
        """As it goes out."""
        attached = {name: source.machines for name, source in things.source_networks.items()}
        return cls.model_validate(
            {
                "mapping": pair.id,
                "primary": pair.primary.name,
                "target": pair.target.name,
                "sources": [
                    NetworkSourceView(
                        name=name,
                        subnets=list(source.subnets),
                        active=source.active,
                        machines=list(source.machines),
                        target=pair.networks.get(name),
                    )
                    for name, source in things.source_networks.items()
                ],
                "targets": [
                    NetworkTargetView(
                        name=name,
                        subnets=list(target.subnets),
                        active=target.active,
                        isolated=target.isolated,
                        missing_at=list(target.missing_at),
                        used_by=list(target.used_by),
                        used_by_machines=sorted(
                            {one for source in target.used_by for one in attached.get(source, ())}
                        ),
                    )
                    for name, target in things.target_networks.items()
                ],
            }
        )


class StorageSourceView(View):
    """A pool of the primary cloud. target: where its disks go; null: where the gateway is configured to."""

    name: str
    machines: list[str]
    disk_bytes: int
    target: str | None
    by_default: bool


class StorageTargetView(View):
    """A pool of the target cloud; freeBytes where there is least, neededBytes of the disks mapped to it."""

    name: str
    active: bool
    missing_at: list[str]
    used_by: list[str]
    free_bytes: int
    capacity_bytes: int
    needed_bytes: int


class StorageMappingView(View):
    """What there is to map, and how it is mapped."""

    mapping: str
    primary: str
    target: str
    default_pool: str | None
    sources: list[StorageSourceView]
    targets: list[StorageTargetView]

    @classmethod
    def of(cls, pair: Pair, things: Things) -> StorageMappingView:
        """As it goes out."""
        goes = {name: pair.pools.get(name, pair.default_pool) for name in things.source_pools}
        needed: dict[str, int] = {}
        for name, source in things.source_pools.items():
            target = goes[name]
            if target is not None:
                needed[target] = needed.get(target, 0) + source.disk_bytes
        return cls(
            mapping=pair.id,
            primary=pair.primary.name,
            target=pair.target.name,
            default_pool=pair.default_pool,
            sources=[
                StorageSourceView(
                    name=name,
                    machines=list(source.machines),
                    disk_bytes=source.disk_bytes,
                    target=goes[name],
                    by_default=name not in pair.pools,
                )
                for name, source in things.source_pools.items()
            ],
            targets=[
                StorageTargetView(
                    name=name,
                    active=target.active,
                    missing_at=list(target.missing_at),
                    used_by=[source or "(default)" for source in target.used_by],
                    free_bytes=target.free_bytes,
                    capacity_bytes=target.capacity_bytes,
                    needed_bytes=needed.get(name, 0),
                )
                for name, target in things.target_pools.items()
            ],
        )


class ChangeView(View):
    """One source, before and after; null: not mapped. The default pool is called (default)."""

    source: str
    before: str | None
    after: str | None


class PreviewView(View):
    """What saving would change. notes: what to know before."""

    changes: list[ChangeView]
    notes: list[str]

    @classmethod
    def of(cls, plan: Plan) -> PreviewView:
        """As it goes out."""
        return cls(
            changes=[
                ChangeView(source=one.source or "(default)", before=one.before, after=one.after)
                for one in plan.changes
            ],
            notes=list(plan.notes),
        )
