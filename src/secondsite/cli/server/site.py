"""``secondsite site``: what the sites of a server's gateways have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient, ThingKind
    from secondsite.client.messages import Thing

Row = Callable[["Thing"], Sequence[object]]


class MachineNotFound(SecondsiteError):
    """No such machine, or several."""

    code = "site.machine-not-found"
    outcome = Outcome.NOT_FOUND
    happened = "There is {count} machine {machine} at {where}."
    cause = "The name is mistyped, its machine was removed, or its gateway could not be asked just now."
    action = "List them with `secondsite site machines`; give the id where several have a name."


@Parameter(name="*")
@dataclass(frozen=True)
class Limits:
    """What a listing is limited to."""

    of: Annotated[str | None, Parameter(name="--of")] = None
    """The name of a gateway: only its site."""
    name: str = ""
    """Only names with this in them, in whatever case."""
    gone: Annotated[bool, Parameter(negative="")] = False
    """Also what is not there any more; it is kept for 30 days."""


ALL = Limits()


def machines(*, only: Limits = ALL, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the machines of all sites, protected or not, as their gateways last told.

    For example:

        secondsite site machines --name shop

        secondsite site machines --of gateway-a --json
    """

    def row(thing: Thing) -> Sequence[object]:
        told = thing.properties
        reasons = told.get("unprotectable") or ()
        size = sum(disk.get("sizeBytes", 0) for disk in told.get("disks", ()))
        protectable = f"no: {'; '.join(reasons)}" if reasons else "yes"
        return (thing.id, told.get("host", ""), told.get("power", ""), format_bytes(size), protectable)

    _list("machines", only, reach, listing, (["ID", "HOST", "POWER", "SIZE>", "PROTECTABLE"], row))


def hosts(*, only: Limits = ALL, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the hypervisor hosts of all sites.

    For example:

        secondsite site hosts
    """

    def row(thing: Thing) -> Sequence[object]:
        told = thing.properties
        return told.get("hypervisor", ""), told.get("cpus", ""), format_bytes(told.get("memoryBytes", 0))

    _list("hosts", only, reach, listing, (["HYPERVISOR", "CPUS>", "MEMORY>"], row))


def networks(*, only: Limits = ALL, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the networks of all sites.

    For example:

        secondsite site networks --of gateway-b
    """

    def row(thing: Thing) -> Sequence[object]:
        told = thing.properties
        words = ["yes" if told.get(key) else "no" for key in ("active", "isolated")]
        return *words, " ".join(told.get("subnets", ()))

    _list("networks", only, reach, listing, (["ACTIVE", "ISOLATED", "SUBNETS"], row))


def storage(*, only: Limits = ALL, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the storage pools of all sites.

    For example:

        secondsite site storage --json
    """

    def row(thing: Thing) -> Sequence[object]:
        told = thing.properties
        sizes = [format_bytes(told.get(key, 0)) for key in ("freeBytes", "capacityBytes")]
        return *sizes, "yes" if told.get("active") else "no", told.get("path", "")

    _list("storageClassifications", only, reach, listing, (["FREE>", "SIZE>", "ACTIVE", "PATH"], row))


def show(
    vault: str, gateway: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Tell when a gateway's site was read last, and why it could not be.

    For example:

        secondsite site show north gateway-a

    Parameters
    ----------
    vault
        The vault the gateway belongs to.
    gateway
        Its name.
    """
    with reach.open() as server:
        found = server.site(vault, gateway)
    if listing.json:
        print_json(found)
        return
    print(
        f"{found.provider} ({found.site}): {_when('read', found.read_at)}, {_when('tried', found.tried_at)}"
    )
    if found.problem is not None:
        for sentence in ("happened", "cause", "action"):
            print(f"  {found.problem.get(sentence, '')}")


def read(
    vault: str, gateway: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Read a gateway's site now, instead of within the next five minutes.

    For example:

        secondsite site read north gateway-a

    Parameters
    ----------
    vault
        The vault the gateway belongs to.
    gateway
        Its name.
    """
    with reach.open() as server:
        found = server.read_site(vault, gateway)
    if listing.json:
        print_json(found)
    else:
        print(f"{gateway}: {found.appeared} new, {found.changed} changed, {found.gone} gone")


def point(
    vault: str,
    gateway: str,
    machine: str,
    /,
    *,
    no_wait: Annotated[bool, Parameter(negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Take a recovery point of a protected machine now, as a job of the server.

    For example:

        secondsite site point north gateway-a shop

    Parameters
    ----------
    vault
        The vault of the gateway that protects it.
    gateway
        That gateway's name.
    machine
        Its name or id.
    no_wait
        Start the job and return.
    """
    from secondsite.cli.server.jobs import started

    with reach.open() as server:
        found = machines_called(server, machine, gateway)
        if len(found) != 1:
            where = f"the site of gateway {gateway}"
            raise MachineNotFound(machine=machine, where=where, count=len(found) or "no")
        return started(server, server.take_point(vault, gateway, found[0].id), listing, no_wait=no_wait)


def machines_called(server: ServerClient, machine: str, gateway: str | None = None) -> list[Thing]:
    """Machines by name or id, as each gateway tells of them, or those of one gateway.

    When none is known the sites are read first, then looked at again.
    """

    def look() -> list[Thing]:
        return [one for one in server.things("machines", provider=gateway) if machine in (one.id, one.name)]

    return look() or (_read_sites(server, gateway) and look()) or []


def _read_sites(server: ServerClient, gateway: str | None) -> bool:
    """Have the sites read that can be: a machine may be newer than what the server knows."""
    from secondsite.client.vaults import providers

    read = False
    for one in providers(server):
        if one.name == gateway or (gateway is None and one.connection_status == "Connected"):
            with contextlib.suppress(SecondsiteError):  # a gateway that does not answer tells of nothing new
                server.read_site(one.vault_id, one.name)
                read = True
    return read


def _list(
    kind: ThingKind, only: Limits, reach: ServerReach, listing: Listing, shape: tuple[list[str], Row]
) -> None:
    columns, row = shape
    with reach.open() as server:
        found = list(server.things(kind, provider=only.of, name=only.name, gone=only.gone))
    if listing.json:
        print_json(found)
        return
    heads = ["NAME", "SITE", "GATEWAY", *columns, *(["GONE SINCE"] if only.gone else [])]
    print_table(heads, _rows(found, row, gone=only.gone), empty="Nothing was found.")


def _rows(found: Iterable[Thing], row: Row, *, gone: bool) -> Iterable[Sequence[object]]:
    for thing in found:
        since = short_time(thing.gone_since) if thing.gone_since else ""
        yield thing.name, thing.site, thing.provider, *row(thing), *([since] if gone else [])


def _when(what: str, at: str | None) -> str:
    return f"{what} {short_time(at)}" if at else f"never {what}"
