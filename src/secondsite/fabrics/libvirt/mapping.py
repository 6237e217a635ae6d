"""From a source's domain XML to one that starts here: pure, one function a part.

What names something of the source's host is mapped, detached or dropped; what makes the guest the same guest
(machine type, processor, controllers, addresses on its buses, disk and adapter models) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from secondsite.fabrics.libvirt import domxml, overlays

# Bound to the source's host or to a process there.
_DROPPED_DEVICES = ("redirdev", "hostdev", "shmem", "parallel")
# Placement on the source's processors, its control groups and security labels.
_DROPPED = ("cputune", "numatune", "resource", "seclabel")
_NIC_DROPPED = (
    "source",
    "target",
    "alias",
    "virtualport",
    "filterref",
    "vlan",
    "bandwidth",
    "link",
    "backend",
)


@dataclass(frozen=True)
class MappedDisk:
    """What takes a disk's place."""

    overlay: str  # path of the qcow2 overlay
    socket: str  # the NBD export below it
    export: str


@dataclass(frozen=True)
class MappedNic:
    """What becomes of an adapter."""

    network: str | None  # attached to it; None: to nothing
    mac: str | None  # None: libvirt makes one
    as_is: bool = False  # attached as the definition says; it is one of this host


@dataclass(frozen=True)
class Plan:
    """Everything the mapped definition says that the source's did not."""

    name: str
    uuid: str | None  # None: the source's
    title: str
    disks: Mapping[str, MappedDisk]  # by target name; others are left out
    network_of: Callable[[str | None], str | None]  # the source's network -> ours, None: attached to nothing
    keep_macs: bool
    console_log: str
    nvram: str | None
    metadata: ET.Element
    exists: Callable[[str], bool]  # whether a path exists on this host
    # of this very host: what is bound to it stays, and so do other products' notes
    home: bool = False
    nics: Mapping[int, MappedNic] = field(default_factory=dict)  # by place from 0; the others as said above


def mapped(text: str, plan: Plan) -> str:
    """The definition to start here.

    Raises:
        InvalidInput: `text` is no domain definition.
    """
    root = domxml.parse(text)
    change(root, plan)
    return ET.tostring(root, encoding="unicode")


def change(root: ET.Element, plan: Plan) -> None:
    """Make a definition one to start here."""
    _identity(root, plan)
    for name in () if plan.home else _DROPPED:
        for element in root.findall(name):
            root.remove(element)
    vcpu = root.find("vcpu")
    if vcpu is not None and not plan.home:
        vcpu.attrib.pop("cpuset", None)
    _firmware(root, plan)
    devices = root.find("devices")
    if devices is not None:
        _devices(devices, plan)


def _set(root: ET.Element, name: str, text: str, after: str) -> None:
    element = root.find(name)
    if element is None:
        element = ET.Element(name)
        root.insert(1 + [child.tag for child in root].index(after), element)
    element.text = text


def _identity(root: ET.Element, plan: Plan) -> None:
    root.attrib.pop("id", None)
    _set(root, "name", plan.name, "name")
    if plan.uuid is not None:
        _set(root, "uuid", plan.uuid, "name")
        # the same number in the firmware's tables: libvirt refuses two that differ
        for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
            entry.text = plan.uuid
    for old in root.findall("title"):
        root.remove(old)
    _set(root, "title", plan.title, "name")
    metadata = root.find("metadata")
    if metadata is not None and not plan.home:
        root.remove(metadata)  # other products' notes are about the machine at the source
        metadata = None
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    metadata.append(plan.metadata)


def _firmware(root: ET.Element, plan: Plan) -> None:
    os_element = root.find("os")
    if os_element is None:
        return
    loader = os_element.find("loader")
    if loader is not None and loader.text and not plan.exists(loader.text.strip()):
        # another path here: let libvirt choose the same kind of firmware
        secure = loader.get("secure")
        os_element.remove(loader)
        if loader.get("type") == "pflash":
            os_element.set("firmware", "efi")
            if secure:
                ET.SubElement(os_element, "loader", secure=secure)
    for nvram in os_element.findall("nvram"):
        os_element.remove(nvram)
    if plan.nvram is not None:
        ET.SubElement(os_element, "nvram").text = plan.nvram


def _devices(devices: ET.Element, plan: Plan) -> None:
    for name in () if plan.home else _DROPPED_DEVICES:
        for element in devices.findall(name):
            devices.remove(element)
    emulator = devices.find("emulator")
    if emulator is not None and not plan.exists((emulator.text or "").strip()):
        devices.remove(emulator)  # libvirt's default for the machine type
    for disk in devices.findall("disk"):
        _disk(devices, disk, plan)
    for place, interface in enumerate(devices.findall("interface")):
        _interface(interface, place, plan)
    _serials(devices, plan)
    if not plan.home:
        _channels(devices)
        for graphics in devices.findall("graphics"):
            _graphics(graphics)
    for backend in devices.findall("rng/backend"):
        if backend.get("model") != "builtin" and not plan.exists((backend.text or "").strip()):
            backend.attrib.clear()
            backend.set("model", "random")
            backend.text = "/dev/urandom"
            for child in list(backend):
                backend.remove(child)


def _disk(devices: ET.Element, disk: ET.Element, plan: Plan) -> None:
    dev = domxml.target_dev(disk)
    if domxml.is_settings_drive(disk):
        devices.remove(disk)  # ours, of the site it comes from
        return
    for name in ("source", "backingStore", "mirror", "alias", "backenddomain", "auth", "transient"):
        for element in disk.findall(name):
            disk.remove(element)
    if disk.get("device") in {"cdrom", "floppy"}:
        disk.set("type", "file")  # an empty drive: its medium lies at the source
        return
    chosen = plan.disks.get(dev)
    if chosen is None:
        devices.remove(disk)
        return
    disk.set("type", "file")
    disk.attrib.pop("snapshot", None)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.SubElement(disk, "driver")
    driver.attrib.pop("io", None)  # native needs cache=none on a device of the source's kind
    overlays.syncing(driver)
    # A lost export stops the guest instead of giving it errors (rule 11); it is resumed when that is back.
    driver.attrib.update(name="qemu", type="qcow2", error_policy="stop", rerror_policy="stop")
    ET.SubElement(disk, "source", file=chosen.overlay)
    disk.append(overlays.backing_element(chosen.export, chosen.socket))


def _interface(interface: ET.Element, place: int, plan: Plan) -> None:
    nic = plan.nics.get(place)
    if nic is None:
        network = plan.network_of(domxml.nic_network(interface))
        nic = MappedNic(network, domxml.nic_mac(interface) if plan.keep_macs else None)
    for mac in interface.findall("mac"):
        interface.remove(mac)
    if nic.mac:
        interface.insert(0, ET.Element("mac", address=nic.mac))
    if nic.as_is:
        # its link may have been down because the machine was isolated
        for name in ("target", "alias", "link"):
            for element in interface.findall(name):
                interface.remove(element)
        return
    for name in _NIC_DROPPED:
        for element in interface.findall(name):
            interface.remove(element)
    if nic.network is not None:
        interface.set("type", "network")
        ET.SubElement(interface, "source", network=nic.network)
        return
    # A tap device that is part of no bridge, with its link down: the adapter is there (the guest's bus and
    # names stay as they were) and leads nowhere.
    interface.set("type", "ethernet")
    ET.SubElement(interface, "link", state="down")


def _serials(devices: ET.Element, plan: Plan) -> None:
    for number, serial in enumerate([*devices.findall("serial"), *devices.findall("console")]):
        target = serial.find("target")
        kept = [child for child in serial if child.tag in {"target", "address"}]
        for child in list(serial):
            if child not in kept:
                serial.remove(child)
        serial.set("type", "pty")
        serial.attrib.pop("tty", None)
        if number == 0 and (target is not None or serial.tag == "serial"):
            serial.insert(0, ET.Element("log", file=plan.console_log, append="off"))


def _channels(devices: ET.Element) -> None:
    spice = any(graphics.get("type") == "spice" for graphics in devices.findall("graphics"))
    for channel in devices.findall("channel"):
        kind = channel.get("type")
        for name in ("source", "alias"):
            for element in channel.findall(name):
                channel.remove(element)
        target = channel.find("target")
        agent = target is not None and target.get("name") == domxml.AGENT_CHANNEL
        port = target is not None and target.get("type") == "virtio"
        if agent:
            channel.set("type", "unix")
        elif kind in ("unix", "pty") and port:
            pass  # a port the guest knows by its name; libvirt makes this host's end of it
        elif kind != "spicevmc" or not spice:
            devices.remove(channel)


def _graphics(graphics: ET.Element) -> None:
    if graphics.get("type") not in {"vnc", "spice"}:
        return
    # ports and addresses of the source's host may be taken or absent here
    for name in ("port", "tlsPort", "websocket", "socket", "listen"):
        graphics.attrib.pop(name, None)
    for listen in graphics.findall("listen"):
        graphics.remove(listen)
    graphics.set("autoport", "yes")
    ET.SubElement(graphics, "listen", type="address", address="127.0.0.1")
