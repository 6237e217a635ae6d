"""What a host can start, as its capabilities say it: machine types, firmware, processors."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.fabrics.libvirt import domxml

# "pc-q35-7.2", "pc-i440fx-bionic": a family, and usually a version
_VERSIONED = re.compile(r"(?P<family>.+)-(?P<major>\d+)\.(?P<minor>\d+)\Z")
_UUIDS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_KINDS = {"pc": "pc-i440fx", "q35": "pc-q35"}


@dataclass(frozen=True)
class HostTypes:
    """For one kind of guest (its architecture, KVM or emulated)."""

    host: str  # its UUID
    virtual: bool  # whether it has this kind of guest at all
    machines: Sequence[str]  # every name, aliases too; empty where it does not say
    aliases: dict[str, str]  # alias -> what it stands for
    firmware: frozenset[str]  # "bios", "efi"
    cpus_max: int | None
    buses: frozenset[str]  # of disks; empty where it does not say

    def knows(self, machine: str) -> bool:
        """Whether it can start one of this type, as far as it says."""
        return not self.machines or machine in self.machines

    def nearest(self, machine: str) -> str:
        """The type itself, or the nearest of its family: the newest that is not above it, else the oldest.

        Of a family the host does not have, the type itself: the host refuses it in its own words.
        """
        if self.knows(machine):
            return machine
        match = _VERSIONED.match(machine)
        if match is None:
            return machine
        wanted = (int(match["major"]), int(match["minor"]))
        known = []
        for name in self.machines:
            found = _VERSIONED.match(name)
            if found is not None and found["family"] == match["family"]:
                known.append(((int(found["major"]), int(found["minor"])), name))
        if not known:
            return machine
        known.sort()
        below = [name for version, name in known if version <= wanted]
        return below[-1] if below else known[0][1]


def family(machine: str, aliases: dict[str, str]) -> str:
    """What its buses are like: two types of one family have the same."""
    name = aliases.get(machine, _KINDS.get(machine, machine))
    match = _VERSIONED.match(name)
    return match["family"] if match else name


def host_uuid(connection: Any) -> str:
    """The host's own; empty where it has none. Asked once a connection: every point's definition names it."""
    if connection not in _UUIDS:
        _UUIDS[connection] = domxml.parse(connection.getCapabilities()).findtext("host/uuid") or ""
    return _UUIDS[connection]


def read(connection: Any, root: ET.Element) -> HostTypes:
    """Of the kind of guest that `root` is."""
    os_type = root.find("os/type")
    arch = (os_type.get("arch") if os_type is not None else None) or "x86_64"
    kind = root.get("type", "kvm")
    capabilities = domxml.parse(connection.getCapabilities())
    machines, aliases, virtual = _machines(capabilities, arch, kind)
    try:
        domain = domxml.parse(connection.getDomainCapabilities(None, arch, None, kind))
    except libvirt.libvirtError:
        domain = ET.Element("domainCapabilities")  # another kind of guest, or a driver that does not say
    cpus = domain.find("vcpu")
    return HostTypes(
        host=capabilities.findtext("host/uuid") or "",
        virtual=virtual,
        machines=machines,
        aliases=aliases,
        firmware=frozenset(_values(domain, "os/enum[@name='firmware']")),
        cpus_max=int(cpus.get("max", "0")) or None if cpus is not None else None,
        buses=frozenset(_values(domain, "devices/disk/enum[@name='bus']")),
    )


def _values(domain: ET.Element, path: str) -> list[str]:
    return [value.text or "" for value in domain.findall(f"{path}/value")]


def _machines(capabilities: ET.Element, arch: str, kind: str) -> tuple[list[str], dict[str, str], bool]:
    names: list[str] = []
    aliases: dict[str, str] = {}
    virtual = False
    for guest in capabilities.findall("guest"):
        found = guest.find("arch")
        if guest.findtext("os_type") != "hvm" or found is None or found.get("name") != arch:
            continue
        virtual = any(domain.get("type") == kind for domain in found.findall("domain"))
        for machine in [*found.findall("machine"), *found.findall(f"domain[@type='{kind}']/machine")]:
            name = (machine.text or "").strip()
            if name and name not in names:
                names.append(name)
            canonical = machine.get("canonical")
            if canonical:
                aliases[name] = canonical
                if canonical not in names:
                    names.append(canonical)
    return names, aliases, virtual
