"""``secondsite cloud``: the sites of a vault, and the clouds their hosts are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.topology import Cloud


def sites(vault: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List a vault's sites (fabrics): where its gateways are.

    For example:

        secondsite cloud sites north

    Parameters
    ----------
    vault
        The vault, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = list(topology.fabrics(server, vault))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["SITE", "GATEWAYS", "CLOUDS"],
        ((one.name, " ".join(one.providers), ", ".join(one.protection_containers)) for one in found),
        empty="There is no site: enrol a gateway first (`secondsite gateway enrol`).",
    )


def list_clouds(vault: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List a vault's clouds: hosts of a site between which machines move.

    Each gateway has a cloud of its own from its enrolment on, so that nothing needs to be made.

    For example:

        secondsite cloud list north

    Parameters
    ----------
    vault
        The vault, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = list(topology.clouds(server, vault))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "SITE", "HOSTS", "GATEWAYS", "MACHINES>", "PUBLISHED", "PAIR"],
        (
            (
                one.name,
                one.fabric,
                " ".join(host.name for host in one.hosts) or "none yet",
                " ".join(one.providers),
                one.protectable_item_count,
                "yes" if one.published else "no",
                _pair(one),
            )
            for one in found
        ),
        empty="There is no cloud: enrol a gateway first (`secondsite gateway enrol`).",
    )


def show(vault: str, cloud: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show one cloud: its hosts, and which gateways tell of each.

    For example:

        secondsite cloud show north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The cloud, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        _print(topology.cloud(server, vault, cloud), listing)


def create(
    vault: str,
    cloud: str,
    /,
    *,
    site: str,
    host: list[str],
    published: Annotated[bool, Parameter(negative="--not-published")] = True,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a cloud of several hosts of a site; they leave the clouds they are in.

    For example:

        secondsite cloud create north Production --site "Site A" --host kvm1 --host kvm2

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The name of the new cloud.
    site
        The site, as `secondsite cloud sites` shows it.
    host
        A host of that site, as `secondsite site hosts` shows it; give it once for each.
    published
        Whether the server keeps what runs there, and offers it.
    """
    from secondsite.client import topology

    with reach.open() as server:
        _print(
            topology.create_cloud(server, vault, cloud, site=site, hosts=host, published=published), listing
        )


def rename(
    vault: str, cloud: str, to: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Give a cloud another name.

    For example:

        secondsite cloud rename north gateway-a "Rack 7"

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The cloud, by name or id.
    to
        Its new name.
    """
    from secondsite.client import topology

    with reach.open() as server:
        _print(topology.change_cloud(server, vault, cloud, to=to), listing)


def publish(
    vault: str, cloud: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Let the server know what runs in a cloud, and offer its machines for protection.

    Its gateways are read again within seconds.

    For example:

        secondsite cloud publish north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The cloud, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        _print(topology.change_cloud(server, vault, cloud, published=True), listing)


def unpublish(
    vault: str, cloud: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Take a cloud out of sight: the server forgets what runs there. Refused while it is paired or in use.

    For example:

        secondsite cloud unpublish north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The cloud, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        _print(topology.change_cloud(server, vault, cloud, published=False), listing)


def delete(vault: str, cloud: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Delete a cloud that was made by hand; its hosts go back to the clouds of their gateways.

    For example:

        secondsite cloud delete north Production

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        The cloud, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        topology.delete_cloud(server, vault, cloud)
    print(f"cloud {cloud} is deleted; its hosts are in the clouds of their gateways again")


def machines(
    vault: str,
    cloud: str | None = None,
    /,
    *,
    name: str = "",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List what could be protected: each machine once, with the gateway that would do it, and why not.

    For example:

        secondsite cloud machines north

        secondsite cloud machines north gateway-a --name shop --json

    Parameters
    ----------
    vault
        The vault, by name or id.
    cloud
        Only of this cloud.
    name
        Only names with this in them, in whatever case.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = list(topology.protectable(server, vault, cloud=cloud, name=name))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "ID", "CLOUD", "HOST", "SIZE>", "GATEWAY", "PROTECTION", "PROTECTABLE"],
        (
            (
                one.name,
                one.id,
                one.protection_container,
                one.host,
                format_bytes(sum(disk.get("sizeBytes", 0) for disk in one.properties.get("disks", ()))),
                one.provider,
                one.protection_status,
                "yes" if one.protectable else f"no: {'; '.join(one.reasons)}",
            )
            for one in found
        ),
        empty="No published cloud has a machine. See `secondsite cloud list`.",
    )


def _print(found: Cloud, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    seen = "published" if found.published else "not published: the server keeps nothing of what runs there"
    print(f"{found.name} at {found.fabric}, {seen}")
    print(f"pair: {_pair(found) or 'none'}")
    print(f"machines: {found.protectable_item_count}, since {short_time(found.created_at)}")
    print_table(
        ["HOST", "GATEWAYS"],
        ((host.name, " ".join(host.providers) or "none tells of it now") for host in found.hosts),
        empty="It has no host yet: its gateway was not read.",
    )


def _pair(found: Cloud) -> str:
    if found.paired_with is None:
        return ""
    first, second = (
        (found.name, found.paired_with) if found.role == "Primary" else (found.paired_with, found.name)
    )
    return f"{first} -> {second}"
