"""``secondsite adopt``: a machine's first copy begins with what the other site has already."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, RemoteError
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, parse_pairs
from secondsite.cli.common.output import print_json, print_table

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.adoption import AdoptImage, AdoptionStatus
    from secondsite.model.ids import DiskId

POLL_SECONDS = 0.5


def start(
    machine: str,
    /,
    *,
    raw: Annotated[list[str] | None, Parameter(negative="")] = None,
    qcow2: Annotated[list[str] | None, Parameter(negative="")] = None,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Begin a machine's first copy with images that lie at this site: only what differs from them travels.

    Run it at the site that keeps the replica, best before the machine is protected: an older replica's image,
    a restored backup, a clone. When the machine is protected at its own site, the images are taken into the
    store, its disks are compared with them by hash, and the first recovery point holds both. Disks that are
    not named are copied as always. The images are only read; they may be deleted afterwards. No running
    machine may use them, and they must have the sizes of the machine's disks.

    A first copy that is under way over the network begins again, compared with the images.

    For example:

        secondsite adopt start 4be0d1cf-5d5c-4f7c-9d0e-9d5c5b3a8a11 --qcow2 vda=/pool/shop.qcow2

        secondsite adopt start shop --raw vda=/pool/shop.img --raw vdb=/pool/shop-data.img --wait

    Parameters
    ----------
    machine
        Id of the machine, as `secondsite inventory` shows it at its own site; or its name, once protected.
    raw
        DISK=PATH: a raw image with a copy of a disk, as the gateway sees it; may be given several times.
    qcow2
        DISK=PATH: likewise, a qcow2 image; with the images beneath it, if it has such.
    wait
        Wait for the first recovery point, or return at once.
    """
    from secondsite.gateway.messages.adoption import AdoptRequest

    request = AdoptRequest(images=_images(raw, qcow2))
    with reach.open() as client:
        found = client.adopt(machine, request)
        if wait:
            found = _wait(client, found, quiet=listing.json)
    if listing.json:
        print_json(found)
    else:
        print(describe(found))


def _images(raw: list[str] | None, qcow2: list[str] | None) -> dict[DiskId, AdoptImage]:
    from secondsite.gateway.messages.adoption import AdoptImage
    from secondsite.model.ids import disk_id

    images: dict[DiskId, AdoptImage] = {}
    for disk, path in parse_pairs(raw, "--raw").items():
        images[disk_id(disk)] = AdoptImage(path=path, format="raw")
    for disk, path in parse_pairs(qcow2, "--qcow2").items():
        if disk in images:
            raise InvalidInput(what=f"--qcow2 {disk}={path}", why=f"{disk} has an image already")
        images[disk_id(disk)] = AdoptImage(path=path, format="qcow2")
    if not images:
        raise InvalidInput(what="the command", why="it names no image: add --raw or --qcow2 DISK=PATH")
    return images


def _wait(client: GatewayClient, found: AdoptionStatus, *, quiet: bool) -> AdoptionStatus:
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.messages.adoption import ENDED, AdoptionState
    from secondsite.gateway.messages.gateway import FirstCopy

    clock, never = SystemClock(), threading.Event()
    with CopyProgress(found.name, quiet=quiet, doing="adopting a copy of") as progress:
        while found.state not in ENDED:
            sealing = found.state is AdoptionState.SEALING
            copy = FirstCopy(
                done_bytes=found.done_bytes,
                total_bytes=found.total_bytes,
                bytes_per_second=found.bytes_per_second,
                seconds_left=found.seconds_left,
            )
            progress.show(copy if sealing else None, found.note or describe(found))
            clock.wait(never, POLL_SECONDS)
            found = client.adoption(found.machine)
    if found.error is not None:
        raise RemoteError(dict(found.error))
    return found


def describe(found: AdoptionStatus) -> str:
    """Where it stands, in a sentence."""
    from secondsite.gateway.messages.adoption import AdoptionState

    size = format_bytes(found.total_bytes)
    done = format_bytes(found.done_bytes)
    sent = format_bytes(found.sent_bytes or 0)
    why = found.error["happened"] if found.error else "its first copy came another way"
    texts = {
        AdoptionState.OFFERED: "waits to be protected at its own site; its first copy begins with the images",
        AdoptionState.SEALING: f"its copy is taken into the store: {done} of {size}",
        AdoptionState.READY: "its copy is in the store; its site compares, and sends what differs",
        AdoptionState.COMMITTING: "its first recovery point is being committed",
        AdoptionState.ADOPTED: f"recovery point {found.point} stands on a copy of {size}; {sent} travelled",
        AdoptionState.FAILED: why,
        AdoptionState.REFUSED: why,
        AdoptionState.CANCELLED: "its copy was given up; what was taken over is removed",
        AdoptionState.UNUSED: "it was not used: the first copy came another way",
    }
    note = f" ({found.note})" if found.note else ""
    return f"{found.name}: {texts[found.state]}.{note}".replace("..", ".")


def list_adoptions(*, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List the copies that are being adopted here, and the last one of each other machine.

    For example:

        secondsite adopt list
    """
    with reach.open() as client:
        found = client.adoptions()
    if listing.json:
        print_json(found)
        return
    rows = [
        [
            one.name,
            one.state.value,
            ", ".join(f"{image.disk}={image.path}" for image in one.images),
            one.point,
        ]
        for one in found
    ]
    print_table(["machine", "state", "images", "first point>"], rows, empty="No copy is being adopted here.")


def status(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Show how far the adoption of a machine's copy is, at the site that has the copy.

    For example:

        secondsite adopt status shop

    Parameters
    ----------
    machine
        Name or id of the machine.
    """
    with reach.open() as client:
        found = client.adoption(machine)
    if listing.json:
        print_json(found)
    else:
        print(describe(found))


def cancel(machine: str, /, *, reach: Reach = REACH) -> None:
    """Give an adoption up: the first copy goes over the network. What was taken over is removed again.

    For example:

        secondsite adopt cancel shop

    Parameters
    ----------
    machine
        Name or id of the machine.
    """
    with reach.open() as client:
        print(describe(client.cancel_adoption(machine)))
