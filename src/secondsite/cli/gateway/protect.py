"""``secondsite protect``, ``unprotect`` and ``point``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, parse_duration, parse_pairs
from secondsite.cli.common.output import print_json, short_time

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.gateway import ProtectionStatus

POLL_SECONDS = 0.25


class ProtectionFailed(SecondsiteError):
    """The first copy ended without a point."""

    code = "protect.failed"
    happened = "{machine} is not protected: {note}."
    cause = "The first copy could not be made; `secondsite events` has the history."
    action = "Remove the cause and run the same command again; what was copied is not copied twice."


class PointLess(SecondsiteError):
    """A point was made, but it promises less than was asked for."""

    code = "point.label-not-earned"
    happened = "Point {number} of {machine} is {consistency} only: {note}."
    cause = "The guest agent is not running, or the guest could not be frozen in time."
    action = "Install or start qemu-guest-agent in the guest and ask again; the point is kept."


def protect(
    machine: str,
    /,
    *,
    to: str,
    recovery_key_file: Path,
    frequency: str = "5s",
    application_consistent_frequency: str | None = None,
    disk: Annotated[list[str] | None, Parameter(negative="")] = None,
    without_disk: Annotated[list[str] | None, Parameter(negative="")] = None,
    network: Annotated[list[str] | None, Parameter(negative="")] = None,
    pool: Annotated[list[str] | None, Parameter(negative="")] = None,
    default_pool: str | None = None,
    compression: int = 1,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Keep a machine recoverable at another site.

    Copies its disks once, then what changes. The machine is protected when its first recovery point is
    durable at the other site; the command waits for that and shows how far it is. The recovery key opens the
    replica on the day this site is gone: prove that you hold it, from a file that is not the gateway's own.
    Running it again changes how the machine is protected, also which disks: a disk that is left out from now
    on stays in older points, one that comes back is read whole, and nothing else is copied again.

    For example:

        secondsite protect shop --to b --recovery-key-file /media/stick/vault.key

        secondsite protect shop --to b --recovery-key-file vault.key --frequency 30s --network lan=lan-b

        secondsite protect shop --to b --recovery-key-file vault.key --pool default=replicas --no-wait

        secondsite protect shop --to b --recovery-key-file vault.key --without-disk vdc

    Parameters
    ----------
    machine
        Name or id of the machine, as `secondsite inventory` shows it.
    to
        The peer gateway that keeps the replica, as the configuration names it.
    recovery_key_file
        An exported copy of the vault's key, held outside every store.
    frequency
        How often a recovery point is made, e.g. 5s or 1m.
    application_consistent_frequency
        How often the guest is asked to settle its data for a point, e.g. 1h; never, if not given.
    disk
        Only this disk; may be given several times. All disks, also those it gets later, if not given.
    without_disk
        Not this disk, for example one of swap space; may be given several times.
    network
        THERE=HERE: this site's network and the other site's; may be given several times.
    pool
        THIS=OTHER: this site's storage pool and the other site's; may be given several times.
    default_pool
        The other site's pool for disks whose pool is not mapped.
    compression
        zstd level, -5 (fast) to 19 (small).
    wait
        Wait for the first recovery point, or return at once.
    """
    from secondsite.gateway.common.proofs import host_id
    from secondsite.gateway.messages.gateway import FileIdentity, ProtectRequest
    from secondsite.gateway.target.views import load_key
    from secondsite.model.ids import disk_id

    every = application_consistent_frequency
    frequency_seconds = parse_duration(frequency, "--frequency")
    every_seconds = None if every is None else parse_duration(every, "--application-consistent-frequency")
    networks, pools = parse_pairs(network, "--network"), parse_pairs(pool, "--pool")
    key = load_key(recovery_key_file)
    status = recovery_key_file.stat()
    with reach.open() as client:
        question = client.challenge()
        request = ProtectRequest(
            peer=to,
            nonce=question.nonce,
            proof=key.prove(bytes.fromhex(question.nonce)).hex(),
            key_file=FileIdentity(
                path=str(recovery_key_file.resolve()),
                device=status.st_dev,
                inode=status.st_ino,
                host=host_id(),
            ),
            disks=tuple(disk_id(name) for name in disk) if disk else None,
            left_out=tuple(disk_id(name) for name in without_disk or ()),
            copy_frequency_seconds=frequency_seconds,
            application_consistent_frequency_seconds=every_seconds,
            compression_level=compression,
            networks=networks,
            pools=pools,
            default_pool=default_pool,
        )
        protection = client.protect(machine, request)
        if wait:
            protection = _wait(client, protection, quiet=listing.json)
    if listing.json:
        print_json(protection)
    elif wait:
        rpo = "" if protection.rpo_seconds is None else f", {format_seconds(protection.rpo_seconds)} old"
        print(f"{protection.name} is protected: recovery point {protection.last_point} at {to}{rpo}.")
    else:
        print(f"{protection.name} is being copied to {to}; see `secondsite status --watch`.")


def _wait(client: GatewayClient, status: ProtectionStatus, *, quiet: bool) -> ProtectionStatus:
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.messages.gateway import ProtectionState

    clock, never = SystemClock(), threading.Event()
    with CopyProgress(status.name, quiet=quiet) as progress:
        while status.last_point is None:
            if status.state is ProtectionState.FAILED:
                raise ProtectionFailed(
                    machine=status.name, note=status.note.rstrip(".") or "no reason was told"
                )
            progress.show(status.first_copy, status.note)
            clock.wait(never, POLL_SECONDS)
            status = client.protection(status.machine)
        progress.done(status.first_copy)
    return status


def unprotect(machine: str, /, *, reach: Reach = REACH) -> None:
    """Stop replicating a machine and remove everything of ours from it and its host.

    Its recovery points stay at the other site until they are deleted there.

    For example:

        secondsite unprotect shop

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    """
    with reach.open() as client:
        client.unprotect(machine)
    print(f"{machine} is not protected any more; its recovery points stay at the other site.")


def point(
    machine: str,
    /,
    *,
    application_consistent: Annotated[bool, Parameter(negative="")],
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Make a recovery point now and wait until it is committed at the other site.

    The guest is asked, through its agent, to run its hooks and freeze its file systems for the instant. If
    that does not succeed the point is kept with a lesser label, and the exit code is 1.

    For example:

        secondsite point shop --application-consistent

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    application_consistent
        Ask the guest to settle its data first.
    """
    if not application_consistent:
        print("nothing to do: points are made all the time; add --application-consistent", file=sys.stderr)
        return int(Outcome.USAGE)
    with reach.open() as client:
        taken = client.take_point(machine)
    if listing.json:
        print_json(taken)
    else:
        frozen = (
            "" if taken.frozen_seconds is None else f", frozen for {format_seconds(taken.frozen_seconds)}"
        )
        print(f"point {taken.number}: {taken.consistency.value}, {short_time(taken.at)}{frozen}")
    if taken.note:
        note = taken.note.rstrip(".")
        raise PointLess(number=taken.number, machine=machine, consistency=taken.consistency.value, note=note)
    return int(Outcome.OK)
