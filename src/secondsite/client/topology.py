"""Sites, clouds, pairs and mappings over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Job, Page

CLOUDS = "replicationProtectionContainers"
PAIRS = "replicationProtectionContainerMappings"
NETWORKS = "replicationNetworkMappings"
STORAGE = "replicationStorageClassificationMappings"


class Fabric(Answer, frozen=True, kw_only=True):
    """A site: where gateways are."""

    name: str
    providers: list[str]
    protection_containers: list[str]


class CloudHost(Answer, frozen=True, kw_only=True):
    """A host of a cloud, and the gateways that tell of it."""

    name: str
    providers: list[str]


class Cloud(Answer, frozen=True, kw_only=True):
    """Hosts of one site between which machines move."""

    id: str
    name: str
    fabric: str
    published: bool
    default_of: str | None = None
    hosts: list[CloudHost]
    providers: list[str]
    protectable_item_count: int
    pairing_status: str
    role: str
    paired_with: str | None = None
    mapping: str | None = None
    created_at: str


class Protectable(Answer, frozen=True, kw_only=True):
    """A machine of a published cloud, once, and the gateway that would protect it."""

    id: str
    name: str
    fabric: str
    protection_container: str
    host: str
    provider: str
    provider_reason: str
    other_providers: list[str]
    protection_status: str
    replication_protected_item: str | None = None
    protectable: bool
    reasons: list[str]
    properties: dict[str, Any]


class PairProblem(Answer, frozen=True, kw_only=True):
    """What stands in a host's way."""

    code: str
    happened: str
    cause: str
    action: str


class Way(Answer, frozen=True, kw_only=True):
    """From a gateway of a host to a gateway of the target, the last time it was asked."""

    provider: str
    target: str
    ok: bool
    url: str
    version: str
    round_trip_seconds: float | None = None
    clock_seconds: float | None = None
    free_bytes: int | None = None
    checked_at: str


class PairHost(Answer, frozen=True, kw_only=True):
    """A host of the primary cloud; ready None: never asked."""

    name: str
    ready: bool | None = None
    problems: list[PairProblem]
    ways: list[Way]


class Pair(Answer, frozen=True, kw_only=True):
    """A primary cloud and the one its machines are recovered in."""

    id: str
    primary: str
    primary_fabric: str
    target: str
    target_fabric: str
    state: str
    hosts: list[PairHost]
    networks: dict[str, str]
    pools: dict[str, str]
    default_pool: str | None = None
    created_at: str
    created_by: str


class NetworkSource(Answer, frozen=True, kw_only=True):
    """A network of the primary cloud."""

    name: str
    subnets: list[str]
    active: bool
    machines: list[str]
    target: str | None = None


class NetworkTarget(Answer, frozen=True, kw_only=True):
    """A network of the target cloud."""

    name: str
    subnets: list[str]
    active: bool
    isolated: bool
    missing_at: list[str]
    used_by: list[str]
    used_by_machines: list[str]


class NetworkMapping(Answer, frozen=True, kw_only=True):
    """What there is to map, and how it is mapped."""

    mapping: str
    primary: str
    target: str
    sources: list[NetworkSource]
    targets: list[NetworkTarget]


class StorageSource(Answer, frozen=True, kw_only=True):
    """A pool of the primary cloud."""

    name: str
    machines: list[str]
    disk_bytes: int
    target: str | None = None
    by_default: bool


class StorageTarget(Answer, frozen=True, kw_only=True):
    """A pool of the target cloud, its room where there is least."""

    name: str
    active: bool
    missing_at: list[str]
    used_by: list[str]
    free_bytes: int
    capacity_bytes: int
    needed_bytes: int


class StorageMapping(Answer, frozen=True, kw_only=True):
    """What there is to map, and how it is mapped."""

    mapping: str
    primary: str
    target: str
    default_pool: str | None = None
    sources: list[StorageSource]
    targets: list[StorageTarget]


class MappingChange(Answer, frozen=True, kw_only=True):
    """One source, before and after; None: not mapped."""

    source: str
    before: str | None = None
    after: str | None = None


class Preview(Answer, frozen=True, kw_only=True):
    """What saving would change, and what to know before."""

    changes: list[MappingChange]
    notes: list[str]


class GatewayCheck(Answer, frozen=True, kw_only=True):
    """One thing a gateway needs; why, fix and ask are empty when it is there."""

    code: str
    title: str
    ok: bool
    why: str
    fix: str
    ask: str


class GatewayReadiness(Answer, frozen=True, kw_only=True):
    """What a gateway found of its own place."""

    provider: str
    at: str
    ready: bool
    checks: list[GatewayCheck]


def fabrics(server: ServerClient, vault: str) -> Iterator[Fabric]:
    """A vault's sites, by name."""
    return server.pages(at("vaults", vault, "replicationFabrics"), Page[Fabric])


def clouds(server: ServerClient, vault: str) -> Iterator[Cloud]:
    """A vault's clouds, by name."""
    return server.pages(at("vaults", vault, CLOUDS), Page[Cloud])


def cloud(server: ServerClient, vault: str, name: str) -> Cloud:
    """One cloud, by name or id."""
    return server.call("GET", at("vaults", vault, CLOUDS, name), Cloud)


def create_cloud(
    server: ServerClient, vault: str, name: str, *, site: str, hosts: Sequence[str], published: bool = True
) -> Cloud:
    """Make a cloud of hosts of a site."""
    body = {"name": name, "fabric": site, "hosts": list(hosts), "published": published}
    return server.call("POST", at("vaults", vault, CLOUDS), Cloud, body)


def change_cloud(
    server: ServerClient, vault: str, name: str, *, to: str | None = None, published: bool | None = None
) -> Cloud:
    """Rename or publish."""
    body = {"name": to, "published": published}
    return server.call("PATCH", at("vaults", vault, CLOUDS, name), Cloud, body)


def delete_cloud(server: ServerClient, vault: str, name: str) -> None:
    """Give its hosts back to the clouds of their gateways."""
    server.call("DELETE", at("vaults", vault, CLOUDS, name), NONE)


def protectable(
    server: ServerClient, vault: str, *, cloud: str | None = None, name: str = ""
) -> Iterator[Protectable]:
    """The machines of the published clouds, each once, by name."""
    asked = {"limit": "1000", "container": cloud, "name": name or None}
    query = urlencode({key: text for key, text in asked.items() if text is not None})
    return server.pages(f"{at('vaults', vault, 'replicationProtectableItems')}?{query}", Page[Protectable])


def pairs(server: ServerClient, vault: str) -> Iterator[Pair]:
    """A vault's pairs, by the primary cloud."""
    return server.pages(at("vaults", vault, PAIRS), Page[Pair])


def pair(server: ServerClient, vault: str, name: str) -> Pair:
    """One pair, by its id or either cloud's name."""
    return server.call("GET", at("vaults", vault, PAIRS, name), Pair)


def create_pair(server: ServerClient, vault: str, primary: str, target: str) -> Job:
    """Begin to pair two clouds."""
    body = {"primary": primary, "target": target}
    return server.call("POST", at("vaults", vault, PAIRS), Job, body)


def change_pair(server: ServerClient, vault: str, name: str, target: str) -> Pair:
    """Refused by the server, with what to do instead."""
    return server.call("PATCH", at("vaults", vault, PAIRS, name), Pair, {"target": target})


def check_pair(server: ServerClient, vault: str, name: str) -> Job:
    """Ask every host again."""
    return server.call("POST", at("vaults", vault, PAIRS, name, "check"), Job)


def delete_pair(server: ServerClient, vault: str, name: str) -> None:
    """Delete it with its mappings."""
    server.call("DELETE", at("vaults", vault, PAIRS, name), NONE)


def network_mapping(server: ServerClient, vault: str, pair: str) -> NetworkMapping:
    """The networks of both clouds."""
    return server.call("GET", at("vaults", vault, PAIRS, pair, NETWORKS), NetworkMapping)


def preview_networks(
    server: ServerClient, vault: str, pair: str, networks: Mapping[str, str | None]
) -> Preview:
    """What mapping these would change."""
    where = at("vaults", vault, PAIRS, pair, NETWORKS, "preview")
    return server.call("POST", where, Preview, {"networks": dict(networks)})


def map_networks(server: ServerClient, vault: str, pair: str, networks: Mapping[str, str | None]) -> Job:
    """Begin to map these; None: attached to nothing."""
    where = at("vaults", vault, PAIRS, pair, NETWORKS)
    return server.call("PATCH", where, Job, {"networks": dict(networks)})


def storage_mapping(server: ServerClient, vault: str, pair: str) -> StorageMapping:
    """The pools of both clouds."""
    return server.call("GET", at("vaults", vault, PAIRS, pair, STORAGE), StorageMapping)


def preview_storage(
    server: ServerClient,
    vault: str,
    pair: str,
    pools: Mapping[str, str | None],
    *,
    default: str | None = None,
    clear_default: bool = False,
) -> Preview:
    """What mapping these would change."""
    body = {"pools": dict(pools), "defaultPool": default, "clearDefault": clear_default}
    where = at("vaults", vault, PAIRS, pair, STORAGE, "preview")
    return server.call("POST", where, Preview, body)


def map_storage(
    server: ServerClient,
    vault: str,
    pair: str,
    pools: Mapping[str, str | None],
    *,
    default: str | None = None,
    clear_default: bool = False,
) -> Job:
    """Begin to map these; None: the default pool. default: for every pool that is not named."""
    body = {"pools": dict(pools), "defaultPool": default, "clearDefault": clear_default}
    return server.call("PATCH", at("vaults", vault, PAIRS, pair, STORAGE), Job, body)


def readiness(server: ServerClient, vault: str, provider: str) -> GatewayReadiness:
    """Have a gateway look now whether it has what it needs."""
    where = at("vaults", vault, "recoveryServicesProviders", provider, "readiness")
    return server.call("GET", where, GatewayReadiness)
