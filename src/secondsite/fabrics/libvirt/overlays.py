"""Overlays of recovered machines: when the export beneath is needed no more, and back onto it after a death.

QEMU ends a block pull by writing an image's header without its backing file, while the tables that say where
the pulled blocks lie may still be in its memory: `stream_prepare` flushes nothing (QEMU 7.2, block/stream.c;
measured: QEMU killed at BLOCK_JOB_COMPLETED left an image that read as zeros). So a header alone proves
nothing. Every cluster of a pulled image is *present* (`qemu-img map`: allocated, or said to be zero), since a
raw export beneath gives all of them; an image is plain when the file itself says so for each, and was synced
after that was seen: what QEMU wrote a moment ago may be in the host's cache alone.

A power cut of the host is met by the same look, since no table is durable before the data it points at:
QEMU syncs the file before it writes a table (block/qcow2-cache.c, qcow2_cache_entry_flush; traced with QEMU
7.2 and a small cache of tables: in a pull, none of 144 pieces of them was written over unsynced data under
cache=writeback, and 16 were under cache=unsafe). So every mode of caching will do but the one that syncs
nothing (`syncing`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.files import fsync_directory
from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.definition import NAMESPACE, tag

# A disk's cache by which QEMU syncs nothing, whatever a guest or a table needs (libvirt's formatdomain).
UNSAFE = "unsafe"
_TOOL_SECONDS_MAX = 60
# An image's tables are read whole: 8 MiB of them for 64 GiB.
_MAP_SECONDS_MAX = 600


def syncing(driver: ET.Element) -> None:
    """Have a disk's driver sync what it is told to; its mode of caching stays where that does."""
    if driver.get("cache") == UNSAFE:
        driver.set("cache", "writeback")


def backing_url(export: str, socket: str) -> str:
    """What an overlay's header names beneath it."""
    return f"nbd+unix:///{export}?socket={socket}"


def backing_element(export: str, socket: str) -> ET.Element:
    """The same for a domain. Said in full, to the chain's end: libvirt then opens nothing to find out."""
    store = ET.Element("backingStore", type="network")
    ET.SubElement(store, "format", type="raw")
    source = ET.SubElement(store, "source", protocol="nbd", name=export)
    ET.SubElement(source, "host", transport="unix", socket=socket)
    ET.SubElement(store, "backingStore")
    return store


def info(path: str) -> Mapping[str, Any]:
    """What `qemu-img info` says of an image that may be in use. Raises CalledProcessError."""
    command = ["qemu-img", "info", "-U", "--output=json", path]
    made = subprocess.run(command, capture_output=True, check=True, timeout=_TOOL_SECONDS_MAX)
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def is_made(path: str) -> bool:
    """Whether qemu-img had finished: an image it was killed in has no header, or none that it can read."""
    try:
        return bool(info(path).get("format") == "qcow2")
    except subprocess.CalledProcessError:
        return False


def backing(path: str) -> str | None:
    """What lies beneath, as the image's own header says."""
    found = info(path).get("backing-filename")
    return str(found) if found else None


def is_plain(path: str) -> bool:
    """Whether the image needs nothing beneath, by what its file holds now."""
    return backing(path) is None and _is_whole(path)


def _is_whole(path: str) -> bool:
    """Of an image that names nothing beneath: whether it holds every cluster itself."""
    command = ["qemu-img", "map", "-U", "--output=json", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as told:
        assert told.stdout is not None, "a pipe"
        try:
            # a line an extent, and there may be millions
            if any(b'"present": false' in line for line in told.stdout):
                return False
            return told.wait(_MAP_SECONDS_MAX) == 0
        finally:
            told.kill()


def make_durable(domain: Any, paths: Sequence[str]) -> str:
    """Have QEMU write what it still keeps of its pulled images, and sync them. What is in the way, or "".

    Stopping a machine flushes all its images (`do_vm_stop`: bdrv_flush_all, QEMU 7.2, softmmu/cpus.c), and no
    other call of libvirt does. It stands for as long as that takes; most of it is synced before.
    """
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED:
        if reason != libvirt.VIR_DOMAIN_PAUSED_USER:
            return "it stands still, and what it copied cannot be written to its disks"
        domain.resume()  # a gateway before us died in the middle of this
    _sync(paths)
    lacking = _lacking(paths)
    if lacking:  # guests that sync their own writes have had it written already
        domain.suspend()
        domain.resume()
        lacking = _lacking(paths)
    if lacking:
        return f"{lacking} does not hold yet all that was copied"
    _sync(paths)  # after the look: what it saw may have been in the host's cache alone
    return ""


def _lacking(paths: Sequence[str]) -> str:
    """The first that is not plain; empty: all are."""
    return next((path for path in paths if not is_plain(path)), "")


def _sync(paths: Sequence[str]) -> None:
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    for directory in {Path(path).parent for path in paths}:
        fsync_directory(directory)  # images that were made for it


def stand_on_exports(connection: Any, domain: Any) -> bool:
    """Before a start: put overlays back on their exports that lost their header's word of it too early.

    Their QEMU died between the end of a pull and the flush. What is missing is read from the export again;
    what the guest had synced is there. False: an export is not known (a record of an earlier version).
    """
    root = domxml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
    exports = _exports(domain)
    changed = False
    for disk in root.findall("devices/disk"):
        source = disk.find("source")
        path = source.get("file", "") if source is not None else ""
        if path not in exports:
            continue
        export, bare = exports[path], backing(path) is None
        if bare and _is_whole(path):
            continue
        if export is None:
            if bare:
                return False
            continue
        if bare:
            rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing_url(*export)]
            subprocess.run([*rebase, path], capture_output=True, check=True, timeout=_TOOL_SECONDS_MAX)
        if not any(store.get("type") for store in disk.findall("backingStore")):
            for store in disk.findall("backingStore"):
                disk.remove(store)
            disk.append(backing_element(*export))
            changed = True
    if changed:
        connection.defineXML(ET.tostring(root, encoding="unicode"))
    return True


def record(path: str, export: str, socket: str) -> ET.Element:
    """An overlay in the domain's own record of it."""
    return ET.Element(tag("overlay"), path=path, export=export, socket=socket)


def _exports(domain: Any) -> dict[str, tuple[str, str] | None]:
    text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
    found: dict[str, tuple[str, str] | None] = {}
    for child in domxml.parse(text):
        if child.tag.rpartition("}")[2] == "overlay":
            export, socket = child.get("export"), child.get("socket")
            found[child.get("path", "")] = (export, socket) if export and socket else None
    return found
