"""What a fabric is told to make of a machine: its point's definition, the site's mapping, and its settings.

The network that is asked for with an operation wins over the settings': `mapped` lets them and the mapping
decide, adapter by adapter; any other word is of all adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from secondsite.fabrics.base import ExportedDisk, Fabric, RecoverySpec
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.target.views import open_point_definition
from secondsite.journal.keys import VaultKey
from secondsite.model.ids import DiskId
from secondsite.model.machines import Definition, Mapping
from secondsite.model.outlook import Outlook
from secondsite.model.points import Point
from secondsite.model.recovered import UNCHANGED, RecoveredSettings

# libvirt's own name for the pool an administrator makes first
DEFAULT_POOL = "default"
ISOLATED = "isolated"
NONE = "none"
MAPPED = "mapped"


@dataclass(frozen=True)
class Wanted:
    """As it was asked for. name "": its own."""

    name: str
    network: str
    settings: RecoveredSettings
    keep_identity: bool
    note: str = ""
    instance: str = ""


@dataclass(frozen=True)
class _Disk:
    """A disk of a machine that is only looked at: nothing serves it."""

    id: DiskId
    size_bytes: int
    socket_path: str = ""
    export_name: str = ""


def merge_mapping(point: Mapping | None, site: Mapping) -> Mapping:
    """The site's own mapping wins over the one that came with the point."""
    if point is None:
        return site
    return Mapping(
        networks={**point.networks, **site.networks},
        pools={**point.pools, **site.pools},
        default_pool=site.default_pool or point.default_pool,
    )


def with_pool(mapping: Mapping, fabric: Fabric) -> Mapping:
    """A pool for disks whose pool is not mapped: a recovered machine's layers have to lie somewhere."""
    if mapping.default_pool is not None:
        return mapping
    active = [pool.name for pool in fabric.pools() if pool.active]
    default = DEFAULT_POOL if DEFAULT_POOL in active else next(iter(active), None)
    return msgspec.structs.replace(mapping, default_pool=default)


def spec_of(
    wanted: Wanted,
    definition: Definition,
    mapping: Mapping,
    disks: Sequence[ExportedDisk],
    *,
    network_made: str | None = None,
) -> RecoverySpec:
    """mapping: the site's and the point's, merged, with a pool. network_made: for an isolated test."""
    network = network_made or wanted.network
    mapped = network == MAPPED
    if not mapped:
        mapping = msgspec.structs.replace(mapping, networks={})
    return RecoverySpec(
        name=wanted.name,
        definition=definition,
        disks=disks,
        mapping=mapping,
        network=None if network in (MAPPED, NONE) else network,
        keep_identity=wanted.keep_identity,
        note=wanted.note,
        settings=wanted.settings,
        attach_as_set=mapped,
        instance=wanted.instance,
    )


def outlook(fabric: Fabric, vault: VaultKey, site: Mapping, point: Point, wanted: Wanted) -> Outlook:
    """What the machine would be. Raises what says that its definition cannot be opened or read."""
    definition = open_point_definition(vault, point)
    mapping = merge_mapping(definition.mapping, site)
    disks = [_Disk(disk.id, disk.size_bytes) for disk in point.disks]
    return fabric.outlook(spec_of(wanted, definition, mapping, disks))


def checks_of(seen: Outlook, settings: RecoveredSettings | None) -> tuple[Check, ...]:
    """What speaks against it; that nothing does is a check that passed, where something was set."""
    found = tuple(
        Check(
            name=finding.name,
            passed=False,
            required=finding.required,
            cause=finding.cause,
            action=finding.action,
        )
        for finding in seen.findings
    )
    if found or settings in (None, UNCHANGED):
        return found
    return (Check(name="settings", passed=True),)
