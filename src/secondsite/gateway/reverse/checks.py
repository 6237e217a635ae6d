"""What is looked at before a held machine is reversed onto: each with its cause and what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.fabrics.base import Fabric
from secondsite.gateway.messages.adoption import AdoptImage
from secondsite.gateway.messages.failover import Check, HeldMachine
from secondsite.gateway.messages.reverseerrors import (
    DisksGone,
    MachineGone,
    ReverseRefused,
    ReverseSuperseded,
)
from secondsite.journal.chain import KEY_ROTATION, Head, Journal
from secondsite.model.failover import AUTHORITY, MOVED, NOBODY
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Disk, Machine
from secondsite.transfer.protocols import Link, TargetHead

# File systems whose files end at 4 GiB, know no owners, or lose names at a power cut.
FAT = frozenset({"vfat", "msdos", "exfat", "fat", "umsdos"})
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Volumes:
    """Where a gateway keeps things, as far as they are directories of its host."""

    store: Path | None
    bases: Path | None
    cache: Path


def find_machine(fabric: Fabric, held: HeldMachine) -> Machine:
    """The old copy. Raises MachineGone."""
    found = next((one for one in fabric.machines() if one.id == held.machine), None)
    if found is None:
        raise MachineGone(machine=held.name, writer=held.claimant)
    return found


def images_of(machine: Machine, held: HeldMachine) -> dict[DiskId, AdoptImage]:
    """The disks that can be begun with. Raises DisksGone where there is none."""
    there = {disk.id: disk for disk in machine.disks if not _why_not(disk)}
    if not there:
        why = "; ".join(f"{disk.id}: {_why_not(disk)}" for disk in machine.disks) or "it has none"
        raise DisksGone(machine=held.name, why=why, writer=held.claimant)
    return {
        disk.id: AdoptImage(path=disk.location, format="raw" if disk.format == "raw" else "qcow2")
        for disk in there.values()
    }


def _why_not(disk: Disk) -> str:
    path = Path(disk.location)
    if disk.format not in ("raw", "qcow2"):
        return f"its format is {disk.format}"
    if not path.is_absolute() or not path.exists():
        return f"{disk.location} is not there"
    return "" if path.is_file() else f"{disk.location} is no file"


def require(machine: str, checks: Sequence[Check]) -> None:
    """Raise ReverseRefused, naming all that failed and is required."""
    failed = [check for check in checks if check.required and not check.passed]
    if failed:
        failures = "; ".join(check.cause.rstrip(".") for check in failed)
        raise ReverseRefused(
            machine=machine, failures=failures, actions=" ".join(check.action for check in failed)
        )


def written_since(head: Head, writer: str, known: int) -> str:
    """Who else than `writer` began to write the machine here after all that is known of it; or nobody."""
    claim = head.claim
    if claim is None or claim.reason in AUTHORITY | {KEY_ROTATION} or claim.epoch <= known:
        return ""
    return claim.claimant if claim.claimant not in (NOBODY, writer) else ""


def theirs_of(
    ways: Sequence[tuple[MachineId, str, Link]], held: HeldMachine
) -> TargetHead | SecondsiteError | None:
    """Where the machine's journal stands at the site that took it over; None: there is no way to ask."""
    for machine, _name, link in ways:
        if machine == held.machine:
            try:
                return link.head(machine)
            except SecondsiteError as error:
                return error
    return None


def about_theirs(held: HeldMachine, theirs: TargetHead | SecondsiteError | None) -> Check:
    """Until it is committed a failover can be rolled back, and then this copy is the machine."""
    if theirs is None:
        cause = (
            f"whether {held.claimant} committed its failover is not known: {held.name} is not protected here"
        )
        return _failed("committed", cause, "See to it at that site.", required=False)
    if isinstance(theirs, SecondsiteError):
        cause = f"whether {held.claimant} committed its failover cannot be asked now: {theirs}"
        return _failed("committed", cause, "Try again once the other site answers.")
    if theirs.claimant == held.claimant and not theirs.committed:
        cause = f"{held.claimant} did not commit its failover, so it can be rolled back"
        return _failed("committed", cause, "Commit it at that site first (`secondsite failover commit`).")
    if theirs.claimant != held.claimant:
        cause = f"the writer of {held.name} at the other site is {theirs.claimant or 'nobody'} by now"
        return _failed("committed", cause, "Wait until this gateway has seen that; nothing is held for long.")
    return Check(name="committed", passed=True)


@dataclass(frozen=True)
class Looker:
    """Looks at everything, each time anew: a volume that was just added is found."""

    fabric: Fabric
    volumes: Volumes
    may_write: Callable[[str, MachineId], None]  # raises unless a peer may write a machine here
    clock: Clock

    def look(self, held: HeldMachine, machine: Machine, journal: Journal) -> tuple[Check, ...]:
        """All that can be known beforehand."""
        found = [*self._disks(held, machine), *self._writer(held), *self._journal(held, journal)]
        return (*found, *self._volume(machine))

    def _disks(self, held: HeldMachine, machine: Machine) -> Iterator[Check]:
        bad = [f"{disk.id}: {_why_not(disk)}" for disk in machine.disks if _why_not(disk)]
        if bad:
            cause = f"some disks cannot be begun with and are copied whole ({'; '.join(bad)})"
            action = "Put the images back where the machine's definition has them, or let them be copied."
            yield _failed("disks", cause, action, required=False)
        else:
            yield Check(name="disks", passed=True)
        places = {disk.location for disk in machine.disks}
        others = [one for one in self.fabric.machines() if one.id != held.machine]
        shared = sorted(
            {f"{one.name} ({disk.id})" for one in others for disk in one.disks if disk.location in places}
        )
        twice = len(places) < len(machine.disks)
        if shared or twice:
            whose = f"of {', '.join(shared)}" if shared else "twice of this machine"
            yield _failed(
                "shared-disks",
                f"an image of {held.name} is a disk {whose} as well",
                "Give each machine images of its own, also where both were made from one template.",
            )
        else:
            yield Check(name="shared-disks", passed=True)

    def _writer(self, held: HeldMachine) -> Iterator[Check]:
        try:
            self.may_write(held.claimant, held.machine)
        except SecondsiteError as error:
            why = error.fields.get("why") or error.sentences()[1]
            action = f"Name {held.claimant} below [peers] here, or let the server pair both gateways."
            yield _failed("writer", f"{held.claimant} may not write {held.name} here: {why}", action)
        else:
            yield Check(name="writer", passed=True)

    def _journal(self, held: HeldMachine, journal: Journal) -> Iterator[Check]:
        head = journal.head()
        claim = head.claim
        theirs = claim is not None and claim.claimant == held.claimant and claim.reason not in MOVED
        if head.point is not None and theirs:
            yield _failed(
                "journal",
                f"{held.claimant} has point {head.point.number} of {held.name} here already",
                "Nothing: the machine is protected in the other direction.",
            )
            return
        if other := written_since(head, held.claimant, held.known()):
            error = ReverseSuperseded(machine=held.name, writer=held.claimant, other=other, epoch=head.epoch)
            happened, _, action = error.sentences()
            yield _failed("journal", happened.rstrip("."), action)
            return
        now = self.clock.utc().isoformat()
        holders = sorted({pin.holder for pin in journal.state().pins_at(now)})
        if holders:
            yield _failed(
                "journal",
                f"former points of {held.name} here are needed by {', '.join(holders)}",
                "End what is named: clean tests up, end exports, release holds.",
            )
            return
        count = len(journal.points())
        cause = f"{count} former points of it at this site are deleted" if count else ""
        yield Check(name="journal", passed=True, required=False, cause=cause)

    def _volume(self, machine: Machine) -> Iterator[Check]:
        """The volume of the journal: rules of what it must not be."""
        store = self.volumes.store
        if store is None:
            yield Check(name="journal-volume", passed=True, cause="the store is not a directory of this host")
            return
        found = list(_wrong_with(store))
        kind = file_system(store)
        if kind in FAT:
            found.append((f"its file system is {kind}", "Keep the store on ext4, XFS or the like."))
        images = [Path(disk.location) for disk in machine.disks if not _why_not(disk)]
        if any(store == image or store in image.parents for image in images):
            found.append(("images of machines lie in it", "Keep the store in a directory of its own."))
        for why, action in found:
            yield _failed("journal-volume", f"{store} cannot hold the journal: {why}", action)
        if found:
            return
        needed = sum(image.stat().st_blocks * 512 for image in images)
        free = shutil.disk_usage(store).free
        if free < needed:
            cause = f"{store} has {format_bytes(free)} free, beginning with the disks may take "
            yield _failed(
                "journal-volume", f"{cause}{format_bytes(needed)}", "Make room there, or enlarge it."
            )
        elif self.volumes.cache.exists() and self.volumes.cache.stat().st_dev == store.stat().st_dev:
            cause = "the cache and the store share a volume: each may fill it for the other"
            yield _failed("journal-volume", cause, "Give the store a volume of its own.", required=False)
        else:
            yield Check(name="journal-volume", passed=True)


def _wrong_with(store: Path) -> Iterator[tuple[str, str]]:
    if not store.is_dir():
        yield "it is not there", "Mount it, or correct `store` in the configuration."
        return
    known = os.statvfs(store)
    if not known.f_blocks:
        yield "its capacity is zero", "Give it a volume that can hold files."
    if known.f_flag & os.ST_RDONLY or not os.access(store, os.W_OK):
        yield "it is read-only", "Mount it writable, and look for errors of its disk in the host's log."


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """The kind of file system a directory lies on; empty: not known."""
    best, kind = -1, ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    resolved = path.resolve()
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if (point == resolved or point in resolved.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _failed(name: str, cause: str, action: str, *, required: bool = True) -> Check:
    return Check(name=name, passed=False, required=required, cause=cause, action=action)
