"""What a machine would be at this host, and what speaks against it: looked at before anything is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.units import format_bytes
from secondsite.fabrics.base import RecoverySpec
from secondsite.fabrics.libvirt import building, domxml, overlays, settings
from secondsite.fabrics.libvirt.building import Base, Files
from secondsite.fabrics.libvirt.definition import tag
from secondsite.fabrics.libvirt.errors import words
from secondsite.fabrics.libvirt.mapping import MappedNic
from secondsite.model.machines import Network
from secondsite.model.outlook import Finding, NicOutlook, Outlook
from secondsite.model.recovered import NEW, Addressing, DiskBus

_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "K": 1024, "KiB": 1024, "k": 1024, "MB": 10**6, "M": 1024**2}
_UNITS |= {"MiB": 1024**2, "GB": 10**9, "G": 1024**3, "GiB": 1024**3, "TB": 10**12, "TiB": 1024**4}
# Nothing is made: paths of what would be.
_NOWHERE = "/secondsite-none"


def look(connection: Any, spec: RecoverySpec, networks: list[Network]) -> Outlook:
    """See `Fabric.outlook`."""
    base = building.begin(connection, spec)
    before = base.root.find("os/type")
    caching = list(_caching(base))  # before it is changed
    meant = spec.settings.machine_type or (before.get("machine") if before is not None else "") or ""
    nics = building.adapters(spec, base)
    shown = tuple(_nic(place, nic, base) for place, nic in sorted(nics.items()))
    drive = settings.drive_bus(base.root, spec.settings).value if building.needs_drive(spec) else ""
    disks = {str(disk.id): f"{_NOWHERE}/{disk.id}" for disk in spec.disks}
    nvram = f"{_NOWHERE}/vars" if spec.definition.firmware_variables else None
    files = Files(disks, f"{_NOWHERE}/log", nvram, f"{_NOWHERE}/drive" if drive else None)
    name = building.name_of(spec, base)
    built = building.finish(spec, base, files, ET.Element(tag("recovered"), kind="outlook")).root
    findings = [
        *_adapters(base, nics, networks),
        *_type(base, built, meant),
        *_processors(connection, base, built),
        *_memory(connection, built),
        *_firmware(base, built),
        *_buses(base, built),
        *caching,
        *_boot(spec, base),
        *_addresses(connection, spec, nics),
    ]
    machine = built.find("os/type")
    return Outlook(
        name=name,
        cpus=cpus(built),
        memory_bytes=memory_bytes(built),
        firmware=domxml.firmware(built),
        machine_type=machine.get("machine", "") if machine is not None else "",
        disk_buses=tuple(sorted(set(_disk_buses(built)))),
        nics=shown,
        injection=spec.settings.injection,
        drive_bus=drive,
        home=base.home,
        findings=tuple(findings),
    )


def _cpus_max(root: ET.Element) -> int:
    return int(root.findtext("vcpu") or 1)


def cpus(root: ET.Element) -> int:
    """Those a guest has: of a live definition now, of another one when it starts; more may be plugged in."""
    vcpu = root.find("vcpu")
    return int(vcpu.get("current") or vcpu.text or 1) if vcpu is not None else 1


def memory_bytes(root: ET.Element) -> int:
    """What a guest has at most; how much of it a balloon takes back changes all the time."""
    memory = root.find("memory")
    if memory is None:
        return 0
    return int(memory.text or 0) * _UNITS.get(memory.get("unit", "KiB"), 1024)


def _nic(place: int, nic: MappedNic, base: Base) -> NicOutlook:
    wanted = base.set.get(place)
    network = nic.network or ""
    if nic.as_is:
        network = domxml.nic_network(base.root.findall("devices/interface")[place]) or ""
    made = nic.mac != base.macs[place] and (wanted is None or nic.mac != wanted.mac)
    return NicOutlook(
        place=place + 1,
        mac=NEW if made else nic.mac or NEW,
        network=network,
        addressing=wanted.addressing if wanted is not None else Addressing.KEEP,
        addresses=wanted.addresses if wanted is not None else (),
    )


def _adapters(base: Base, nics: dict[int, MappedNic], networks: list[Network]) -> Iterator[Finding]:
    for why in base.against:
        yield Finding(
            name="adapters", cause=why, action="Correct the settings of this machine and direction."
        )
    known = {network.name: network for network in networks}
    shown = ", ".join(sorted(known)) or "none"
    for place, nic in sorted(nics.items()):
        if nic.as_is or nic.network is None or place not in base.set:
            continue
        found = known.get(nic.network)
        if found is None:
            cause = (
                f"adapter {place + 1}: there is no network {nic.network} at this site (there are: {shown})"
            )
            yield Finding(name="networks", cause=cause, action="Make it, or set another one.")
        elif not found.active:
            cause = f"adapter {place + 1}: the network {nic.network} is not active"
            yield Finding(name="networks", cause=cause, action="Start it, or set another one.")


def _type(base: Base, built: ET.Element, meant: str) -> Iterator[Finding]:
    if not base.types.virtual:
        cause = f"this host has no machines of the kind {built.get('type')} for this processor"
        yield Finding(
            name="machine-type", cause=cause, action="Take another host, or turn KVM on in this one."
        )
        return
    element = built.find("os/type")
    machine = element.get("machine", "") if element is not None else ""
    if machine and not base.types.knows(machine):
        cause = f"this host has no machine type {machine}, and none that is near"
        yield Finding(name="machine-type", cause=cause, action="Set a machine type that this host has.")
    elif machine != meant:
        cause = f"this host has no machine type {meant}; {machine} is the nearest it has"
        yield Finding(name="machine-type", cause=cause, action="Nothing, or set another one.", required=False)


def _processors(connection: Any, base: Base, built: ET.Element) -> Iterator[Finding]:
    wanted, most, host = _cpus_max(built), base.types.cpus_max, int(connection.getInfo()[2])
    if most is not None and wanted > most:
        cause = f"it would have {wanted} processors, and this host allows {most}"
        yield Finding(name="processors", cause=cause, action="Set fewer.")
    elif wanted > host:
        cause = f"it would have {wanted} processors, and this host has {host}: it would be slow"
        yield Finding(name="processors", cause=cause, action="Set fewer.", required=False)


def _memory(connection: Any, built: ET.Element) -> Iterator[Finding]:
    wanted = memory_bytes(built)
    stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    total = int(stats.get("total", 0)) * 1024
    # what is cached of files is given back when it is asked for
    free = sum(int(stats.get(name, 0)) for name in ("free", "buffers", "cached")) * 1024
    if total and wanted > total:
        cause = f"it would have {format_bytes(wanted)} of memory, and this host has {format_bytes(total)}"
        yield Finding(name="memory", cause=cause, action="Set less, or take another host.")
    elif total and wanted > free:
        cause = (
            f"it would have {format_bytes(wanted)} of memory, and {format_bytes(free)} of this host are free"
        )
        yield Finding(
            name="memory", cause=cause, action="Set less, or stop something else here.", required=False
        )


def _firmware(base: Base, built: ET.Element) -> Iterator[Finding]:
    wanted = domxml.firmware(built)
    loader = built.find("os/loader")
    if wanted == "uefi" and loader is not None and (loader.text or "").strip():
        return  # a file that is here
    if wanted == "uefi" and base.types.firmware and "efi" not in base.types.firmware:
        yield Finding(
            name="firmware",
            cause="it starts by UEFI, and this host has no such firmware",
            action="Install it (on Debian the package ovmf).",
        )
    if wanted != domxml.firmware(base.point):
        yield Finding(
            name="firmware",
            cause=f"it was installed for another firmware than {wanted}: it may not start",
            action="Try it in a test failover.",
            required=False,
        )


def _disk_buses(built: ET.Element) -> Iterator[str]:
    for disk in built.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and disk.get("device", "disk") == "disk" and not domxml.is_settings_drive(disk):
            yield target.get("bus", "")


def _buses(base: Base, built: ET.Element) -> Iterator[Finding]:
    buses = set(_disk_buses(built))
    machine = built.find("os/type")
    if DiskBus.IDE.value in buses and machine is not None and "q35" in machine.get("machine", ""):
        cause = "its disks are on IDE, which machines of the type q35 do not have"
        yield Finding(name="disks", cause=cause, action="Set the disks' bus to sata.")
    for bus in sorted(buses - base.types.buses) if base.types.buses else ():
        yield Finding(name="disks", cause=f"this host has no {bus} disks", action="Set another bus.")


def _caching(base: Base) -> Iterator[Finding]:
    for disk in base.root.findall("devices/disk"):
        driver = disk.find("driver")
        if driver is not None and driver.get("cache") == overlays.UNSAFE:
            dev = domxml.target_dev(disk)
            cause = f"disk {dev} has cache=unsafe, with which a power cut may leave nothing of what it held"
            action = "Nothing: here it has cache=writeback. Set it back after the commit if it was meant."
            yield Finding(name="disks", cause=cause, action=action, required=False)


def _boot(spec: RecoverySpec, base: Base) -> Iterator[Finding]:
    disks = {str(disk.id) for disk in spec.disks}
    for name in spec.settings.boot_order:
        place = settings.place_of(name, base.macs)
        if name not in disks and not (place is not None and 0 <= place < len(base.macs)):
            cause = f"it has no disk or adapter {name} to boot from"
            yield Finding(name="boot-order", cause=cause, action="Correct the boot order.")


def _addresses(connection: Any, spec: RecoverySpec, nics: dict[int, MappedNic]) -> Iterator[Finding]:
    wanted = set(spec.settings.static_addresses)
    if not wanted or all(nic.network is None and not nic.as_is for nic in nics.values()):
        return
    for address, who in sorted(_in_use(connection).items()):
        if address in wanted:
            cause = f"the address {address} is in use at this site, by {who}"
            yield Finding(name="addresses", cause=cause, action="Free it, or give another one.")


def _in_use(connection: Any) -> dict[str, str]:
    """Addresses this host knows to be taken: of its networks, their leases, and machines it heard."""
    found = {}
    for network in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            for ip in domxml.parse(network.XMLDesc(0)).findall("ip"):
                found[ip.get("address", "")] = f"the network {network.name()}"
            for lease in network.DHCPLeases():
                found[lease["ipaddr"]] = (
                    f"{lease.get('hostname') or lease['mac']} (a lease of {network.name()})"
                )
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            heard = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP, 0)
            for interface in heard.values():
                for address in interface.get("addrs") or ():
                    found[address["addr"]] = domain.name()
    return found


def refused(connection: Any, built: ET.Element) -> str:
    """Why libvirt would not take a definition, in its words; empty where it would."""
    try:
        connection.domainXMLToNative("qemu-argv", ET.tostring(built, encoding="unicode"), 0)
    except libvirt.libvirtError as error:
        return words(error)
    return ""
