"""The definition a machine had at its own host, kept inside the one it gets where it is recovered.

It travels in the metadata, and so in every point taken there: when the machine comes back to its host it is
defined as it was, with that host's bridges, addresses and sizes, whatever the other site needed. Only its
disks are as the other site has them: one that was added there comes along, one that was removed is gone.

    <definitions xmlns="urn:secondsite:original:1">
      <definition host="UUID of the host">base64 of zlib of the domain XML</definition>
    </definitions>
"""

from __future__ import annotations

import base64
import binascii
import copy
import zlib
from xml.etree import ElementTree as ET

from secondsite.base.errors import InvalidInput
from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.definition import NAMESPACE as OURS
from secondsite.fabrics.libvirt.definition import source_host

NAMESPACE = "urn:secondsite:original:1"
# A machine that went on from site to site: the newest of so many hosts.
HOSTS_MAX = 4

_OUTER, _INNER = f"{{{NAMESPACE}}}definitions", f"{{{NAMESPACE}}}definition"


def at_home(root: ET.Element, host: str) -> ET.Element | None:
    """The definition to come back with, where `host` is one the machine had; None: it is new here."""
    for kept in root.findall(f"metadata/{_OUTER}/{_INNER}"):
        if host and kept.get("host") == host:
            found = _unpacked(kept.text or "")
            if found is not None:
                _take_disks(found, root)
                return found
    return None


def keep(root: ET.Element, into: ET.Element) -> None:
    """Add a point's definition, and what it has kept itself, to the metadata of what is made of it."""
    kept = [copy.deepcopy(one) for one in root.findall(f"metadata/{_OUTER}/{_INNER}")]
    host = source_host(root)
    if host:
        kept = [one for one in kept if one.get("host") != host]
        plain = copy.deepcopy(root)
        forget(plain)
        made = ET.Element(_INNER, host=host)
        made.text = _packed(plain)
        kept.append(made)
    if kept:
        outer = ET.SubElement(into, _OUTER)
        outer.extend(kept[-HOSTS_MAX:])


def forget(root: ET.Element) -> None:
    """What is ours in the metadata, so that definitions do not grow inside each other."""
    metadata = root.find("metadata")
    if metadata is None:
        return
    for child in list(metadata):
        if child.tag.startswith(("{urn:secondsite:", "urn:secondsite:")) or child.tag.startswith(
            f"{{{OURS}}}"
        ):
            metadata.remove(child)


def _packed(root: ET.Element) -> str:
    return base64.b64encode(zlib.compress(ET.tostring(root, encoding="utf-8"), 9)).decode()


def _unpacked(text: str) -> ET.Element | None:
    # it went through the other site's libvirt and a point that is sealed; damaged, the machine is new here
    try:
        packed = zlib.decompressobj()
        data = packed.decompress(base64.b64decode(text.encode(), validate=True), domxml.XML_BYTES_MAX)
        if packed.unconsumed_tail:
            return None
        return domxml.parse(data.decode())
    except (binascii.Error, zlib.error, UnicodeError, InvalidInput):
        return None


def _take_disks(found: ET.Element, root: ET.Element) -> None:
    """Disks of the other site that the original does not know; those it does are as it had them."""
    devices = found.find("devices")
    if devices is None:
        return
    known = {domxml.target_dev(disk) for disk in devices.findall("disk")}
    for disk in root.findall("devices/disk"):
        if domxml.target_dev(disk) in known or domxml.is_settings_drive(disk):
            continue
        added = copy.deepcopy(disk)
        for address in added.findall("address"):
            added.remove(address)  # of a bus of the other site
        devices.append(added)
