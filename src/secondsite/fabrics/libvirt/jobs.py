"""The backup job of a domain: begin, recognise as ours, end. At most one a machine, by libvirt's own rule."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Collection, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.checkpoints import full_name
from secondsite.fabrics.libvirt.places import Places
from secondsite.model.ids import MachineId

BITMAP = "secondsite"
# abortJob returns before QEMU has closed the job; it took 1 to 30 ms here, and seconds on a starved host.
END_SECONDS_MAX = 30.0
# So long it is left to libvirt alone to notice that a job has ended; see `_notice_end`. Normal is 1 to 30 ms.
NOTICE_SECONDS = 0.5


class JobEnd(enum.IntEnum):
    """How our job on a domain ended; none is false."""

    NONE = 0  # there was none
    ENDED = 1
    UNSTUCK = 2  # its end had to be noticed in libvirt's place: events of the guest wait behind it


def backup_xml(
    places: Places,
    machine: MachineId,
    devs: Sequence[str],
    all_devs: Sequence[str],
    *,
    since: str | None,
    untracked: Collection[str] = (),
) -> str:
    """A `<domainbackup>` in pull mode over exactly `devs`, on our socket, with our scratch files.

    untracked: disks to be given whole although the others are counted from `since`.
    """
    root = ET.Element("domainbackup", mode="pull")
    if since is not None:
        ET.SubElement(root, "incremental").text = full_name(since)
    ET.SubElement(root, "server", transport="unix", socket=str(places.backup_socket(machine)))
    disks = ET.SubElement(root, "disks")
    for dev in all_devs:
        if dev not in devs:
            ET.SubElement(disks, "disk", name=dev, backup="no")
            continue
        disk = ET.SubElement(disks, "disk", name=dev, backup="yes", type="file", exportname=dev)
        if since is not None and dev in untracked:
            disk.set("backupmode", "full")
        elif since is not None:
            disk.set("exportbitmap", BITMAP)
        ET.SubElement(disk, "scratch", file=str(places.scratch_file(machine, dev)))
    return ET.tostring(root, encoding="unicode")


def running(domain: Any) -> str | None:
    """The socket of the backup job that runs on the domain, "" for one without, None when none runs."""
    try:
        text = domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {
            libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,
        }:
            return None
        raise
    server = domxml.parse(text).find("server")
    return (server.get("socket") or "") if server is not None else ""


def any_running(domain: Any) -> bool:
    """Whether a job of anybody runs on the domain, or is just ending.

    A backup is looked for first, by its definition: to be asked for the figures of one that ends at that
    moment can end libvirtd 9.0 (a null pointer in its driver, seen here).
    """
    if running(domain) is not None:
        return True
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:
            return True  # "backup job data missing": libvirt 9.0, between a job's end and its last record
        raise


def is_ours(domain: Any, places: Places, machine: MachineId) -> bool:
    """Whether a backup job of secondsite runs on the domain."""
    return running(domain) == str(places.backup_socket(machine))


def abort_ours(domain: Any, places: Places, machine: MachineId, clock: Clock) -> JobEnd:
    """Abort our job, if it is ours, and wait until it has ended.

    Raises:
        libvirt.libvirtError: the daemon does not answer, or the job does not end.
    """
    if not is_ours(domain, places, machine):
        return JobEnd.NONE
    try:
        domain.abortJob()
    except libvirt.libvirtError:
        if is_ours(domain, places, machine):
            raise  # it did not just end by itself
    never = threading.Event()
    end = JobEnd.ENDED
    deadline = clock.monotonic() + END_SECONDS_MAX
    look_at = clock.monotonic() + NOTICE_SECONDS
    while is_ours(domain, places, machine) and clock.monotonic() < deadline:
        if clock.monotonic() >= look_at:
            _notice_end(domain, places, machine)
            end = JobEnd.UNSTUCK
            look_at = clock.monotonic() + NOTICE_SECONDS
        clock.wait(never, 0.005)
    return end


def _notice_end(domain: Any, places: Places, machine: MachineId) -> None:
    """Have libvirt look at the end of our job in the call's own thread, not in its one thread for events.

    While a backup job is open, an event of one of the guest's ports (its agent comes or goes, it boots) keeps
    that thread waiting for the job's end: `processSerialChangedEvent` asks for a job of the kind
    MODIFY_MIGRATION_SAFE, which `qemuBackupBegin` does not let in beside its own (src/qemu/qemu_driver.c and
    qemu_backup.c, libvirt 9.0.0). The end of the backup in turn comes as an event for the same thread (the
    pool of `qemuStateInitialize` has one). After 30 s (VIR_JOB_WAIT_TIME, src/conf/virdomainjob.c) it gives
    the port's event up, for good: the port stays "disconnected" for libvirt, with it the agent, until the
    guest opens it again or the daemon is restarted.

    `qemuDomainBlockJobAbort` takes what QEMU said of the disk's job meanwhile itself (`qemuBlockJobSyncEnd`),
    also where it refuses because the job is already being ended, as ours is by abortJob. With the last
    disk's the backup has ended, and the event's thread goes on with the port.
    """
    try:
        root = domxml.parse(domain.backupGetXMLDesc(0))
    except libvirt.libvirtError:
        return  # it just ended
    for disk in root.findall("disks/disk[@backup='yes']"):
        if not is_ours(domain, places, machine):
            return  # a job that another program began on the disk meanwhile is none of ours
        with contextlib.suppress(libvirt.libvirtError):
            domain.blockJobAbort(disk.get("name"), 0)
