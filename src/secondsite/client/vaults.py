"""Vaults, registration keys and gateways over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Page


class Vault(Answer, frozen=True, kw_only=True):
    """A vault."""

    id: str
    friendly_name: str
    description: str
    state: str
    created_at: str
    providers: int


class RegistrationKey(Answer, frozen=True, kw_only=True):
    """A registration key, without its secret."""

    id: str
    state: str
    created_at: str
    created_by: str
    ends_at: str
    revoked_at: str | None = None
    for_provider: str | None = None
    uses: int


class NewRegistrationKey(RegistrationKey, frozen=True, kw_only=True):
    """A new one with its text, which is in this answer only."""

    key: str
    url: str
    authority_fingerprint: str

    def __repr__(self) -> str:
        return f"NewRegistrationKey({self.id})"


class Provider(Answer, frozen=True, kw_only=True):
    """A gateway as the server knows it."""

    id: str
    name: str
    friendly_name: str
    vault_id: str
    vault: str
    site: str
    state: str
    state_reason: str
    state_since: str
    registered_at: str
    certificate_until: str | None = None
    connection_status: str
    last_contact: str | None = None
    address: str | None = None
    version: str
    version_fit: str
    clock_seconds: float | None = None
    health: str
    protected_items: int | None = None
    recovery_points: int | None = None
    refresh_asked: int
    refresh_answered: int


def vaults(server: ServerClient) -> Iterator[Vault]:
    """The vaults I may see, by name."""
    return server.pages(at("vaults"), Page[Vault])


def create_vault(server: ServerClient, name: str, description: str = "") -> Vault:
    """Make a vault."""
    return server.call("POST", at("vaults"), Vault, {"friendlyName": name, "description": description})


def vault(server: ServerClient, name: str) -> Vault:
    """One vault, by id or name."""
    return server.call("GET", at("vaults", name), Vault)


def change_vault(
    server: ServerClient, name: str, *, to: str | None = None, description: str | None = None
) -> Vault:
    """Rename or describe a vault."""
    body = {"friendlyName": to, "description": description}
    return server.call("PATCH", at("vaults", name), Vault, body)


def delete_vault(server: ServerClient, name: str, *, with_providers: bool) -> None:
    """Delete a vault."""
    query = urlencode({"withProviders": str(with_providers).lower()})
    server.call("DELETE", f"{at('vaults', name)}?{query}", NONE)


def registration_keys(server: ServerClient, vault: str) -> Iterator[RegistrationKey]:
    """A vault's registration keys, the newest first."""
    return server.pages(at("vaults", vault, "registrationKeys"), Page[RegistrationKey])


def create_key(
    server: ServerClient, vault: str, *, for_provider: str | None = None, url: str | None = None
) -> NewRegistrationKey:
    """Make a registration key."""
    body = {"forProvider": for_provider, "url": url}
    return server.call("POST", at("vaults", vault, "registrationKeys"), NewRegistrationKey, body)


def revoke_key(server: ServerClient, vault: str, key: str) -> RegistrationKey:
    """Nobody enrols with it any more."""
    return server.call("DELETE", at("vaults", vault, "registrationKeys", key), RegistrationKey)


def providers(server: ServerClient, vault: str | None = None) -> Iterator[Provider]:
    """Gateways by name, of one vault or of all I may see."""
    where = at("recoveryServicesProviders") if vault is None else at(*_of(vault))
    return server.pages(where, Page[Provider])


def provider(server: ServerClient, name: str) -> Provider | None:
    """One gateway, whatever its vault; None when there is none that I may see."""
    return next((found for found in providers(server) if found.name == name), None)


def rename_provider(server: ServerClient, found: Provider, to: str) -> Provider:
    """Another friendly name."""
    return server.call("PATCH", at(*_of(found.vault_id, found.name)), Provider, {"friendlyName": to})


def refresh_provider(server: ServerClient, found: Provider) -> Provider:
    """Ask it to report now."""
    return server.call("POST", at(*_of(found.vault_id, found.name), "refresh"), Provider, {})


def show_provider(server: ServerClient, found: Provider) -> Provider:
    """The same one as it is now."""
    return server.call("GET", at(*_of(found.vault_id, found.name)), Provider)


def revoke_provider(server: ServerClient, found: Provider, *, why: str) -> Provider:
    """Refuse its certificates."""
    return server.call("POST", at(*_of(found.vault_id, found.name), "revoke"), Provider, {"why": why})


def unregister_provider(server: ServerClient, found: Provider, *, why: str, in_use: bool) -> Provider:
    """Take it out of its vault."""
    body = {"why": why, "inUse": in_use}
    return server.call("POST", at(*_of(found.vault_id, found.name), "unregister"), Provider, body)


def remove_provider(server: ServerClient, found: Provider) -> None:
    """Forget it with its data."""
    server.call("DELETE", at(*_of(found.vault_id, found.name)), NONE)


def _of(vault: str, *name: str) -> tuple[str, ...]:
    return ("vaults", vault, "recoveryServicesProviders", *name)
