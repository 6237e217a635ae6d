"""What was set for a recovered machine, in its definition: before and after, and what goes with what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from secondsite.fabrics.libvirt import domxml, hosttypes, original, settings
from secondsite.fabrics.libvirt.definition import tag
from secondsite.fabrics.libvirt.hosttypes import HostTypes
from secondsite.fabrics.libvirt.settings import Drive
from secondsite.model import recovered
from secondsite.model.recovered import DiskBus, RecoveredSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
TYPES = HostTypes(
    host="b",
    virtual=True,
    machines=["pc", "q35", "pc-i440fx-7.2", "pc-q35-6.2", "pc-q35-7.1", "pc-q35-7.2"],
    aliases={"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"},
    firmware=frozenset({"bios", "efi"}),
    cpus_max=255,
    buses=frozenset({"virtio", "scsi", "sata", "ide"}),
)
SOURCE = """<domain type='kvm'>
  <name>shop</name>
  <uuid>6f5b2c1e-0d5c-4c8f-9f9b-8d7a6c5b4a39</uuid>
  <maxMemory slots='4' unit='KiB'>4194304</maxMemory>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <vcpus><vcpu id='0' enabled='yes'/></vcpus>
  <os>
    <type arch='x86_64' machine='pc-q35-9.1'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram>
    <boot dev='hd'/>
  </os>
  <cpu mode='host-model'>
    <topology sockets='1' dies='1' cores='2' threads='2'/><numa><cell id='0'/></numa></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' queues='4' iothread='1' discard='unmap'/>
      <source file='/o/vda'/>
      <target dev='vda' bus='virtio'/>
      <boot order='1'/>
      <address type='pci' bus='0x04' slot='0x00'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/o/vdb'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <controller type='pci' index='0' model='pcie-root'/>
    <interface type='network'>
      <mac address='52:54:00:aa:00:01'/>
      <source network='lan'/>
      <address type='pci' bus='0x01' slot='0x00'/>
    </interface>
    <memory model='dimm'><target><size unit='KiB'>1048576</size></target></memory>
  </devices>
</domain>"""
MACS = ["52:54:00:aa:00:01"]


def made(value: dict[str, Any], source: str = SOURCE, types: HostTypes = TYPES) -> ET.Element:
    root = domxml.parse(source)
    wanted = recovered.from_object(value)
    settings.apply(root, wanted, types)
    settings.boot_order(root, wanted.boot_order, MACS)
    return root


def shown(root: ET.Element) -> str:
    text = ET.tostring(root, encoding="unicode")
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


ALL = {
    "cpus": 3, "memoryBytes": 3 << 30, "firmware": "bios", "machineType": "pc", "diskBus": "sata",
    "bootOrder": ["1", "vdb"],
}  # fmt: skip


def test_all_of_it_before_and_after() -> None:
    """The file is what a person compares with `SOURCE`; remake it by hand where the change is wanted."""
    assert shown(made(ALL)) == (GOLDEN / "recovered-all.xml").read_text()


def test_nothing_set_changes_but_a_machine_type_that_the_host_does_not_have() -> None:
    root = made({})
    before = domxml.parse(SOURCE)
    element = before.find("os/type")
    assert element is not None
    element.set("machine", "pc-q35-7.2")  # the newest of its family below 9.1
    assert shown(root) == shown(before)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("pc-q35-7.2", "pc-q35-7.2"),
        ("q35", "q35"),
        ("pc-q35-7.1", "pc-q35-7.1"),
        ("pc-q35-7.0", "pc-q35-6.2"),  # not above what is meant
        ("pc-q35-2.4", "pc-q35-6.2"),  # the oldest there is
        ("pc-i440fx-9.0", "pc-i440fx-7.2"),
        ("virt-9.0", "virt-9.0"),  # another family altogether: the host says no itself
        ("microvm", "microvm"),
    ],
)
def test_a_machine_type_becomes_the_nearest_of_its_family(wanted: str, found: str) -> None:
    assert TYPES.nearest(wanted) == found


def test_of_the_same_family_addresses_stay() -> None:
    root = made({"machineType": "pc-q35-6.2"})
    assert len(root.findall(".//address[@type='pci']")) == 2
    assert root.findall("devices/controller") != []
    assert hosttypes.family("q35", TYPES.aliases) == hosttypes.family("pc-q35-9.1", {})


def test_uefi_is_chosen_by_the_host() -> None:
    bios = SOURCE.replace("<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>", "")
    bios = bios.replace("<nvram>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram>", "")
    root = made({"firmware": "uefi"}, bios)
    assert domxml.firmware(root) == "uefi"
    assert made({"firmware": "uefi"}).find("os/loader") is not None  # it was, and stays as it is


def test_disks_on_scsi_get_a_controller_and_keep_their_names() -> None:
    root = made({"diskBus": "scsi"})
    assert [domxml.target_dev(disk) for disk in root.findall("devices/disk")] == ["vda", "vdb"]
    controllers = [one.attrib for one in root.findall("devices/controller") if one.get("type") == "scsi"]
    assert controllers == [{"type": "scsi", "model": "virtio-scsi"}]
    assert "queues" not in root.findall("devices/disk/driver")[0].attrib


@pytest.mark.parametrize(
    ("change", "bus", "dev"),
    [
        (("", ""), DiskBus.SCSI, "sda"),
        (("<os>", "<features><hyperv/></features><os>"), DiskBus.SATA, "sda"),
        (("bus='virtio'", "bus='sata'"), DiskBus.SATA, "sdc"),  # two disks are in its sockets
        (("dev='vdb' bus='virtio'", "dev='sdb' bus='ide'"), DiskBus.IDE, "hda"),
    ],
)
def test_the_drive_is_where_the_guest_has_a_driver(change: tuple[str, str], bus: DiskBus, dev: str) -> None:
    root = domxml.parse(SOURCE.replace(*change) if change[0] else SOURCE)
    assert settings.drive_bus(root, RecoveredSettings()) is bus
    settings.add_drive(root, Drive("/o/settings.iso", bus))
    disk = root.findall("devices/disk")[-1]
    assert domxml.target_dev(disk) == dev
    assert domxml.is_settings_drive(disk)
    assert not domxml.disks(root)[-1].copied  # it is no disk of the machine
    assert disk.find("readonly") is not None
    assert domxml.settings_drives(root) == ["/o/settings.iso"]


def test_a_drive_on_virtio_leaves_the_next_letters_to_the_guests_disks() -> None:
    root = domxml.parse(SOURCE)
    settings.add_drive(root, Drive("/o/settings.iso", DiskBus.VIRTIO))
    disk = root.findall("devices/disk")[-1]
    assert (domxml.target_dev(disk), disk.get("device")) == ("vdz", "disk")


# the definition it had at its own host


def _at_host(host: str, text: str = SOURCE) -> ET.Element:
    root = domxml.parse(text)
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, tag("source"), host=host)
    ET.SubElement(metadata, "{urn:theirs}note").text = "of another product"
    return root


def _taken_there(point: ET.Element, host: str, *, removed: str = "", added: str = "") -> ET.Element:
    """As a point of the other site has it: other sizes and disks, and what was kept in its metadata."""
    there = domxml.parse(
        SOURCE.replace("<name>shop</name>", "<name>shop-b</name>").replace(">4</vcpu>", ">1</vcpu>")
    )
    metadata = ET.SubElement(there, "metadata")
    original.keep(point, metadata)
    ET.SubElement(metadata, tag("source"), host=host)
    devices = there.find("devices")
    assert devices is not None
    for disk in devices.findall("disk"):
        if domxml.target_dev(disk) == removed:
            devices.remove(disk)
    if added:
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "target", dev=added, bus="virtio")
        ET.SubElement(disk, "address", type="pci", bus="0x09")
    settings.add_drive(there, Drive("/o/settings.iso", DiskBus.SCSI))
    return domxml.parse(ET.tostring(there, encoding="unicode"))


def test_back_at_its_host_it_is_defined_as_it_was_with_the_disks_it_has_now() -> None:
    there = _taken_there(_at_host("a"), "b", added="vdc")
    back = original.at_home(there, "a")
    assert back is not None
    assert back.findtext("name") == "shop"
    assert back.findtext("vcpu") == "4"
    assert back.findtext("metadata/{urn:theirs}note") == "of another product"
    assert [domxml.target_dev(disk) for disk in back.findall("devices/disk")] == ["vda", "vdb", "vdc"]
    assert back.findall("devices/disk")[-1].find("address") is None
    assert original.at_home(there, "b") is None
    assert original.at_home(there, "c") is None
    assert original.at_home(there, "") is None


def test_from_site_to_site_every_host_is_remembered_once_and_none_inside_another() -> None:
    point, sizes = _at_host("a"), []
    for number in range(8):
        there = _taken_there(point, f"host-{number}")
        sizes.append(len(ET.tostring(there)))
        point = there
    kept = point.findall(f"metadata/{{{original.NAMESPACE}}}definitions/*")
    assert [one.get("host") for one in kept] == ["host-3", "host-4", "host-5", "host-6"]
    assert sizes[-1] == pytest.approx(sizes[4], rel=0.02)


def test_one_that_is_damaged_on_the_way_makes_the_machine_new_here() -> None:
    there = _taken_there(_at_host("a"), "b")
    kept = there.find(f"metadata/{{{original.NAMESPACE}}}definitions/*")
    assert kept is not None
    for text in ("", "!!", "QUJD", (kept.text or "")[:-40]):
        kept.text = text
        assert original.at_home(there, "a") is None


def test_a_definition_without_a_host_keeps_nothing() -> None:
    metadata = ET.Element("metadata")
    original.keep(domxml.parse(SOURCE), metadata)
    assert list(metadata) == []


def test_hosts_say_what_they_can_start() -> None:
    class Host:
        def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
            return (GOLDEN / "libvirt-capabilities.xml").read_text()

        def getDomainCapabilities(self, *_wanted: object) -> str:  # noqa: N802
            return (GOLDEN / "libvirt-domain-capabilities.xml").read_text()

    found = hosttypes.read(Host(), domxml.parse(SOURCE.replace("type='kvm'", "type='qemu'")))
    assert found.host == "e7a2ab6e-0000-4000-8000-0000000000b1"
    assert found.virtual
    assert found.knows("pc-q35-7.2")
    assert found.aliases["q35"] == "pc-q35-7.2"
    assert found.nearest("pc-q35-9.2") == "pc-q35-7.2"
    assert "efi" in found.firmware
    assert found.cpus_max == 255
    assert {"virtio", "sata"} <= found.buses
    assert not hosttypes.read(Host(), domxml.parse(SOURCE)).virtual  # it has no KVM
    assert replace(found, machines=[]).knows("anything")
