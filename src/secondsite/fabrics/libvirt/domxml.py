"""Domain XML as values: the parts that inventory, refusals, capture and recovery look at. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from secondsite.base.errors import InvalidInput

# libvirt itself accepts at most 4 MiB strings in its protocol (REMOTE_STRING_MAX).
XML_BYTES_MAX = 4 * 1024 * 1024

AGENT_CHANNEL = "org.qemu.guest_agent.0"
# What a drive of ours is known by in a definition; virtio-blk gives a guest at most 20 characters of it.
SETTINGS_SERIAL = "secondsite-settings"


def parse(text: str) -> ET.Element:
    """Parse XML of libvirt, from a daemon or from a sealed point.

    Raises:
        InvalidInput: not XML, too large, or with a document type (libvirt never writes one; entities could
            make a small text a large tree).
    """
    if len(text) > XML_BYTES_MAX:
        raise InvalidInput(what="machine definition", why=f"it has {len(text)} characters")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InvalidInput(what="machine definition", why="it declares a document type")
    try:
        return ET.fromstring(text)  # noqa: S314 - bounded, and without a document type, checked above
    except ET.ParseError as error:
        raise InvalidInput(what="machine definition", why=str(error)) from None


@dataclass(frozen=True)
class DomainDisk:
    """One `<disk>`; `path` is None until a volume is resolved, and for disks that are no file or device."""

    dev: str  # the target's name, e.g. "vda": the disk's id
    device: str  # disk, cdrom, floppy, lun
    kind: str  # file, block, volume, network, nvme, vhostuser, dir
    format: str
    path: str | None
    pool: str | None
    volume: str | None
    readonly: bool
    shareable: bool
    transient: bool
    encrypted: bool
    mirrored: bool  # a block copy is running
    reports_errors: bool  # a failed write is the guest's problem instead of stopping it

    @property
    def copied(self) -> bool:
        """Whether its content belongs to the machine: not a medium that was put in."""
        return self.device not in {"cdrom", "floppy"} and not self.readonly


def target_dev(disk: ET.Element) -> str:
    """The disk's name in its machine, e.g. "vda"; libvirt requires one."""
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def is_settings_drive(disk: ET.Element) -> bool:
    """Whether it is the drive that a recovered machine reads its addresses from."""
    return (disk.findtext("serial") or "").strip() == SETTINGS_SERIAL


def settings_drives(domain: ET.Element) -> list[str]:
    """Where the images of such drives lie."""
    drives = [disk for disk in domain.findall("devices/disk") if is_settings_drive(disk)]
    return [source.get("file", "") for disk in drives for source in disk.findall("source")]


def _disk(element: ET.Element) -> DomainDisk:
    source = element.find("source")
    driver = element.find("driver")
    kind = element.get("type", "file")
    path = None
    if source is not None:
        path = source.get("file") if kind == "file" else source.get("dev") if kind == "block" else None
    return DomainDisk(
        dev=target_dev(element),
        device=element.get("device", "disk"),
        kind=kind,
        format=driver.get("type", "raw") if driver is not None else "raw",
        path=path,
        pool=source.get("pool") if source is not None else None,
        volume=source.get("volume") if source is not None else None,
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=element.find("encryption") is not None or element.find("source/encryption") is not None,
        mirrored=element.find("mirror") is not None,
        reports_errors=driver is not None and driver.get("error_policy") in {"report", "ignore"},
    )


def disks(domain: ET.Element) -> list[DomainDisk]:
    """Every `<disk>` in the machine's order."""
    return [_disk(element) for element in domain.findall("devices/disk")]


def nic_mac(interface: ET.Element) -> str:
    """Its hardware address in small letters; empty where the definition names none."""
    mac = interface.find("mac")
    return mac.get("address", "").lower() if mac is not None else ""


def nic_network(interface: ET.Element) -> str | None:
    """What an adapter is attached to: a network's name, "bridge:br0", "direct:eth0", or None."""
    source = interface.find("source")
    if source is None:
        return None
    kind = interface.get("type", "")
    if kind == "network":
        return source.get("network")
    if kind == "bridge":
        return f"bridge:{source.get('bridge')}"
    if kind == "direct":
        return f"direct:{source.get('dev')}"
    return None


def has_agent(domain: ET.Element) -> bool:
    """Whether a guest agent's channel is configured."""
    return any(t.get("name") == AGENT_CHANNEL for t in domain.findall("devices/channel/target"))


def firmware(domain: ET.Element) -> str:
    """Either "uefi" or "bios"."""
    os_element = domain.find("os")
    loader = domain.find("os/loader")
    by_name = os_element is not None and os_element.get("firmware") == "efi"
    return "uefi" if by_name or (loader is not None and loader.get("type") == "pflash") else "bios"


def nvram_path(domain: ET.Element) -> str | None:
    """Where the firmware's variables lie, if they are a file."""
    nvram = domain.find("os/nvram")
    if nvram is None or nvram.get("type", "file") != "file":
        return None
    source = nvram.find("source")
    return (nvram.text or "").strip() or (source.get("file") if source is not None else None)
