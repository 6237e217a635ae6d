"""``secondsite server oidc``: people who come in by the site's own log-in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table
from secondsite.cli.common.reach import SERVER_REACH, ServerReach, read_secret
from secondsite.cli.server.users import RoleName

if TYPE_CHECKING:
    from secondsite.client.oidc import Oidc


def set_provider(
    *,
    issuer: str,
    client_id: str,
    secret_file: Path | None = None,
    authority: Path | None = None,
    scopes: str = "openid profile",
    groups_claim: str = "groups",
    name_claim: str = "preferred_username",
    session_minutes: int = 720,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Set the OIDC provider people may log in at. It is tried first; what does not work is not kept.

    Register secondsite there as a client with the redirect http://127.0.0.1/callback (a port is added, as
    RFC 8252 says), and have it put people's groups into the ID token.

    For example:

        secondsite server oidc set --issuer https://id.example --client-id secondsite --secret-file secret

    Parameters
    ----------
    issuer
        As the provider calls itself, https://...
    client_id
        As it calls secondsite.
    secret_file
        File with the client's secret in its first line; without one the client is a public one.
    authority
        PEM file of whom the provider's certificate is trusted by, where the system's own do not do.
    scopes
        What is asked for; begins with openid.
    groups_claim
        The claim of the ID token that lists a person's groups.
    name_claim
        The claim that new users are called after.
    session_minutes
        How long a log-in lasts, 5 to 1440.
    """
    from secondsite.client import oidc

    try:
        trusted = authority.read_text() if authority is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(what=f"the authority {authority}", why=str(error)) from None
    settings: dict[str, str | int | None] = {
        "issuer": issuer,
        "clientId": client_id,
        "clientSecret": read_secret(secret_file) if secret_file is not None else None,
        "authority": trusted,
        "scopes": scopes,
        "groupsClaim": groups_claim,
        "nameClaim": name_claim,
        "sessionMinutes": session_minutes,
    }
    with reach.open() as server:
        found = oidc.set_oidc(server, settings)
    _tell(found, listing)


def show(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show the OIDC provider that is set, and which groups have which roles.

    For example:

        secondsite server oidc show
    """
    from secondsite.client import oidc

    with reach.open() as server:
        _tell(oidc.oidc(server), listing)


def remove(*, reach: ServerReach = SERVER_REACH) -> None:
    """Forget the OIDC provider. Its users and their roles stay; they come in with tokens only.

    For example:

        secondsite server oidc remove
    """
    from secondsite.client import oidc

    with reach.open() as server:
        oidc.remove_oidc(server)
    print("nobody logs in at an OIDC provider any more")


def map_group(
    group: str,
    role: RoleName,
    /,
    *,
    vault: str = "*",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Give a group's people a role, from their next log-in on. Who has none of them stays out.

    For example:

        secondsite server oidc map dr-operators operator

        secondsite server oidc map north-admins owner --vault North

    Parameters
    ----------
    group
        As the ID token lists it; * for everybody who logs in at the provider.
    role
        The role.
    vault
        On this vault only; on everything otherwise.
    """
    from secondsite.client import oidc

    with reach.open() as server:
        _tell(oidc.map_group(server, group, role, vault=vault), listing)


def unmap_group(
    group: str,
    role: RoleName,
    /,
    *,
    vault: str = "*",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Take a group's role back, with each one's next log-in; `user disable` keeps somebody out at once.

    For example:

        secondsite server oidc unmap dr-operators operator

    Parameters
    ----------
    group
        The group.
    role
        The role.
    vault
        The one on this vault; the one on everything otherwise.
    """
    from secondsite.client import oidc

    with reach.open() as server:
        _tell(oidc.unmap_group(server, group, role, vault=vault), listing)


def _tell(found: Oidc, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    secret = "with a secret" if found.has_secret else "public"
    print(f"{found.issuer}: client {found.client_id} ({secret}), sessions of {found.session_minutes} minutes")
    print(f"scopes {found.scopes}; groups in {found.groups_claim}, names in {found.name_claim}")
    print_table(
        ["GROUP", "ROLE", "VAULT"],
        ((one.group, one.role, one.vault) for one in found.mappings),
        empty="No group has a role: nobody comes in yet. Give one: `secondsite server oidc map GROUP ROLE`.",
    )
