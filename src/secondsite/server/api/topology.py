"""Routes of sites (fabrics), clouds (protection containers) and what could be protected in them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.errors import InputRefused, NotReady
from secondsite.server.api.pages import AskedPage, Page, PageRequest
from secondsite.server.api.schemas import Label, Model, VaultPath, View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.mappings.topology import Topology
from secondsite.server.people.roles import Caller, Operation
from secondsite.server.topology.clouds import NewCloud
from secondsite.server.topology.machines import Key, Protectable
from secondsite.server.topology.placing import key_of
from secondsite.server.topology.records import Cloud, Site

router = APIRouter(prefix="/api/v1/vaults/{vault}", tags=["clouds"])

Reader = Annotated[Caller, requires(Operation.CLOUD_READ)]
Writer = Annotated[Caller, requires(Operation.CLOUD_WRITE)]
_NAME = r"^[^\u0000-\u001f\u007f]+$"
CloudPath = Annotated[
    str, Path(alias="container", max_length=100, pattern=_NAME, description="A cloud's name or id.")
]
FabricPath = Annotated[str, Path(alias="fabric", max_length=100, pattern=_NAME, description="A site's name.")]
_Host = Annotated[str, Field(min_length=1, max_length=255, pattern=_NAME)]


class NewContainer(Model):
    """A cloud to make of hosts of one site."""

    name: Label
    fabric: Label = Field(description="The site's name.")
    hosts: Annotated[list[_Host], Field(min_length=1, max_length=1000)]
    published: bool = True


class ContainerChange(Model):
    """What is not given stays. published: whether the server keeps what runs there, and offers it."""

    name: Label | None = None
    published: bool | None = None


class FabricView(View):
    """A site: where gateways are."""

    name: str
    providers: list[str]
    protection_containers: list[str]

    @classmethod
    def of(cls, site: Site) -> FabricView:
        """As it goes out."""
        return cls(name=site.name, providers=list(site.gateways), protection_containers=list(site.clouds))


class HostView(View):
    """A host of a cloud; nobody tells of one without providers now."""

    name: str
    providers: list[str]


class ContainerView(View):
    """A cloud: hosts of one site between which machines move."""

    id: str
    name: str
    fabric: str
    published: bool
    default_of: str | None = Field(description="The gateway it was made for by itself.")
    hosts: list[HostView]
    providers: list[str]
    protectable_item_count: int
    pairing_status: Literal["Paired", "NotPaired"]
    role: Literal["Primary", "Target", "None"]
    paired_with: str | None
    mapping: str | None = Field(description="The id of its pair.")
    created_at: datetime

    @classmethod
    def of(cls, cloud: Cloud) -> ContainerView:
        """As it goes out."""
        names = {gateway.id: gateway.name for gateway in cloud.gateways}
        return cls.model_validate(
            {
                "id": cloud.id,
                "name": cloud.name,
                "fabric": cloud.site,
                "published": cloud.published,
                "default_of": None if cloud.default_of is None else names.get(cloud.default_of, cloud.name),
                "hosts": [
                    HostView(name=host.name, providers=[one.name for one in host.gateways])
                    for host in cloud.hosts
                ],
                "providers": [gateway.name for gateway in cloud.gateways],
                "protectable_item_count": cloud.machines,
                "pairing_status": "Paired" if cloud.pair else "NotPaired",
                "role": cloud.role or "None",
                "paired_with": cloud.paired_with or None,
                "mapping": cloud.pair,
                "created_at": cloud.created_at,
            }
        )


class ProtectableView(View):
    """A machine of a published cloud, once, whichever gateways tell of it."""

    id: str
    name: str
    fabric: str
    protection_container: str
    host: str
    provider: str = Field(description="The gateway that would protect it.")
    provider_reason: str = Field(description="Why that one.")
    other_providers: list[str]
    protection_status: str = Field(description="The state of its protected item, or Unprotected.")
    replication_protected_item: str | None = Field(description="The id of its protected item.")
    protectable: bool
    reasons: list[str] = Field(description="Why it cannot be protected now.")
    properties: dict[str, Any] = Field(description="As the gateway told it.")

    @classmethod
    def of(cls, found: Protectable) -> ProtectableView:
        """As it goes out."""
        return cls(
            id=found.machine.id,
            name=found.machine.name,
            fabric=found.cloud.site,
            protection_container=found.cloud.name,
            host=found.choice.host,
            provider=found.choice.name,
            provider_reason=found.choice.reason,
            other_providers=list(found.choice.others),
            protection_status=found.state,
            replication_protected_item=found.item,
            protectable=not found.reasons,
            reasons=list(found.reasons),
            properties=msgspec.to_builtins(found.machine),
        )


def topology_of(services: Services) -> Topology:
    """The server's clouds, pairs and mappings. Raises NotReady."""
    if services.topology is None:
        raise NotReady(why="it knows no clouds")
    return services.topology


def _vault_id(vault: VaultPath, services: TheServices) -> str:
    return identity_of(services).vaults.get(vault).id


# stands behind the caller in a route's parameters: who may not see a vault does not learn that it is there
VaultId = Annotated[str, Depends(_vault_id)]


@router.get("/replicationFabrics")
def list_fabrics(
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> Page[FabricView]:
    """A vault's sites, by name."""
    after = asked.after_text() or ""
    found = [site for site in topology_of(services).clouds.sites(vault_id) if site.key > after]
    shown = found[: asked.limit]
    link = asked.link(shown[-1].key) if len(found) > len(shown) else None
    return Page(value=[FabricView.of(site) for site in shown], next_link=link)


@router.get("/replicationProtectionContainers")
def list_containers(
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> Page[ContainerView]:
    """A vault's clouds, by name."""
    after = asked.after_text() or ""
    found = [cloud for cloud in topology_of(services).clouds.list(vault_id) if key_of(cloud.name) > after]
    shown = found[: asked.limit]
    link = asked.link(key_of(shown[-1].name)) if len(found) > len(shown) else None
    return Page(value=[ContainerView.of(cloud) for cloud in shown], next_link=link)


@router.post("/replicationProtectionContainers", status_code=201)
def create_container(
    body: NewContainer,
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
) -> ContainerView:
    """Make a cloud of hosts of a site; they leave the clouds they are in."""
    written = note(services, actor, Operation.CLOUD_WRITE, made=True, hosts=", ".join(body.hosts)[:500])
    new = NewCloud(body.name, body.fabric, body.hosts, body.published)
    return ContainerView.of(topology_of(services).clouds.create(vault_id, new, note=written))


@router.get("/replicationProtectionContainers/{container}")
def show_container(
    container: CloudPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> ContainerView:
    """One cloud."""
    return ContainerView.of(topology_of(services).clouds.get(vault_id, container))


@router.patch("/replicationProtectionContainers/{container}")
def change_container(  # noqa: PLR0917 - called by name, by the framework
    container: CloudPath,
    body: ContainerChange,
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
) -> ContainerView:
    """Rename a cloud, publish it, or take it out of sight."""
    written = note(services, actor, Operation.CLOUD_WRITE, name=body.name, published=body.published)
    clouds = topology_of(services).clouds
    changed = clouds.change(vault_id, container, name=body.name, published=body.published, note=written)
    return ContainerView.of(changed)


@router.delete("/replicationProtectionContainers/{container}", status_code=204)
def delete_container(
    container: CloudPath,
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
) -> None:
    """Delete a cloud; its hosts go back to those of their gateways."""
    written = note(services, actor, Operation.CLOUD_WRITE, deleted=True)
    topology_of(services).clouds.delete(vault_id, container, note=written)


@router.get("/replicationProtectableItems")
def list_protectable(  # noqa: PLR0917 - called by name, by the framework
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
    container: Annotated[
        str | None, Query(max_length=100, pattern=_NAME, description="Only of this cloud.")
    ] = None,
    name: Annotated[
        str,
        Query(max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$", description="Only names with this."),
    ] = "",
) -> Page[ProtectableView]:
    """The machines of a vault's published clouds, each once, by name."""
    topology = topology_of(services)
    if container is not None:
        clouds = [topology.clouds.get(vault_id, container).id]
    else:
        clouds = [cloud.id for cloud in topology.clouds.list(vault_id)]
    found = topology.machines.page(clouds, name_contains=name, after=_after(asked), limit=asked.limit + 1)
    shown = found[: asked.limit]
    link = asked.link(*shown[-1].key) if len(found) > len(shown) else None
    return Page(value=[ProtectableView.of(one) for one in shown], next_link=link)


def _after(asked: PageRequest) -> Key | None:
    if asked.after is None:
        return None
    parts = [part for part in asked.after if isinstance(part, str)]
    if len(parts) != 3 or len(asked.after) != 3:
        raise InputRefused(where="after", why="it is not a cursor of this listing")
    return parts[0], parts[1], parts[2]
