"""``secondsite vault``: the places that gateways and machines are known in, and the keys to enter them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.vaults import Vault


def list_vaults(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the vaults you may see.

    For example:

        secondsite vault list
    """
    from secondsite.client import vaults

    with reach.open() as server:
        found = list(vaults.vaults(server))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "STATE", "GATEWAYS>", "MADE", "ID"],
        (
            (vault.friendly_name, vault.state, vault.providers, short_time(vault.created_at), vault.id)
            for vault in found
        ),
        empty="There are no vaults. Make one with `secondsite vault create NAME`.",
    )


def create(
    name: str,
    /,
    *,
    description: str = "",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a vault. It is Active at once.

    For example:

        secondsite vault create North --description "machines of the north"

    Parameters
    ----------
    name
        Its name, in any script, at most 100 characters.
    description
        What it is for.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        made = vaults.create_vault(server, name, description)
    if listing.json:
        print_json(made)
    else:
        print(f"vault {made.friendly_name} is {made.state}; make a key for gateways with")
        print(f"  secondsite vault key {made.friendly_name!r} --out FILE")


def show(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show one vault.

    For example:

        secondsite vault show North

    Parameters
    ----------
    name
        The vault's name or id.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        found = vaults.vault(server, name)
    _print(found, listing)


def rename(name: str, to: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Give a vault another name.

    For example:

        secondsite vault rename North "North and East"

    Parameters
    ----------
    name
        The vault's name or id.
    to
        Its new name.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        changed = vaults.change_vault(server, name, to=to)
    _print(changed, listing)


def delete(name: str, /, *, with_gateways: bool = False, reach: ServerReach = SERVER_REACH) -> None:
    """Delete a vault that nothing is registered in.

    For example:

        secondsite vault delete North

        secondsite vault delete North --with-gateways

    Parameters
    ----------
    name
        The vault's name or id.
    with_gateways
        Also unregister and remove its gateways; never while they protect something.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        vaults.delete_vault(server, name, with_providers=with_gateways)
    print(f"vault {name} is deleted")


def key(
    name: str,
    /,
    *,
    out: Path | None = None,
    again: str | None = None,
    url: str | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a registration key: whoever has it may enrol gateways into the vault for five days.

    It holds the server's address and the fingerprint of its authority, so that a gateway trusts no other
    server. Carry it as a file (give --out); it is a secret, and is shown this once.

    For example:

        secondsite vault key North --out north.key

        secondsite vault key North --again gateway-a --out gateway-a.key

        secondsite vault key North --url https://198.51.100.7:8443 --out north.key

    Parameters
    ----------
    name
        The vault's name or id.
    out
        Write it to this file, readable for this user only, instead of printing it. Must not exist.
    again
        For this gateway alone, which is known already and enrols again.
    url
        The address gateways reach the server at, where it is not the one in the server's configuration.
    """
    from secondsite.base.files import create_file
    from secondsite.client import vaults

    if out is not None and out.exists():
        raise InvalidInput(what=f"--out {out}", why="the file exists")
    with reach.open() as server:
        made = vaults.create_key(server, name, for_provider=again, url=url)
        if out is not None and not create_file(out, f"{made.key}\n".encode(), mode=0o600):
            vaults.revoke_key(server, name, made.id)
            raise InvalidInput(what=f"--out {out}", why="the file exists")
    if listing.json:
        shown = {"id": made.id, "endsAt": made.ends_at, "url": made.url, "forProvider": made.for_provider}
        print_json({**shown, **({} if out else {"key": made.key})})
    elif out is not None:
        print(f"registration key {made.id} is in {out}, valid until {short_time(made.ends_at)}")
        print(f"for gateways that reach the server at {made.url}:")
        print(f"  secondsite gateway enrol --key-file {out} --name NAME --site SITE")
    else:
        print(made.key)
        print(f"valid until {short_time(made.ends_at)}, for {made.url}; a secret", file=sys.stderr)


def keys(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List a vault's registration keys; those that ended are shown for a month. Never their text.

    For example:

        secondsite vault keys North

    Parameters
    ----------
    name
        The vault's name or id.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        found = list(vaults.registration_keys(server, name))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["ID", "STATE", "MADE", "BY", "ENDS", "FOR", "USED>"],
        (
            (
                one.id,
                one.state,
                short_time(one.created_at),
                one.created_by,
                short_time(one.ends_at),
                one.for_provider or "new gateways",
                one.uses,
            )
            for one in found
        ),
        empty=f"There are no registration keys. Make one with `secondsite vault key {name!r} --out FILE`.",
    )


def revoke_key(name: str, key: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Revoke a registration key: nobody enrols with it any more. Gateways it enrolled stay.

    For example:

        secondsite vault revoke-key North 0123456789abcdef0123456789abcdef

    Parameters
    ----------
    name
        The vault's name or id.
    key
        The key's id, from `secondsite vault keys`.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        vaults.revoke_key(server, name, key)
    print(f"registration key {key} is revoked")


def _print(found: Vault, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    print(f"{found.friendly_name}: {found.state}, made {short_time(found.created_at)}, id {found.id}")
    print(f"gateways: {found.providers}")
    if found.description:
        print(found.description)
