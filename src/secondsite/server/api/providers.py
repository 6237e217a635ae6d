"""Routes of gateways: recovery services providers, in the field's words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import Field

from secondsite.server.api.access import TheActor, TheServices, requires, requires_somewhere
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, VaultPath, View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.identity.gateways import Gateway, Gateways
from secondsite.server.identity.service import Identity
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["providers"])

ProviderPath = Annotated[
    str,
    Path(
        alias="provider", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=200, description="Its name."
    ),
]
_Why = Annotated[str, Field(max_length=300, pattern=r"^[^\u0000-\u001f\u007f]*$")]

AnyReader = Annotated[Caller, requires_somewhere(Operation.PROVIDER_READ)]
Reader = Annotated[Caller, requires(Operation.PROVIDER_READ)]
Writer = Annotated[Caller, requires(Operation.PROVIDER_WRITE)]
Revoker = Annotated[Caller, requires(Operation.PROVIDER_REVOKE)]


class ProviderChange(Model):
    """What is to be another."""

    friendly_name: Annotated[str, Field(min_length=1, max_length=100)]


class Reason(Model):
    """Why it is done; the gateway's own people read it."""

    why: _Why = ""


class Leave(Reason):
    """How a gateway leaves its vault."""

    in_use: bool = Field(default=False, description="Also while something needs it.")


class ProviderView(View):
    """A gateway as the server knows it."""

    id: str
    name: str
    friendly_name: str
    vault_id: str
    vault: str
    site: str
    state: Literal["Registered", "Revoked", "Unregistered"]
    state_reason: str
    state_since: datetime
    registered_at: datetime
    certificate_until: datetime | None
    connection_status: Literal["Connected", "Disconnected", "NeverConnected"]
    last_contact: datetime | None
    address: str | None
    version: str
    version_fit: Literal["Fits", "UpdateAvailable", "TooNew", "TooOld"]
    clock_seconds: float | None = Field(description="By which its clock is ahead of the server's.")
    health: Literal["Normal", "Warning", "Critical", "Unknown"]
    protected_items: int | None
    recovery_points: int | None
    refresh_asked: int = Field(description="Number of the newest refresh asked for.")
    refresh_answered: int

    @classmethod
    def of(cls, gateway: Gateway, identity: Identity, now: datetime) -> ProviderView:
        """As it goes out."""
        contact = gateway.contact
        status = "NeverConnected"
        if contact is not None:
            status = "Connected" if contact.connected(now) else "Disconnected"
        # an old word is shown with its age, and is no health
        lately = contact if status == "Connected" else None
        return cls.model_validate(
            {
                "id": gateway.id,
                "name": gateway.name,
                "friendly_name": gateway.friendly_name,
                "vault_id": gateway.vault_id,
                "vault": gateway.vault,
                "site": gateway.site,
                "state": gateway.state.value,
                "state_reason": gateway.state_reason,
                "state_since": gateway.state_since,
                "registered_at": gateway.registered_at,
                "certificate_until": gateway.certificate_until,
                "connection_status": status,
                "last_contact": contact.at if contact else None,
                "address": contact.address if contact else None,
                "version": gateway.version,
                "version_fit": identity.enrolment.version_fit(gateway.version).value,
                "clock_seconds": lately.clock_seconds if lately else None,
                "health": lately.health if lately else "Unknown",
                "protected_items": lately.protected if lately else None,
                "recovery_points": lately.points if lately else None,
                "refresh_asked": gateway.refresh_number,
                "refresh_answered": contact.refreshed if contact else 0,
            }
        )


def _view(services: Services, gateway: Gateway) -> ProviderView:
    return ProviderView.of(gateway, identity_of(services), services.clock.utc())


@dataclass(frozen=True)
class _Place:
    """A gateway that is of the vault in the path."""

    name: str
    gateways: Gateways


def _in_vault(vault: VaultPath, provider: ProviderPath, services: TheServices) -> _Place:
    identity = identity_of(services)
    if identity.gateways.get(provider).vault_id != identity.vaults.get(vault).id:
        raise GatewayUnknown(name=provider)
    return _Place(provider, identity.gateways)


# stands behind the caller in a route's parameters: who may not see a vault learns nothing of what is in it
ThePlace = Annotated[_Place, Depends(_in_vault)]


@router.get("/recoveryServicesProviders")
def list_all_providers(asked: AskedPage, caller: AnyReader, services: TheServices) -> Page[ProviderView]:
    """The gateways of every vault I may see, by name."""
    identity = identity_of(services)
    allowed = caller.vaults(Operation.PROVIDER_READ)
    found = identity.gateways.page(vault_ids=allowed, after=asked.after_text() or "", limit=asked.limit + 1)
    return _page(services, asked, found)


@router.get("/vaults/{vault}/recoveryServicesProviders")
def list_providers(
    vault: VaultPath,
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[ProviderView]:
    """A vault's gateways, by name."""
    identity = identity_of(services)
    ids = frozenset({identity.vaults.get(vault).id})
    found = identity.gateways.page(vault_ids=ids, after=asked.after_text() or "", limit=asked.limit + 1)
    return _page(services, asked, found)


@router.get("/vaults/{vault}/recoveryServicesProviders/{provider}")
def show_provider(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> ProviderView:
    """One gateway."""
    return _view(services, place.gateways.get(place.name))


@router.patch("/vaults/{vault}/recoveryServicesProviders/{provider}")
def rename_provider(
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ProviderChange,
    actor: TheActor,
    services: TheServices,
) -> ProviderView:
    """Give a gateway another friendly name."""
    written = note(services, actor, Operation.PROVIDER_WRITE, friendlyName=body.friendly_name)
    changed = place.gateways.rename(place.name, body.friendly_name, note=written)
    return _view(services, changed)


@router.post("/vaults/{vault}/recoveryServicesProviders/{provider}/refresh")
def refresh_provider(
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
) -> ProviderView:
    """Ask a gateway to report now: done once `refreshAnswered` has reached `refreshAsked` of this answer."""
    written = note(services, actor, Operation.PROVIDER_WRITE, refresh=True)
    return _view(services, place.gateways.refresh(place.name, note=written))


@router.post("/vaults/{vault}/recoveryServicesProviders/{provider}/revoke")
def revoke_provider(
    caller: Revoker,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: Reason,
    actor: TheActor,
    services: TheServices,
) -> ProviderView:
    """Refuse a gateway's certificates, here at once, at other gateways as they fetch the revocation list."""
    written = note(services, actor, Operation.PROVIDER_REVOKE, why=body.why)
    return _view(services, place.gateways.revoke(place.name, why=body.why, note=written))


@router.post("/vaults/{vault}/recoveryServicesProviders/{provider}/unregister")
def unregister_provider(
    caller: Revoker,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: Leave,
    actor: TheActor,
    services: TheServices,
) -> ProviderView:
    """Take a gateway out of its vault: it works no more; what is known of it stays until it is removed."""
    written = note(services, actor, Operation.PROVIDER_REVOKE, why=body.why, inUse=body.in_use)
    left = place.gateways.unregister(place.name, why=body.why, in_use=body.in_use, note=written)
    return _view(services, left)


@router.delete("/vaults/{vault}/recoveryServicesProviders/{provider}", status_code=204)
def remove_provider(
    caller: Revoker,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
) -> None:
    """Forget a gateway that is unregistered or revoked, with all that is kept of it."""
    written = note(services, actor, Operation.PROVIDER_REVOKE, removed=True)
    place.gateways.remove(place.name, note=written)


def _page(services: Services, asked: AskedPage, found: list[Gateway]) -> Page[ProviderView]:
    shown = found[: asked.limit]
    link = asked.link(shown[-1].name) if len(found) > len(shown) else None
    return Page(value=[_view(services, gateway) for gateway in shown], next_link=link)
