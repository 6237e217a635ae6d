"""Routes of vaults and of the registration keys made for them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field
from sqlalchemy.engine import Connection

from secondsite.server.api.access import TheActor, TheServices, requires, requires_somewhere
from secondsite.server.api.errors import NotReady
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, VaultPath, View
from secondsite.server.api.services import Services
from secondsite.server.identity.keys import KeyRecord
from secondsite.server.identity.service import Identity
from secondsite.server.identity.vaults import Note, Vault
from secondsite.server.people.roles import Actor, Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["vaults"])

# any script; what cannot be seen is refused by the vault itself
_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Description = Annotated[str, Field(max_length=500)]
GatewayName = Annotated[
    str, Field(max_length=200, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", examples=["gateway-a"])
]
KeyPath = Annotated[
    str, Path(alias="key", pattern=r"^[0-9a-f]{32}$", description="A key's id, not its text.")
]

VaultsReader = Annotated[Caller, requires_somewhere(Operation.VAULT_READ)]
VaultReader = Annotated[Caller, requires(Operation.VAULT_READ)]
VaultCreator = Annotated[Caller, requires(Operation.VAULT_CREATE)]
VaultWriter = Annotated[Caller, requires(Operation.VAULT_WRITE)]
VaultDeleter = Annotated[Caller, requires(Operation.VAULT_DELETE)]
KeyWriter = Annotated[Caller, requires(Operation.KEY_WRITE)]


class NewVault(Model):
    """A vault to be made."""

    friendly_name: _Name
    description: _Description = ""


class VaultChange(Model):
    """What is to be another; what is left out stays."""

    friendly_name: _Name | None = None
    description: _Description | None = None


class VaultView(View):
    """A vault."""

    id: str
    friendly_name: str
    description: str
    state: Literal["Active"]
    created_at: datetime
    providers: int = Field(description="Gateways registered in it, in whatever state.")

    @classmethod
    def of(cls, vault: Vault) -> VaultView:
        """As it goes out."""
        return cls(
            id=vault.id,
            friendly_name=vault.friendly_name,
            description=vault.description,
            state="Active",
            created_at=vault.created_at,
            providers=vault.gateways,
        )


class NewKey(Model):
    """A registration key to be made."""

    for_provider: GatewayName | None = Field(
        default=None, description="The one gateway that may enrol again with it; else any new ones."
    )
    url: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Where gateways reach the server, where it is not the configured address."
    )


class KeyView(View):
    """A registration key, without its secret."""

    id: str
    state: Literal["Active", "Expired", "Revoked"]
    created_at: datetime
    created_by: str
    ends_at: datetime
    revoked_at: datetime | None
    for_provider: str | None
    uses: int = Field(description="Gateways it enrolled.")

    @classmethod
    def of(cls, record: KeyRecord, now: datetime) -> KeyView:
        """As it goes out."""
        return cls(
            id=record.id,
            state=record.state(now),
            created_at=record.created_at,
            created_by=record.created_by,
            ends_at=record.ends_at,
            revoked_at=record.revoked_at,
            for_provider=record.for_gateway,
            uses=record.uses,
        )


class NewKeyView(KeyView):
    """A new registration key. Its text is in this answer only."""

    key: str = Field(description="A secret: hand it over as a file.")
    url: str
    authority_fingerprint: str = Field(description="SHA-256 of the authority's certificate.")


def identity_of(services: Services) -> Identity:
    """The server's identity services. Raises NotReady."""
    if services.identity is None:
        raise NotReady(why="it has no certificate authority")
    return services.identity


def note(services: Services, actor: Actor, operation: Operation, **detail: str | int | bool | None) -> Note:
    """What writes a change into the audit log, in the change's own transaction."""

    def write(connection: Connection, vault: str, target: str) -> None:
        services.audit.append(connection, actor, operation.value, target, vault=vault, detail=detail)

    return write


@router.get("/vaults")
def list_vaults(asked: AskedPage, caller: VaultsReader, services: TheServices) -> Page[VaultView]:
    """The vaults I may see, by name."""
    allowed = caller.vaults(Operation.VAULT_READ)
    after = asked.after_text()
    found = [
        vault
        for vault in identity_of(services).vaults.all()
        if (allowed is None or vault.id in allowed) and (after is None or vault.name_key > after)
    ]
    shown = found[: asked.limit]
    link = asked.link(shown[-1].name_key) if len(found) > len(shown) else None
    return Page(value=[VaultView.of(vault) for vault in shown], next_link=link)


@router.post("/vaults", status_code=201)
def create_vault(
    body: NewVault,
    caller: VaultCreator,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> VaultView:
    """Make a vault; it is Active at once."""
    made = identity_of(services).vaults.create(
        body.friendly_name,
        description=body.description,
        note=note(services, actor, Operation.VAULT_CREATE),
    )
    return VaultView.of(made)


@router.get("/vaults/{vault}")
def show_vault(vault: VaultPath, caller: VaultReader, services: TheServices) -> VaultView:  # noqa: ARG001
    """One vault, by id or name."""
    return VaultView.of(identity_of(services).vaults.get(vault))


@router.patch("/vaults/{vault}")
def change_vault(
    vault: VaultPath,
    body: VaultChange,
    caller: VaultWriter,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> VaultView:
    """Rename or describe a vault."""
    changed = identity_of(services).vaults.change(
        vault,
        name=body.friendly_name,
        description=body.description,
        note=note(services, actor, Operation.VAULT_WRITE, name=body.friendly_name),
    )
    return VaultView.of(changed)


@router.delete("/vaults/{vault}", status_code=204)
def delete_vault(
    vault: VaultPath,
    caller: VaultDeleter,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
    with_providers: Annotated[
        bool, Query(alias="withProviders", description="Unregister and remove its gateways, too.")
    ] = False,
) -> None:
    """Delete a vault that is empty, or whose gateways may go with it."""
    identity = identity_of(services)
    identity.vaults.delete(
        vault,
        also=identity.gateways.empty_vault if with_providers else None,
        note=note(services, actor, Operation.VAULT_DELETE, withProviders=with_providers),
    )


@router.get("/vaults/{vault}/registrationKeys")
def list_registration_keys(
    vault: VaultPath,
    asked: AskedPage,
    caller: VaultReader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[KeyView]:
    """A vault's registration keys, the newest first; those that ended are shown for a month."""
    records = identity_of(services).keys.of_vault(vault)
    after = asked.after_text()
    if after is not None:
        records = records[next((at + 1 for at, record in enumerate(records) if record.id == after), 0) :]
    shown = records[: asked.limit]
    link = asked.link(shown[-1].id) if len(records) > len(shown) else None
    now = services.clock.utc()
    return Page(value=[KeyView.of(record, now) for record in shown], next_link=link)


@router.post("/vaults/{vault}/registrationKeys", status_code=201)
def create_registration_key(
    vault: VaultPath,
    body: NewKey,
    caller: KeyWriter,
    actor: TheActor,
    services: TheServices,
) -> NewKeyView:
    """Make a registration key, valid for five days. Its text is in this answer only."""
    identity = identity_of(services)
    key, record = identity.keys.create(
        vault,
        url=body.url or identity.url,
        by=caller.name,
        for_gateway=body.for_provider,
        system_trust=identity.system_trust,
        note=note(services, actor, Operation.KEY_WRITE, made=True, forProvider=body.for_provider),
    )
    return NewKeyView(
        key=key.text(),
        url=key.url,
        authority_fingerprint=key.authority.hex(),
        **KeyView.of(record, services.clock.utc()).model_dump(by_alias=False),
    )


@router.delete("/vaults/{vault}/registrationKeys/{key}")
def revoke_registration_key(
    vault: VaultPath,
    key: KeyPath,
    caller: KeyWriter,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> KeyView:
    """Revoke a registration key: nobody enrols with it any more. Gateways it enrolled stay."""
    written = note(services, actor, Operation.KEY_WRITE, revoked=True)
    record = identity_of(services).keys.revoke(vault, key, note=written)
    return KeyView.of(record, services.clock.utc())
