"""What was set for a recovered machine, put into its definition. Pure, one function a part.

What is not set stays. What a setting makes senseless goes with it: a topology for another number of
processors, addresses on buses of another machine type, options of another disk bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from secondsite.fabrics.libvirt import domxml, hosttypes
from secondsite.fabrics.libvirt.hosttypes import HostTypes
from secondsite.model.recovered import DiskBus, Firmware, RecoveredSettings

# Of virtio disks alone: libvirt refuses them on another bus.
_VIRTIO_DRIVER = ("iothread", "queues", "queue_size", "ioeventfd", "event_idx", "iommu", "ats", "packed")
_SCSI_ONLY = ("wwn", "vendor", "product")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Drive:
    """The drive that is added: where its image lies, and how it is attached."""

    path: str
    bus: DiskBus


def apply(root: ET.Element, settings: RecoveredSettings, types: HostTypes) -> None:
    """All but names, adapters and the drive. The machine type is the host's nearest to what is meant."""
    if settings.cpus is not None:
        _cpus(root, settings.cpus)
    if settings.memory_bytes is not None:
        _memory(root, settings.memory_bytes)
    machine_type(root, settings.machine_type, types)
    if settings.firmware is not None:
        _firmware(root, settings.firmware)
    if settings.disk_bus is not None:
        _disk_bus(root, settings.disk_bus)


def _cpus(root: ET.Element, cpus: int) -> None:
    vcpu = root.find("vcpu")
    if vcpu is None:
        vcpu = ET.Element("vcpu")
        root.insert(1 + [child.tag for child in root].index("name"), vcpu)
    if (vcpu.text or "").strip() == str(cpus) and "current" not in vcpu.attrib:
        return
    vcpu.text = str(cpus)
    vcpu.attrib.pop("current", None)
    _drop(root, "vcpus", "cputune")
    cpu = root.find("cpu")
    if cpu is not None:
        _drop(cpu, "topology", "numa")


def _memory(root: ET.Element, memory_bytes: int) -> None:
    for name in ("memory", "currentMemory"):
        element = root.find(name)
        if element is None:
            element = ET.Element(name)
            root.insert(1 + [child.tag for child in root].index("name"), element)
        element.attrib.clear()
        element.set("unit", "KiB")
        element.text = str(memory_bytes // 1024)
    # plugged-in memory would come on top, in nodes that are laid out for another size
    _drop(root, "maxMemory", "numatune")
    cpu = root.find("cpu")
    if cpu is not None:
        _drop(cpu, "numa")
    devices = root.find("devices")
    if devices is not None:
        _drop(devices, "memory")


def machine_type(root: ET.Element, wanted: str | None, types: HostTypes) -> None:
    """The type that is wanted, else its own, as the host has it."""
    element = root.find("os/type")
    if element is None:
        return
    before = element.get("machine", "")
    after = types.nearest(wanted or before)
    if not after or after == before:
        return
    element.set("machine", after)
    if hosttypes.family(before, types.aliases) == hosttypes.family(after, types.aliases):
        return
    # another chipset: its buses and their numbers are other ones; libvirt lays everything out anew
    devices = root.find("devices")
    if devices is None:
        return
    for controller in devices.findall("controller"):
        if controller.get("type") in {"pci", "usb", "sata", "ide"}:
            devices.remove(controller)
    for device in devices:
        for address in device.findall("address"):
            if address.get("type") == "pci":
                device.remove(address)


def _firmware(root: ET.Element, firmware: Firmware) -> None:
    element = root.find("os")
    if element is None or domxml.firmware(root) == firmware.value:
        return
    _drop(element, "loader", "nvram", "firmware")
    if firmware is Firmware.UEFI:
        element.set("firmware", "efi")
    else:
        element.attrib.pop("firmware", None)


def _disk_bus(root: ET.Element, bus: DiskBus) -> None:
    """Disks keep their names: they are what points and comparisons know them by."""
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        if disk.get("device", "disk") != "disk" or target is None or target.get("bus") == bus.value:
            continue
        target.set("bus", bus.value)
        _drop(disk, "address")
        if bus is not DiskBus.SCSI:
            _drop(disk, *_SCSI_ONLY)
        driver = disk.find("driver")
        if driver is not None and bus is not DiskBus.VIRTIO:
            for name in _VIRTIO_DRIVER:
                driver.attrib.pop(name, None)
    if bus is DiskBus.SCSI:
        _need_scsi(root)


def _need_scsi(root: ET.Element) -> None:
    """A controller that every Linux of the last ten years knows, where there is none."""
    devices = root.find("devices")
    if devices is not None and not any(one.get("type") == "scsi" for one in devices.findall("controller")):
        ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")


def _drop(element: ET.Element, *names: str) -> None:
    for name in names:
        for child in element.findall(name):
            element.remove(child)


def boot_order(root: ET.Element, order: Sequence[str], macs_before: Sequence[str]) -> None:
    """First one first; macs_before: of the adapters as the point's definition has them, in its order."""
    if not order:
        return
    os_element = root.find("os")
    if os_element is not None:
        _drop(os_element, "boot")
    devices = root.find("devices")
    if devices is None:
        return
    for device in devices:
        _drop(device, "boot")
    interfaces = devices.findall("interface")
    disks = {domxml.target_dev(disk): disk for disk in devices.findall("disk")}
    for number, name in enumerate(order, start=1):
        place = place_of(name, macs_before)
        found = disks.get(name)
        if place is not None and place < len(interfaces):
            found = interfaces[place]
        if found is not None:
            ET.SubElement(found, "boot", order=str(number))


def place_of(name: str, macs: Sequence[str]) -> int | None:
    """An adapter's place from 0, by its place from 1 or its hardware address; None: it is none of them."""
    if name.isdecimal():
        return int(name) - 1
    return macs.index(name) if name in macs else None


def drive_bus(root: ET.Element, settings: RecoveredSettings) -> DiskBus:
    """Where the guest sees a drive: on a bus whose driver it is known to have.

    That of a CD drive it has, else that of its disks. Beside virtio disks: SCSI (as a plain virtio disk it
    could take the name of a disk of the guest's), but for Windows, which has no driver for that by itself.
    """
    if settings.drive_bus is not None:
        return settings.drive_bus
    buses = {bus.value: bus for bus in DiskBus}
    disks = [disk for disk in root.findall("devices/disk") if not domxml.is_settings_drive(disk)]
    for kind in ("cdrom", "disk"):
        for disk in disks:
            target = disk.find("target")
            name = target.get("bus", "") if target is not None else ""
            if disk.get("device", "disk") == kind and name in buses and name != DiskBus.VIRTIO.value:
                return buses[name]
    if root.find("features/hyperv") is None:
        return DiskBus.SCSI
    machine = root.find("os/type")
    q35 = machine is not None and "q35" in machine.get("machine", "")
    return DiskBus.SATA if q35 else DiskBus.IDE


def add_drive(root: ET.Element, drive: Drive) -> None:
    """Read-only, after all others, under the first name that is free."""
    devices = root.find("devices")
    if devices is None:
        return
    dev = _free_name(devices.findall("disk"), drive.bus)
    kind = "disk" if drive.bus is DiskBus.VIRTIO else "cdrom"
    disk = ET.SubElement(devices, "disk", type="file", device=kind)
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(disk, "source", file=drive.path)
    ET.SubElement(disk, "target", dev=dev, bus=drive.bus.value)
    ET.SubElement(disk, "serial").text = domxml.SETTINGS_SERIAL
    ET.SubElement(disk, "readonly")
    if drive.bus is DiskBus.SCSI:
        _need_scsi(root)


def _free_name(disks: Sequence[ET.Element], bus: DiskBus) -> str:
    """On most buses the letter says which place it takes there, whatever stands before it."""
    taken = {domxml.target_dev(disk) for disk in disks}
    prefix = {DiskBus.VIRTIO: "vd", DiskBus.IDE: "hd"}.get(bus, "sd")
    used = set()
    for disk in disks:
        target = disk.find("target")
        if target is not None and target.get("bus") == bus.value:
            used.add(target.get("dev", "")[-1:])
    # of virtio the last one: the next letters are for disks of the guest
    letters = reversed(_LETTERS) if bus is DiskBus.VIRTIO else _LETTERS
    free = (f"{prefix}{one}" for one in letters if one not in used and f"{prefix}{one}" not in taken)
    return next(free, f"{prefix}zz")
