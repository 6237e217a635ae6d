"""What a libvirt host has: itself, its machines with the reasons against protecting them, networks, pools."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.fabrics.libvirt import domxml, refusals
from secondsite.fabrics.libvirt.domxml import DomainDisk
from secondsite.fabrics.libvirt.errors import words
from secondsite.model.ids import MachineId, disk_id, machine_id
from secondsite.model.machines import Disk, Host, Machine, Network, Nic, Pool, PowerState

_POWER = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.OFF,
}


@dataclass(frozen=True)
class Found:
    """A domain as one look at it gave it."""

    domain: Any  # libvirt.virDomain
    xml: ET.Element
    disks: tuple[DomainDisk, ...]  # every one, volumes resolved to paths


@dataclass(frozen=True)
class Chosen:
    """Which disks of a machine are meant: those named (None: all, also those to come) but not `left_out`."""

    named: Collection[str] | None = None
    left_out: Collection[str] = ()

    def has(self, dev: str) -> bool:
        """Whether a disk is."""
        return (self.named is None or dev in self.named) and dev not in self.left_out


ALL_DISKS = Chosen()


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def host(connection: Any) -> Host:
    """The host itself."""
    info = connection.getInfo()
    return Host(
        name=connection.getHostname(),
        hypervisor=f"{connection.getType()} {_version(connection.getVersion())}, "
        f"libvirt {_version(connection.getLibVersion())}",
        memory_bytes=info[1] * 1024 * 1024,
        cpus=info[2],
    )


def _resolved(connection: Any, disk: DomainDisk) -> DomainDisk:
    if disk.kind != "volume" or not disk.pool or not disk.volume:
        return disk
    try:
        volume = connection.storagePoolLookupByName(disk.pool).storageVolLookupByName(disk.volume)
        return replace(disk, path=volume.path())
    except libvirt.libvirtError:
        return disk  # the pool is off: its size cannot be read either, which becomes the reason


def look(connection: Any, domain: Any) -> Found:
    """Read a domain's definition as it is now (running: the live one)."""
    xml = domxml.parse(domain.XMLDesc(0))
    return Found(domain, xml, tuple(_resolved(connection, disk) for disk in domxml.disks(xml)))


def look_all(connection: Any) -> list[Found]:
    """Every domain; those that vanish while we look are left out."""
    found = []
    for domain in connection.listAllDomains(0):
        try:
            found.append(look(connection, domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def image_users(everything: Iterable[Found]) -> dict[str, set[str]]:
    """Image path -> names of the machines that have it as a disk of their own."""
    users: dict[str, set[str]] = {}
    for found in everything:
        for disk in found.disks:
            if disk.copied and disk.path:
                users.setdefault(disk.path, set()).add(found.domain.name())
    return users


def pools(connection: Any) -> list[Pool]:
    """Its storage pools that are directories (others cannot hold our overlays)."""
    result = []
    for pool in connection.listAllStoragePools(0):
        path = domxml.parse(pool.XMLDesc(0)).findtext("target/path") or ""
        _state, capacity, _allocation, available = pool.info()
        result.append(
            Pool(
                name=pool.name(),
                path=path,
                active=bool(pool.isActive()),
                capacity_bytes=capacity,
                free_bytes=available,
            )
        )
    return sorted(result, key=lambda pool: pool.name)


def pool_of(path: str | None, known: Iterable[Pool]) -> str | None:
    """The pool whose directory holds `path`."""
    if path is None:
        return None
    parent = str(PurePath(path).parent)
    return next((pool.name for pool in known if pool.path and pool.path.rstrip("/") == parent), None)


def _subnets(xml: ET.Element) -> tuple[str, ...]:
    subnets = []
    for ip in xml.findall("ip"):
        length = ip.get("prefix") or ip.get("netmask") or ("64" if ip.get("family") == "ipv6" else "24")
        subnets.append(str(ipaddress.ip_interface(f"{ip.get('address')}/{length}").network))
    return tuple(subnets)


def network(item: Any) -> Network:
    """One virtual network; isolated when it forwards nothing out of the host."""
    xml = domxml.parse(item.XMLDesc(0))
    return Network(
        name=item.name(),
        active=bool(item.isActive()),
        isolated=xml.find("forward") is None,
        subnets=_subnets(xml),
    )


def networks(connection: Any) -> list[Network]:
    """Its virtual networks."""
    return sorted((network(item) for item in connection.listAllNetworks(0)), key=lambda item: item.name)


def size_bytes(domain: Any, disk: DomainDisk) -> int:
    """The disk's size as the guest sees it. Raises libvirt's error when the image cannot be opened."""
    return int(domain.blockInfo(disk.dev, 0)[0])


def _disks(found: Found, known_pools: Iterable[Pool]) -> tuple[list[Disk], list[str]]:
    result, reasons = [], []
    for disk in found.disks:
        if not disk.copied:
            continue
        size = 0
        try:
            size = size_bytes(found.domain, disk)
        except libvirt.libvirtError as error:
            reasons.append(f"disk {disk.dev} cannot be opened: {words(error)}")
        result.append(
            Disk(
                id=disk_id(disk.dev),
                size_bytes=size,
                format=disk.format,
                location=disk.path or disk.kind,
                pool=disk.pool or pool_of(disk.path, known_pools),
            )
        )
    return result, reasons


def others_of(found: Found, users: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """`users` without the machine itself."""
    name = found.domain.name()
    return {path: names - {name} for path, names in users.items()}


def machine(
    found: Found,
    *,
    host_name: str,
    known_pools: Iterable[Pool],
    users: Mapping[str, set[str]],
    chosen: Chosen = ALL_DISKS,
) -> Machine:
    """One machine, with every reason against protecting it (or the `chosen` disks of it)."""
    domain, xml = found.domain, found.xml
    power = _POWER.get(domain.state()[0], PowerState.UNKNOWN)
    disks, reasons = _disks(found, list(known_pools))
    others = others_of(found, users)
    against = refusals.machine_reasons(xml, persistent=bool(domain.isPersistent())) + reasons
    for disk in found.disks:
        if disk.copied and chosen.has(disk.dev):
            against += refusals.disk_reasons(disk, others)
    if not disks:
        against.append("it has no disk of its own")
    return Machine(
        id=_id(domain),
        name=domain.name(),
        host=host_name,
        power=power,
        disks=tuple(disk for disk in disks if chosen.has(disk.id)),
        nics=tuple(_nics(xml)),
        memory_bytes=domain.maxMemory() * 1024,
        cpus=int(xml.findtext("vcpu") or 1),
        firmware=domxml.firmware(xml),
        agent=domxml.has_agent(xml),
        unprotectable=tuple(against),
    )


def _nics(xml: ET.Element) -> Iterable[Nic]:
    for interface in xml.findall("devices/interface"):
        mac = interface.find("mac")
        yield Nic(
            mac=mac.get("address", "") if mac is not None else "", network=domxml.nic_network(interface)
        )


def _id(domain: Any) -> MachineId:
    return machine_id(domain.UUIDString())
