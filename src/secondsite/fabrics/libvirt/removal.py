"""Removing an isolated machine for good: its definition, and its images where that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.crash import crash_point, mark
from secondsite.fabrics.errors import NotIsolated
from secondsite.fabrics.libvirt import domxml, inventory, isolate, life
from secondsite.fabrics.libvirt.domxml import DomainDisk
from secondsite.fabrics.libvirt.recover import FILE_PREFIX
from secondsite.model.ids import MachineId

DURING_IMAGES = mark("remove.during-images")
BEFORE_UNDEFINE = mark("remove.before-undefine")

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def remove(connection: Any, machine: MachineId, *, disks: bool) -> Sequence[str]:
    """See `Fabric.remove_machine`. The definition goes last: what a crash leaves is still named by it."""
    domain = life.lookup(connection, machine)
    if domain is None:
        return ()
    if isolate.why(domain) is None:
        raise NotIsolated(machine=domain.name())
    life.power_off(domain)
    found = inventory.look(connection, domain)
    others = inventory.others_of(found, inventory.image_users(inventory.look_all(connection)))
    left = []
    for disk in found.disks:
        if not disk.copied or not disk.path or not os.path.lexists(disk.path):
            continue  # none of its own, or gone before a crash
        if disks and _is_its_own(disk, others.get(disk.path, ())):
            Path(disk.path).unlink(missing_ok=True)
            crash_point(DURING_IMAGES)
        else:
            left.append(disk.path)
    for path in domxml.settings_drives(found.xml):
        if Path(path).name.startswith(FILE_PREFIX):  # made by us for this machine alone
            Path(path).unlink(missing_ok=True)
    crash_point(BEFORE_UNDEFINE)
    if domain.isPersistent():
        domain.undefineFlags(_UNDEFINE)
    return left


def _is_its_own(disk: DomainDisk, others: Iterable[str]) -> bool:
    """A file that no other machine has; devices are the administrator's, as is what lies beneath an image."""
    path = Path(disk.path or "")
    return not any(others) and not disk.shareable and path.is_file() and not path.is_symlink()
