"""Making a recovered machine's disks plain local ones while it runs: libvirt's block pull, disk by disk.

Everything is read from libvirt and the images each time, nothing is remembered: a gateway that ends in the
middle, a pull that failed because its export was gone, a machine that was switched off and on are all met by
calling `step` again. What was pulled stays in the overlay, so a pull begun again reads only what is left.
It is finished when the images' files hold all of it (`overlays`): the points beneath are deleted then.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.fabrics.base import Flattening, Recovered
from secondsite.fabrics.errors import SourceOff
from secondsite.fabrics.libvirt import domxml, life, overlays
from secondsite.fabrics.libvirt.definition import NAMESPACE
from secondsite.fabrics.libvirt.errors import words

_RATE_MIN = 64 * 1024


def step(connection: Any, recovered: Recovered, bytes_per_second: int | None) -> Flattening:
    """See `Fabric.flatten`."""
    domain = life.lookup(connection, recovered.id)
    if domain is None or not domain.isActive():
        raise SourceOff(machine=recovered.name, why="its disks are copied while it runs, and it is off")
    root = domxml.parse(domain.XMLDesc(0))
    done = total = 0
    pending, error = [], ""
    for disk in root.findall("devices/disk"):
        source = disk.find("source")
        if source is None or source.get("file") not in recovered.overlays:
            continue
        dev = domxml.target_dev(disk)
        # Not `blockInfo`: QEMU 7.2 dies (SIGSEGV) of query-named-block-nodes while a pull ends; measured
        seen = overlays.info(source.get("file", ""))
        size = int(seen["virtual-size"])
        total += size
        job = domain.blockJobInfo(dev, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
        if job:
            done += size * job["cur"] // job["end"] if job.get("end") else 0
            pending.append(dev)
        elif not seen.get("backing-filename"):
            done += size
        else:
            pending.append(dev)
            error = error or _begin(domain, dev, bytes_per_second)
    if pending:
        return Flattening(done, total, finished=False, error=error)
    if error := overlays.make_durable(domain, recovered.overlays):
        return Flattening(total, total, finished=False, error=error)
    _forget_exports(connection, domain, recovered)
    return Flattening(total, total, finished=True)


def _begin(domain: Any, dev: str, bytes_per_second: int | None) -> str:
    """One disk at a time, so that the rate is of all of them; the next call begins the next one."""
    root = domxml.parse(domain.XMLDesc(0))
    for disk in root.findall("devices/disk"):
        other = domxml.target_dev(disk)
        if other != dev and disk.get("device", "disk") == "disk" and domain.blockJobInfo(other):
            return ""
    rate = max(bytes_per_second, _RATE_MIN) if bytes_per_second else 0
    try:
        domain.blockPull(dev, rate, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
    except libvirt.libvirtError as caught:
        return words(caught)
    return ""


def _forget_exports(connection: Any, domain: Any, recovered: Recovered) -> None:
    """Take the export out of the definition, which the next start would look for."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    root = domxml.parse(domain.XMLDesc(flags))
    changed = False
    for disk in root.findall("devices/disk"):
        source = disk.find("source")
        if source is None or source.get("file") not in recovered.overlays:
            continue
        for store in disk.findall("backingStore"):
            if store.get("type"):
                disk.remove(store)
                changed = True
    if changed:
        connection.defineXML(ET.tostring(root, encoding="unicode"))


def settle(connection: Any, recovered: Recovered, *, autostart: bool) -> None:
    """See `Fabric.settle_recovered`. The record of ours goes last: it names the files."""
    domain = life.lookup(connection, recovered.id)
    if domain is None:
        return
    for path in recovered.overlays:
        if Path(path).exists() and overlays.backing(path) is not None:
            raise SourceOff(machine=recovered.name, why=f"{path} still stands on an export")
    domain.setAutostart(int(autostart))
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    with contextlib.suppress(libvirt.libvirtError):  # it has none any more
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, "secondsite", NAMESPACE, flags)
