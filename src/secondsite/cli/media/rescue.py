"""``secondsite rescue``: with nothing but a store and its key, on a machine that never saw the rest."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import Outcome
from secondsite.cli.common.gateways import LISTING, Listing, parse_pairs, whoami
from secondsite.cli.common.output import UNKNOWN, print_error, print_json, print_table, short_time

if TYPE_CHECKING:
    from secondsite.gateway.recovery.recover import Recovery
    from secondsite.gateway.recovery.rescue import Rescue
    from secondsite.journal.store import StoreUnavailable
    from secondsite.model.ids import DiskId

STATE_DIR = Path("/var/lib/secondsite/rescue")
SOCKET_DIR = Path("/run/secondsite/rescue")


@Parameter(name="*")
@dataclass(frozen=True)
class StoreAndKey:
    """What a rescue needs."""

    store: str
    """The store's URL, file:///directory, s3://bucket/prefix, az://container/prefix, or its path."""
    key_file: Path
    """The recovery key, as `secondsite key create` made it."""
    store_credentials: Path | None = None
    """A file of AWS_... or AZURE_... variables for an object store; without it, the environment's."""

    def open(self) -> Rescue:
        """Both, opened."""
        from secondsite.gateway.recovery.rescue import Rescue

        store = self.store if "://" in self.store else str(Path(self.store).resolve())
        return Rescue(store, self.key_file, self.store_credentials)


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where a rescue boots."""

    uri: str = "qemu:///system"
    """libvirt URI of the host to boot on."""
    state_dir: Annotated[Path, Parameter(env_var="SECONDSITE_RESCUE_STATE")] = STATE_DIR
    """Where to remember what was made, until it is cleaned up."""
    socket_dir: Annotated[Path, Parameter(env_var="SECONDSITE_RESCUE_SOCKETS")] = SOCKET_DIR
    """Where to make the sockets that QEMU reads the disks through; QEMU's user must be able to enter it."""
    pool: str | None = None
    """Storage pool for what the machine writes; the pool default, or the first one, if not given."""
    qemu_user: str | None = None
    """Whom QEMU runs as; found by itself on Debian, Ubuntu and Fedora."""

    def recovery(self, rescue: Rescue) -> Recovery:
        """What boots there and cleans up."""
        from secondsite.base.clock import SystemClock
        from secondsite.cli.common.tell import TellingSink
        from secondsite.gateway.common.fabrics import open_fabric
        from secondsite.gateway.recovery.exports import qemu_access
        from secondsite.model.machines import Mapping

        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket_dir.mkdir(parents=True, exist_ok=True)
        clock = SystemClock()
        events = TellingSink(clock)
        fabric = open_fabric(
            self.uri, scratch_dir=self.state_dir, socket_dir=self.socket_dir, clock=clock, events=events
        )
        return rescue.recovery(
            state_dir=self.state_dir,
            socket_dir=self.socket_dir,
            fabric=fabric,
            clock=clock,
            events=events,
            access=qemu_access(self.qemu_user),
            mapping=Mapping(default_pool=self.pool),
        )


PLACE = Place()


def list_store(machine: str | None = None, /, *, where: StoreAndKey, listing: Listing = LISTING) -> int:
    """List the machines in a store, or one machine's recovery points.

    A machine whose journal is damaged is listed with what is wrong; the others are not harmed by it.

    For example:

        secondsite rescue --store /mnt/replicas --key-file vault.key list

        secondsite rescue --store file:///mnt/replicas --key-file vault.key list shop --json

        secondsite rescue --store s3://replicas/site-b --key-file vault.key list

    Parameters
    ----------
    machine
        Name or id; all machines, if not given.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.cli.gateway.points import print_points
    from secondsite.gateway.recovery.recover import summarise
    from secondsite.gateway.target.holds import holders

    rescue = where.open()
    if machine is not None:
        identity = rescue.resolve(machine)
        replica = next(replica for replica in rescue.replicas() if replica.machine == identity)
        if replica.error is not None:
            raise replica.error
        held = holders(replica.state, SystemClock()) if replica.state else {}
        points = [summarise(point, held.get(point.number, ())) for point in replica.points]
        if listing.json:
            print_json(points)
        else:
            print_points(points)
        return int(Outcome.OK)
    return _list_machines(rescue, as_json=listing.json)


def _list_machines(rescue: Rescue, *, as_json: bool) -> int:
    from secondsite.gateway.recovery.recover import summarise

    replicas = rescue.replicas()
    if as_json:
        print_json(
            [
                {
                    "machine": replica.machine,
                    "name": replica.name or None,
                    "points": len(replica.points),
                    "oldest": summarise(replica.points[0]) if replica.points else None,
                    "newest": summarise(replica.points[-1]) if replica.points else None,
                    "error": replica.error.as_dict() if replica.error else None,
                }
                for replica in replicas
            ]
        )
    else:
        print_table(
            ["MACHINE", "ID", "POINTS>", "OLDEST", "NEWEST"],
            (
                (
                    replica.name or UNKNOWN,
                    replica.machine,
                    len(replica.points),
                    short_time(replica.points[0].given_at) if replica.points else "none",
                    short_time(replica.points[-1].given_at) if replica.points else "none",
                )
                for replica in replicas
            ),
            empty="The store holds no machine.",
        )
    damaged = [replica.error for replica in replicas if replica.error is not None]
    for error in damaged:
        print_error(error)
    return int(Outcome.DAMAGED) if damaged else int(Outcome.OK)


def moved_bases(base: list[str] | None) -> dict[DiskId, str]:
    """``["vda=/mnt/vda.raw", ...]``: where bases are now, by disk."""
    from secondsite.model.ids import disk_id

    pairs = parse_pairs(base, "--base")
    return {disk_id(disk): str(Path(path).resolve()) for disk, path in pairs.items()}


def tell_unpinned(error: StoreUnavailable) -> None:
    """A store that cannot be written is read all the same."""
    why = error.sentences()[0]
    print(
        f"note: the point is not pinned; let no gateway work on this store meanwhile. {why}", file=sys.stderr
    )


def export(
    machine: str,
    point: str = "latest",
    /,
    *,
    where: StoreAndKey,
    socket_dir: Path,
    base: Annotated[list[str] | None, Parameter(negative="")] = None,
    listing: Listing = LISTING,
) -> None:
    """Serve the disks of a point over NBD, read-only, one address a disk, until Ctrl-C.

    Needs no hypervisor and no root: read the addresses with qemu-img, nbdcopy or any NBD client.

    For example:

        secondsite rescue --store /mnt/replicas --key-file vault.key export shop --socket-dir /tmp/look

        qemu-img convert -f raw -O qcow2 'nbd+unix:///vda?socket=/tmp/look/shop-1207.sock' vda.qcow2

    Parameters
    ----------
    machine
        Name or id.
    point
        latest, latest-application-consistent, last-clean, a number, or a time (the newest point not after
        it; UTC).
    socket_dir
        Where to make the socket; made if missing.
    base
        DISK=PATH: where a disk's base is now, if it was moved; checked to be the right one.
    """
    from secondsite.cli.gateway.points import wait_for_end
    from secondsite.gateway.common.sockets import check_socket_path
    from secondsite.gateway.messages.gateway import ExportDisk
    from secondsite.nbd.server import serve

    rescue = where.open()
    identity = rescue.resolve(machine)
    chosen = rescue.choose(identity, point)
    socket_dir.mkdir(parents=True, exist_ok=True)
    path = socket_dir.resolve() / f"{chosen.machine_name[:32]}-{chosen.number}.sock"
    check_socket_path(path)
    with rescue.view(identity, chosen, moved_bases(base), on_unpinned=tell_unpinned) as view:
        disks = [
            ExportDisk(id=disk.id, size_bytes=disk.size_bytes, socket_path=str(path), export_name=disk.id)
            for disk in chosen.disks
        ]
        with serve({disk: view.disks[disk] for disk in view.disks}, str(path)):
            if listing.json:
                print_json(
                    [{"disk": disk.id, "sizeBytes": disk.size_bytes, "uri": disk.uri} for disk in disks]
                )
            else:
                print("\n".join(disk.uri for disk in disks))
            sys.stdout.flush()
            try:
                wait_for_end()
            except KeyboardInterrupt:
                return


def boot(
    machine: str,
    point: str = "latest",
    /,
    *,
    where: StoreAndKey,
    place: Place = PLACE,
    network: str = "isolated",
    name: str | None = None,
    base: Annotated[list[str] | None, Parameter(negative="")] = None,
    take_over: Annotated[bool, Parameter(negative="")] = False,
    take_over_from: str | None = None,
    listing: Listing = LISTING,
) -> None:
    """Boot a machine from a point on this host, as a test, on an isolated network unless told otherwise.

    Nothing is written to the replica but a pin; the machine's writes go to a layer that is thrown away by
    `secondsite rescue clean-up`. With --take-over the machine's epoch is claimed first, durably: should the
    old site come back, its gateway learns that it is not the writer any more and stops.

    For example:

        secondsite rescue --store /mnt/replicas --key-file vault.key boot shop --uri qemu:///system

        secondsite rescue --store /mnt/replicas --key-file vault.key boot shop 1207 --base vda=/mnt/vda.raw

        secondsite rescue --store /mnt/replicas --key-file vault.key boot shop --network lan --take-over

        secondsite rescue --store /mnt/replicas --key-file vault.key boot shop --take-over-from gateway-b

    Parameters
    ----------
    machine
        Name or id.
    point
        latest, latest-application-consistent, last-clean, a number, or a time (the newest point not after
        it; UTC).
    network
        isolated, none, mapped, or the name of a network of this host.
    name
        Name of the machine here; its own with -test, if not given.
    base
        DISK=PATH: where a disk's base is now, if it was moved; checked to be the right one.
    take_over
        Claim the machine's epoch first.
    take_over_from
        Likewise, of a machine that was taken over before: by whom, where that one is gone for good as well.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.cli.gateway.testfailover import follow, print_started
    from secondsite.gateway.messages.testfailover import StartTestFailover, TestFailoverState

    rescue = where.open()
    identity = rescue.resolve(machine)
    chosen = rescue.choose(identity, point)
    recovery = place.recovery(rescue)
    try:
        recovery.resume()
        if take_over or take_over_from is not None:
            us = f"rescue by {whoami()}"
            claim = rescue.take_over(identity, claimant=us, clock=SystemClock(), over=take_over_from)
            print(f"epoch {claim.epoch} of {chosen.machine_name} is claimed", file=sys.stderr)
        request = StartTestFailover(
            point=str(chosen.number), network=network, name=name, requested_by=whoami()
        )
        status = recovery.start_test_failover(identity, request, bases=moved_bases(base))
        status = follow(
            recovery.test_failover, status, while_in=TestFailoverState.INITIATED, quiet=listing.json
        )
    finally:
        recovery.close()
    if listing.json:
        print_json(status)
    else:
        print_started(status, f"secondsite rescue clean-up {chosen.machine_name} --notes TEXT")
        print("while it matters, run `secondsite rescue watch`: it keeps its disks served")


def watch(*, where: StoreAndKey, place: Place = PLACE) -> None:
    """Watch over what `secondsite rescue boot` started, until Ctrl-C.

    A machine reads its disks through an export process. Should that end, it is started again here, and the
    machine, which stopped at the first error of a disk, runs on. A gateway does this by itself.

    For example:

        secondsite rescue --store /mnt/replicas --key-file vault.key watch

    """
    from secondsite.cli.gateway.points import wait_for_end

    recovery = place.recovery(where.open())
    try:
        recovery.resume()
        standing = [test for test in recovery.test_failovers() if test.state.value == "Completed"]
        names = ", ".join(test.name for test in standing) or "nothing: no machine was booted from this store"
        print(f"watching over {names}", flush=True)
        wait_for_end()
    except KeyboardInterrupt:
        pass
    finally:
        recovery.close()


def clean_up(
    machine: str,
    /,
    *,
    where: StoreAndKey,
    notes: str,
    place: Place = PLACE,
    listing: Listing = LISTING,
) -> None:
    """Remove what `secondsite rescue boot` made: the machine, its layer, its network, its export and pin.

    For example:

        secondsite rescue --store /mnt/replicas --key-file vault.key clean-up shop --notes "boots"

    Parameters
    ----------
    machine
        Name or id.
    notes
        What was learnt; kept in the state directory.
    """
    from secondsite.cli.gateway.testfailover import follow
    from secondsite.gateway.messages.testfailover import CleanUp, TestFailoverState

    rescue = where.open()
    recovery = place.recovery(rescue)
    try:
        recovery.resume()
        status = recovery.clean_up(rescue.resolve(machine), CleanUp(notes=notes, cleaned_up_by=whoami()))
        status = follow(
            recovery.test_failover, status, while_in=TestFailoverState.CLEANUP_INITIATED, quiet=True
        )
    finally:
        recovery.close()
    if listing.json:
        print_json(status)
    else:
        print(f"{status.name} was removed with everything made for it")
