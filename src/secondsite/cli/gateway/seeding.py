"""``secondsite seed``: the first copy by media instead of over the network."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import print_json

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.gateway import FirstCopy
    from secondsite.gateway.messages.seeding import SeedExportStatus, SeedImportStatus

POLL_SECONDS = 0.5


def export(
    machine: str,
    /,
    *,
    to: Path,
    anywhere: Annotated[bool, Parameter(negative="")] = False,
    wait: bool = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Write a machine's first copy to media, to be carried to the other site and imported there.

    The machine must be protected and have no recovery point yet; what was copied over the network so far is
    dropped. After a kill or a restart the copy goes on where it stopped. It is sealed as everything else:
    whoever finds the media reads nothing without the recovery key. The other site must be reachable for a
    moment when the export begins. Meanwhile the host tracks what changes; once the media were imported, only
    that travels.

    For example:

        secondsite seed export shop --to /mnt/carry

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    to
        The directory the media are mounted at, as the gateway sees it.
    anywhere
        Also allow the file system of the machine's disks or of the gateway's cache, which an export fills.
    wait
        Wait until everything is on the media, or return at once.
    """
    from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportState

    with reach.open() as client:
        client.export_seed(machine, SeedExportRequest(directory=str(to.absolute()), anywhere=anywhere))
        status = client.seed_export(machine)
        if wait:
            status = _wait_export(client, machine, status, quiet=listing.json)
    if listing.json:
        print_json(status)
    elif status.state is SeedExportState.EXPORTED:
        size = format_bytes(status.stored_bytes)
        print(f"{status.name} is on the media at {status.directory} ({size}).")
        print("Unmount them, carry them over, and run there: secondsite seed import DIRECTORY")
    else:
        print(
            f"{status.name} is being written to {status.directory}; see `secondsite seed status {machine}`."
        )


def import_(
    directory: Path,
    /,
    *,
    wait: bool = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Take the seeds on media into this site's store: the machines' first recovery points.

    Every object's hash is checked before anything is put; damaged ones are named, and nothing is imported
    then. An import that was cut off goes on when it is asked for again, and one that is done says so.

    For example:

        secondsite seed import /mnt/carry

    Parameters
    ----------
    directory
        The directory the media are mounted at, as the gateway sees it.
    wait
        Wait until it is done, or return at once.
    """
    from secondsite.gateway.messages.seeding import SeedImportRequest, SeedImportState

    with reach.open() as client:
        client.import_seed(SeedImportRequest(directory=str(directory.absolute())))
        status = client.seed_import()
        if wait:
            status = _wait_import(client, status, quiet=listing.json)
    if status.state is SeedImportState.FAILED and status.error is not None:
        raise RemoteError(dict(status.error))
    if listing.json:
        print_json(status)
    elif status.state is SeedImportState.IMPORTED:
        for name, number in status.points.items():
            print(f"{name} has its first recovery point here: {number}. Replication goes on by itself.")
    else:
        print(f"what is at {status.directory} is being imported; see `secondsite status`.")


def status(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Show how far the seed of a machine is, at its source.

    For example:

        secondsite seed status shop

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    """
    from secondsite.cli.common.progress import describe_copy
    from secondsite.gateway.messages.seeding import SeedExportState

    with reach.open() as client:
        found = client.seed_export(machine)
    if listing.json:
        print_json(found)
    elif found.state is SeedExportState.NONE:
        print(f"{found.name} has no seed on its way.")
    elif found.state is SeedExportState.EXPORTED:
        print(
            f"{found.name} is on the media that were at {found.directory} since {found.exported_at} "
            f"({format_bytes(found.stored_bytes)}), and waits for them to be imported at the other site."
        )
    else:
        print(f"{found.name} is being written to {found.directory}: {describe_copy(_as_copy(found))}")


def cancel(machine: str, /, *, reach: Reach = REACH) -> None:
    """Give a machine's seed up: its first copy goes over the network. What is on the media stays there.

    For example:

        secondsite seed cancel shop

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    """
    with reach.open() as client:
        found = client.cancel_seed(machine)
    print(f"{found.name} is copied over the network; its seed, if it is imported later, is refused.")


def _wait_export(
    client: GatewayClient, machine: str, status: SeedExportStatus, *, quiet: bool
) -> SeedExportStatus:
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.messages.seeding import SeedExportState

    clock, never = SystemClock(), threading.Event()
    with CopyProgress(status.name, quiet=quiet, doing="seed of") as progress:
        while status.state is SeedExportState.COPYING:
            progress.show(_as_copy(status), client.protection(machine).note)
            clock.wait(never, POLL_SECONDS)
            status = client.seed_export(machine)
        progress.done(_as_copy(status))
    return status


def _wait_import(client: GatewayClient, status: SeedImportStatus, *, quiet: bool) -> SeedImportStatus:
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.messages.seeding import SeedImportState

    clock, never = SystemClock(), threading.Event()
    running = (SeedImportState.CHECKING, SeedImportState.IMPORTING)
    with CopyProgress(status.directory, quiet=quiet, doing="import of") as progress:
        while status.state in running:
            progress.show(_as_copy(status), status.state.value)
            clock.wait(never, POLL_SECONDS)
            status = client.seed_import()
        if status.state is SeedImportState.IMPORTED:
            progress.done(_as_copy(status))
    return status


def _as_copy(status: SeedExportStatus | SeedImportStatus) -> FirstCopy:
    from secondsite.gateway.messages.gateway import FirstCopy

    return FirstCopy(
        done_bytes=status.done_bytes,
        total_bytes=status.total_bytes,
        bytes_per_second=status.bytes_per_second,
        seconds_left=status.seconds_left,
    )
