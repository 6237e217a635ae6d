"""What travels with every point so that the machine can be defined elsewhere: XML and firmware variables."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.files import read_limited
from secondsite.fabrics.libvirt import domxml, hosttypes, inventory
from secondsite.fabrics.libvirt.inventory import Found
from secondsite.model.machines import Definition, Pool

FORMAT = "libvirt-domain"
NAMESPACE = "urn:secondsite:libvirt:1"
# OVMF's are 128 or 528 KiB; they travel inside every point.
FIRMWARE_BYTES_MAX = 4 * 1024 * 1024

ET.register_namespace("secondsite", NAMESPACE)


def tag(name: str) -> str:
    """A name of ours inside `<metadata>`."""
    return f"{{{NAMESPACE}}}{name}"


def read(found: Found, known_pools: Iterable[Pool]) -> Definition:
    """The definition as of now: what libvirt would start next time, with its secrets and firmware variables.

    A disk's pool is no part of domain XML, and the mapping goes by pool: it is added as metadata, as is which
    host this is of.
    """
    pools = list(known_pools)
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    root = domxml.parse(found.domain.XMLDesc(flags))
    _add_plugged_in(root, found.xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    for old in metadata.findall(tag("source")):
        metadata.remove(old)
    source = ET.SubElement(metadata, tag("source"), host=hosttypes.host_uuid(found.domain.connect()))
    for disk in found.disks:
        pool = disk.pool or inventory.pool_of(disk.path, pools)
        if disk.copied:
            ET.SubElement(source, tag("disk"), {"dev": disk.dev, **({"pool": pool} if pool else {})})
    # the live definition names it also where the next start's does not yet
    path = domxml.nvram_path(found.xml) or domxml.nvram_path(root)
    variables = None
    if path and Path(path).exists():
        variables = read_limited(Path(path), size_bytes_max=FIRMWARE_BYTES_MAX)
    return Definition(format=FORMAT, text=ET.tostring(root, encoding="unicode"), firmware_variables=variables)


def _add_plugged_in(root: ET.Element, live: ET.Element) -> None:
    """Disks that only the running machine has are in its points: a recovered one needs a place for them."""
    known = {domxml.target_dev(disk) for disk in root.findall("devices/disk")}
    devices = root.find("devices")
    if devices is None:
        return
    for disk in live.findall("devices/disk"):
        if domxml.target_dev(disk) in known:
            continue
        added = copy.deepcopy(disk)
        for name in ("alias", "backingStore", "mirror"):  # of the running process
            for element in added.findall(name):
                added.remove(element)
        devices.append(added)


def pools_of(root: ET.Element) -> dict[str, str]:
    """Disk -> pool at the source, as `read` wrote it down."""
    found = {}
    for disk in root.findall(f"metadata/{tag('source')}/{tag('disk')}"):
        if disk.get("pool"):
            found[disk.get("dev", "")] = disk.get("pool", "")
    return found


def source_host(root: ET.Element) -> str:
    """The UUID of the host a definition was read at; empty in one of an earlier version."""
    source = root.find(f"metadata/{tag('source')}")
    return source.get("host", "") if source is not None else ""
