"""Isolating a source that is not its machine's authority: links down, paused, kept from starting.

The domain's own metadata says that it is isolated and how it was before, so that the guard of the host, which
outlives the gateway, keeps it so: a machine that somebody resumes or starts, or that starts with its host, is
paused again within a second, and its links are down from its first instant. Nothing of its disks, checkpoints
and definition is touched.

    <held xmlns="urn:secondsite:held:1" why="..." autostart="1" running="1" lifting="0">
      <nic mac="52:54:00:..." link="up"/>
    </held>
"""

from __future__ import annotations

import contextlib
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.fabrics.libvirt import domxml

NAMESPACE = "urn:secondsite:held:1"
_KEY = "held"
_RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_PMSUSPENDED)


def isolate(domain: Any, *, why: str, autostart: bool) -> bool:
    """See `Fabric.isolate`. autostart: it may be kept from starting with its host."""
    note, changed = read(domain), False
    if note is None or note.get("lifting") == "1":
        try:
            _write(domain, _describe(domain, why))
        except libvirt.libvirtError:  # no room for the note: to stand still needs none; it is tried again
            _stand_still(domain)
            raise
        changed = True
    changed |= enforce(domain)
    if autostart and domain.isPersistent() and domain.autostart():
        domain.setAutostart(0)
        changed = True
    return changed


def why(domain: Any) -> str | None:
    """Why it is isolated; None when it is not."""
    note = read(domain)
    return note.get("why", "") if note is not None and note.get("lifting") != "1" else None


def enforce(domain: Any) -> bool:
    """Links down, then paused, where they are not; True when there was something to do."""
    changed = False
    try:
        for flag in _flags(domain):
            changed |= _set_links(domain, flag, {})
    finally:  # also where the definition cannot be written
        changed |= _stand_still(domain)
    return changed


def _stand_still(domain: Any) -> bool:
    runs = bool(domain.isActive()) and domain.state()[0] in _RUNS
    if runs:
        domain.suspend()
    return runs


def enforce_all(connection: Any) -> list[Any]:
    """Keep every isolated machine of the host so; those that had to be isolated again."""
    again = []
    for domain in connection.listAllDomains(0):
        with contextlib.suppress(libvirt.libvirtError):  # it vanished, or changes just now: seen next time
            if why(domain) is not None and enforce(domain):
                again.append(domain)
    return again


def lift(domain: Any, *, run: bool) -> None:
    """See `Fabric.lift_isolation`. The note goes last: a crash of ours before leaves it to be repeated."""
    note = read(domain)
    if note is None:
        return
    if note.get("lifting") != "1":
        note.set("lifting", "1")  # the guard looks away from here on
        _write(domain, note)
    before = {nic.get("mac", ""): nic.get("link", "up") for nic in note}
    for flag in _flags(domain):
        _set_links(domain, flag, before)
    if note.get("autostart") == "1" and domain.isPersistent():
        domain.setAutostart(1)
    if run:
        if not domain.isActive():
            domain.create()
        elif domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
    for flag in _flags(domain):
        with contextlib.suppress(libvirt.libvirtError):
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, _KEY, NAMESPACE, flag)


def read(domain: Any) -> ET.Element | None:
    """The note, of the definition first: it outlives the process."""
    for flag in reversed(_flags(domain)):
        try:
            text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flag)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                continue
            raise
        return domxml.parse(text)
    return None


def _flags(domain: Any) -> list[int]:
    flags = [libvirt.VIR_DOMAIN_AFFECT_LIVE] if domain.isActive() else []
    return [*flags, *([libvirt.VIR_DOMAIN_AFFECT_CONFIG] if domain.isPersistent() else [])]


def _describe(domain: Any, why: str) -> ET.Element:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
    root = domxml.parse(domain.XMLDesc(flags))
    autostart = "1" if domain.isPersistent() and domain.autostart() else "0"
    running = "1" if domain.isActive() and domain.state()[0] in _RUNS else "0"
    note = ET.Element(_KEY, why=why, autostart=autostart, running=running, lifting="0")
    for interface in root.findall("devices/interface"):
        ET.SubElement(note, "nic", mac=_mac(interface), link=_link(interface))
    return note


def _write(domain: Any, note: ET.Element) -> None:
    # libvirt puts the namespace on it; what it hands out has it in every name
    plain = ET.Element(_KEY, dict(note.attrib))
    for nic in note:
        ET.SubElement(plain, "nic", dict(nic.attrib))
    text = ET.tostring(plain, encoding="unicode")
    for flag in _flags(domain):
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _KEY, NAMESPACE, flag)


def _mac(interface: ET.Element) -> str:
    mac = interface.find("mac")
    return mac.get("address", "") if mac is not None else ""


def _link(interface: ET.Element) -> str:
    link = interface.find("link")
    return link.get("state", "up") if link is not None else "up"


def _set_links(domain: Any, flag: int, wanted: dict[str, str]) -> bool:
    """Bring each adapter's link to what is wanted, by its address; those not named go down."""
    live = flag == libvirt.VIR_DOMAIN_AFFECT_LIVE
    root = domxml.parse(domain.XMLDesc(0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE))
    changed = False
    for interface in root.findall("devices/interface"):
        state = wanted.get(_mac(interface), "down")
        if _link(interface) == state:
            continue
        for old in interface.findall("link"):
            interface.remove(old)
        ET.SubElement(interface, "link", state=state)
        domain.updateDeviceFlags(ET.tostring(interface, encoding="unicode"), flag)
        changed = True
    return changed
