"""What the guard does to a guest: thaw it, end our job, let it run again. Blocking; called in threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.libvirt import inventory, jobs
from secondsite.fabrics.libvirt.errors import words
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.space import free_bytes
from secondsite.model.ids import MachineId, machine_id

# The agent answers a handshake within libvirt's own 5 s; a thaw itself takes milliseconds.
AGENT_SECONDS_MAX = 5
# A guest whose own storage has less than this may have stopped because of that.
IMAGE_FREE_BYTES_MIN = 16 * 1024 * 1024


class NotYet(Exception):
    """It did not work this time; trying again may. The guard's own loop catches it."""


def _domain(connection: Any, machine: MachineId) -> Any:
    """The running domain, or None."""
    try:
        domain = connection.lookupByUUIDString(machine)
        return domain if domain.isActive() else None
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise NotYet(words(error)) from error


def thaw(connection: Any, machine: MachineId) -> str:
    """Thaw; returns what happened. Thawing twice is harmless (the agent answers 0)."""
    domain = _domain(connection, machine)
    if domain is None:
        return "it is not running: nothing is frozen"
    try:
        domain.agentSetResponseTimeout(AGENT_SECONDS_MAX, 0)
        count = int(domain.fsThaw(None, 0))
    except libvirt.libvirtError as error:
        raise NotYet(words(error)) from error
    return f"{count} file systems were thawed" if count else "it was thawed already"


def end_job(connection: Any, places: Places, machine: MachineId, clock: Clock) -> str:
    """Abort our backup job; returns what happened, empty when none of ours was open."""
    domain = _domain(connection, machine)
    if domain is None:
        return ""
    try:
        return "the job was aborted" if jobs.abort_ours(domain, places, machine, clock) else ""
    except libvirt.libvirtError as error:
        raise NotYet(words(error)) from error


def machines_with_our_job(connection: Any, places: Places) -> list[MachineId]:
    """Every running machine that has a backup job of secondsite."""
    found = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):  # it vanished while we looked
            machine = machine_id(domain.UUIDString())
            if jobs.is_ours(domain, places, machine):
                found.append(machine)
    return found


def stopped_by_disk_error(connection: Any, machine: MachineId) -> bool:
    """Whether the guest is paused because a write failed."""
    domain = _domain(connection, machine)
    if domain is None:
        return False
    try:
        return bool(domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR])
    except libvirt.libvirtError as error:
        raise NotYet(words(error)) from error


def _images(connection: Any, domain: Any) -> Iterable[Path]:
    for disk in inventory.look(connection, domain).disks:
        if disk.path is not None:
            yield Path(disk.path)


def resume(connection: Any, machine: MachineId) -> str:
    """Let a guest run again that stopped while our scratch was full; returns what happened, or "" if it runs.

    The caller has established that our job was open on it and that scratch ran full. A guest whose own images
    have no room either is left stopped: that is not ours to judge.
    """
    if not stopped_by_disk_error(connection, machine):
        return ""
    domain = _domain(connection, machine)
    try:
        for image in _images(connection, domain):
            if image.is_file() and free_bytes(image.parent) < IMAGE_FREE_BYTES_MIN:
                return f"it stays stopped: the file system of its own disk {image} is full as well"
        domain.resume()
    except libvirt.libvirtError as error:
        raise NotYet(words(error)) from error
    return "it was stopped by our full scratch directory and runs again"
