"""Our checkpoints at a domain: named with a prefix, so that other products' are never touched.

libvirt keeps a chain: the bitmap of a checkpoint records what changed from it until the next. A backup
counted from one merges all bitmaps from there on; deleting one merges its bitmap into the one before.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import msgspec

from secondsite.base.errors import InvalidInput
from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.errors import HypervisorRefused
from secondsite.model.ids import DiskId

PREFIX = "secondsite-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")

# qemu-img changes a few clusters of an image's header; a merge reads two bitmaps of 2 MiB a TiB.
_OFFLINE_SECONDS_MAX = 60

# Refusals that say nothing about bitmaps: the daemon or the machine is occupied, or the daemon is gone.
_DAEMON_CODES = {
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_RESOURCE_BUSY,
    libvirt.VIR_ERR_RPC,
}


class _Bitmap(msgspec.Struct):
    name: str


class _Data(msgspec.Struct):
    bitmaps: list[_Bitmap] = []


class _Specific(msgspec.Struct):
    data: _Data


class _ImageInfo(msgspec.Struct):
    """What of `qemu-img info` is looked at."""

    format_specific: _Specific = msgspec.field(name="format-specific")


def full_name(name: str) -> str:
    """The name at the host. `name`: letters, digits, dot, dash, underscore; at most 100 characters."""
    if not _NAME.match(name):
        raise InvalidInput(what=f"checkpoint name {name[:80]!r}", why="it has characters a name cannot have")
    return PREFIX + name


def listed(domain: Any) -> list[str]:
    """Our checkpoints, oldest first, without the prefix."""
    topological = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
    names = [checkpoint.getName() for checkpoint in domain.listAllCheckpoints(topological)]
    return [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]


def xml(name: str, devs: Sequence[str], all_devs: Iterable[str], note: str) -> str:
    """A `<domaincheckpoint>` over exactly `devs`; disks not named must say so, or libvirt takes them in."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = full_name(name)
    ET.SubElement(root, "description").text = note
    disks = ET.SubElement(root, "disks")
    for dev in all_devs:
        if dev in devs:
            ET.SubElement(disks, "disk", name=dev, checkpoint="bitmap")
        else:
            ET.SubElement(disks, "disk", name=dev, checkpoint="no")
    return ET.tostring(root, encoding="unicode")


def covered(domain: Any, name: str) -> set[str]:
    """The disks that have a bitmap of a checkpoint, by libvirt's record of it."""
    checkpoint = domain.checkpointLookupByName(full_name(name))
    disks = domxml.parse(checkpoint.getXMLDesc(0)).findall("disks/disk")
    return {disk.get("name", "") for disk in disks if disk.get("checkpoint") == "bitmap"}


def recall(domain: Any, name: str, devs: Sequence[str], all_devs: Iterable[str], *, created: int) -> bool:
    """Have libvirt list a checkpoint again whose bitmaps the images still hold; False when they do not.

    created: seconds since 1970 that libvirt orders checkpoints without a parent by.
    """
    root = domxml.parse(xml(name, devs, all_devs, "secondsite recalled"))
    for disk in root.iter("disk"):
        if disk.get("checkpoint") == "bitmap":
            disk.set("bitmap", full_name(name))
    ET.SubElement(root, "creationTime").text = str(created)
    known = listed(domain)
    if known:
        ET.SubElement(ET.SubElement(root, "parent"), "name").text = full_name(known[-1])
    flags = (
        libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    )
    try:
        domain.checkpointCreateXML(ET.tostring(root, encoding="unicode"), flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _DAEMON_CODES:
            raise
        return False
    return True


def note(domain: Any, name: str) -> str:
    """What was written down with a checkpoint; empty when there is nothing."""
    checkpoint = domain.checkpointLookupByName(full_name(name))
    return domxml.parse(checkpoint.getXMLDesc(0)).findtext("description") or ""


def delete(domain: Any, name: str, images: Iterable[str]) -> None:
    """Delete one; unknown is fine. Of a machine that is off, its bitmaps are taken out of `images`.

    Raises:
        libvirt.libvirtError: the daemon refused (busy, gone).
    """
    try:
        checkpoint = domain.checkpointLookupByName(full_name(name))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return
        raise
    if not domain.isActive():
        _delete_offline(checkpoint, full_name(name), images)
        return
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _DAEMON_CODES:
            raise
        # The bitmap is not there (QEMU was killed before it stored it): only libvirt's record is left.
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _delete_offline(checkpoint: Any, name: str, images: Iterable[str]) -> None:
    # libvirt deletes bitmaps through a running QEMU only. qemu-img takes the image's lock, so that a machine
    # started at this moment makes it fail instead of both writing.
    parent = checkpoint.getParent().getName() if _has_parent(checkpoint) else None
    for image in images:
        stored = _stored_bitmaps(image)
        if name not in stored:
            continue  # lost with a killed QEMU
        if parent in stored:
            _qemu_img("bitmap", "--merge", name, image, parent)
        _qemu_img("bitmap", "--remove", image, name)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def remove_orphans(domain: Any, images: Mapping[DiskId, str], all_devs: Sequence[str], created: int) -> None:
    """Remove bitmaps of ours that libvirt has no record of, as it is after a migration.

    Raises libvirt.libvirtError or HypervisorRefused: the daemon or the image is occupied.
    """
    known = set(listed(domain))
    holders: dict[str, list[str]] = {}
    for dev, image in images.items():
        for bitmap in _stored_bitmaps(image, shared=True):
            name = bitmap.removeprefix(PREFIX)
            if name != bitmap and name not in known:
                holders.setdefault(name, []).append(dev)
    for name, devs in sorted(holders.items()):
        if not domain.isActive():
            for holder in devs:
                _qemu_img("bitmap", "--remove", images[DiskId(holder)], full_name(name))
        elif recall(domain, name, devs, all_devs, created=created):
            delete(domain, name, images.values())


def _stored_bitmaps(image: str, *, shared: bool = False) -> set[str]:
    """Names of the bitmaps in an image; `shared`: also while a machine runs on it, as of its start."""
    options = ["-U"] if shared else []
    known = msgspec.json.decode(_qemu_img("info", *options, "--output=json", image), type=_ImageInfo)
    return {bitmap.name for bitmap in known.format_specific.data.bitmaps}


def _qemu_img(*arguments: str) -> bytes:
    run = subprocess.run(
        ["qemu-img", *arguments], check=False, capture_output=True, timeout=_OFFLINE_SECONDS_MAX
    )
    if run.returncode:
        why = run.stderr.decode(errors="replace").strip()[:400]
        raise HypervisorRefused(what=f"run qemu-img {arguments[0]} on {arguments[-1]}", why=why)
    return run.stdout


def _has_parent(checkpoint: Any) -> bool:
    try:
        return checkpoint.getParent() is not None
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return False
        raise
