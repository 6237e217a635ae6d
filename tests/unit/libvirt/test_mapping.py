"""From a source's definition to one that starts elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from secondsite.fabrics.libvirt import domxml, networks
from secondsite.fabrics.libvirt.definition import pools_of, tag
from secondsite.fabrics.libvirt.mapping import MappedDisk, Plan, mapped

UUID = "6f5b2c1e-0d5c-4c8f-9f9b-8d7a6c5b4a39"
SOURCE = f"""
<domain type='kvm' id='7'>
  <name>shop</name><uuid>{UUID}</uuid><title>their title</title>
  <metadata><other:x xmlns:other='urn:other'/></metadata>
  <memory unit='KiB'>1048576</memory><vcpu placement='static' cpuset='2-3'>2</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='2'/></cputune><numatune/><resource><partition>/m</partition></resource>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash' secure='no'>/gone/CODE.fd</loader>
    <nvram template='/gone/VARS.fd'>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram></os>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>/opt/qemu</emulator>
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/i/shop.qcow2' index='3'/>
      <backingStore type='file'><source file='/i/base'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/><alias name='virtio-disk0'/>
      <address type='pci' bus='0x04' slot='0x00'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/x'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/i/x.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:aa:00:01'/><source network='lan' bridge='br0'/>
      <target dev='vnet3'/><model type='virtio'/><filterref filter='clean'/><alias name='net0'/>
      <address type='pci' bus='0x01' slot='0x00'/></interface>
    <interface type='direct'><mac address='52:54:00:aa:00:02'/><source dev='eth0' mode='bridge'/>
      <model type='e1000e'/></interface>
    <serial type='file'><source path='/var/log/shop.log'/><target port='0'/></serial>
    <console type='file'><source path='/var/log/shop.log'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/run/x'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='unix'><source mode='bind' path='/run/own'/>
      <target type='virtio' name='its.own'/></channel>
    <channel type='tcp'><source mode='connect' host='h' service='1'/>
      <target type='virtio' name='theirs'/></channel>
    <graphics type='vnc' port='5907' autoport='no' listen='10.0.0.1'>
      <listen type='address' address='10.0.0.1'/></graphics>
    <redirdev bus='usb' type='spicevmc'/>
    <rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng>
  </devices>
  <seclabel type='static' model='dac'><label>+1:+1</label></seclabel>
</domain>"""

RECORD = ET.Element(tag("recovered"), kind="test")
LAN = {"lan": "lan-b"}
PLAN = Plan(
    name="shop-test",
    uuid="00000000-0000-4000-8000-000000000001",
    title="secondsite test: shop, point 7",
    disks={"vda": MappedDisk("/pool/o.qcow2", "/run/e.sock", "vda")},
    network_of=lambda source: LAN.get(source or ""),
    keep_macs=True,
    console_log="/pool/console.log",
    nvram="/pool/shop-test_VARS.fd",
    metadata=RECORD,
    exists=lambda path: path == "/dev/urandom",
)


def run(plan: Plan = PLAN) -> ET.Element:
    return domxml.parse(mapped(SOURCE, plan))


def all_of(root: ET.Element, path: str, name: str) -> list[str | None]:
    return [element.get(name) for element in root.findall(path)]


def test_it_is_another_machine_and_says_which() -> None:
    root = run()
    assert root.get("id") is None
    assert root.findtext("name") == "shop-test"
    assert root.findtext("uuid") == PLAN.uuid
    assert root.findtext("sysinfo/system/entry") == PLAN.uuid
    assert root.findtext("title") == PLAN.title
    assert [child.tag for child in root.findall("metadata/*")] == [tag("recovered")]


def test_a_failover_keeps_the_uuid() -> None:
    assert run(replace(PLAN, uuid=None)).findtext("uuid") == UUID


def test_disks_stand_on_overlays_over_the_export() -> None:
    root = run()
    disks = root.findall("devices/disk")
    assert [domxml.target_dev(disk) for disk in disks] == ["vda", "sda"]  # vdb is not part of the point
    vda = disks[0]
    assert vda.find("source").attrib == {"file": "/pool/o.qcow2"}  # type: ignore[union-attr]
    driver = vda.find("driver")
    assert driver is not None
    assert driver.attrib == {
        "name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap", "error_policy": "stop",
        "rerror_policy": "stop",
    }  # fmt: skip
    assert all_of(vda, "backingStore", "type") == ["network"]
    assert all_of(vda, "backingStore/source/host", "socket") == ["/run/e.sock"]
    # the chain ends here, in words: libvirt opens nothing to find out
    assert len(vda.findall("backingStore/backingStore")) == 1
    # what the guest sees of it is as it was
    assert vda.findtext("serial") == "S1"
    assert all_of(vda, "address", "bus") == ["0x04"]
    assert vda.find("alias") is None


@pytest.mark.parametrize(
    ("theirs", "here"),
    [("none", "none"), ("writeback", "writeback"), ("unsafe", "writeback"), ("directsync", "directsync")],
)
def test_a_disk_whose_cache_syncs_nothing_gets_one_that_does(theirs: str, here: str) -> None:
    """Until it is plain, and after: a power cut in the middle of a copy would leave tables without data."""
    root = domxml.parse(mapped(SOURCE.replace("cache='none'", f"cache='{theirs}'"), PLAN))
    assert root.findall("devices/disk/driver")[0].get("cache") == here


def test_a_drive_is_there_and_empty() -> None:
    cdrom = run().findall("devices/disk")[1]
    assert cdrom.get("device") == "cdrom"
    assert cdrom.find("source") is None


def test_adapters_are_mapped_or_lead_nowhere() -> None:
    first, second = run().findall("devices/interface")
    assert first.get("type") == "network"
    assert all_of(first, "source", "network") == ["lan-b"]
    assert all_of(first, "mac", "address") == ["52:54:00:aa:00:01"]
    assert all_of(first, "model", "type") == ["virtio"]
    assert all_of(first, "address", "bus") == ["0x01"]
    assert first.find("filterref") is None
    assert second.get("type") == "ethernet"
    assert second.find("source") is None
    assert all_of(second, "link", "state") == ["down"]


def test_macs_are_made_anew_beside_the_original() -> None:
    assert run(replace(PLAN, keep_macs=False)).findall("devices/interface/mac") == []


def test_every_adapter_goes_to_a_tests_network() -> None:
    everywhere: Callable[[str | None], str | None] = lambda _source: "isolated"  # noqa: E731
    root = run(replace(PLAN, network_of=everywhere))
    assert all_of(root, "devices/interface/source", "network") == ["isolated", "isolated"]


def test_the_console_is_written_down_here() -> None:
    root = run()
    serial = root.find("devices/serial")
    assert serial is not None
    assert serial.get("type") == "pty"
    assert all_of(serial, "log", "file") == [PLAN.console_log]
    assert root.findall("devices/console/log") == []
    assert "/var/log/shop.log" not in ET.tostring(root, encoding="unicode")


def test_what_belongs_to_the_sources_host_is_gone() -> None:
    root = run()
    for path in ("cputune", "numatune", "resource", "seclabel", "devices/redirdev", "devices/emulator"):
        assert root.find(path) is None, path
    assert "cpuset" not in root.find("vcpu").attrib  # type: ignore[union-attr]
    assert all_of(root, "devices/channel/target", "name") == [domxml.AGENT_CHANNEL, "its.own"]
    assert root.find("devices/channel/source") is None
    assert all_of(root, "devices/graphics", "port") == [None]
    assert all_of(root, "devices/graphics/listen", "address") == ["127.0.0.1"]
    assert root.findtext("devices/rng/backend") == "/dev/urandom"
    assert root.find("cpu").attrib == {"mode": "host-passthrough"}  # type: ignore[union-attr]


def test_firmware_that_is_elsewhere_is_chosen_by_libvirt_and_keeps_its_variables() -> None:
    root = run()
    os_element = root.find("os")
    assert os_element is not None
    assert os_element.get("firmware") == "efi"
    assert all_of(os_element, "loader", "secure") == ["no"]
    assert os_element.findtext("nvram") == PLAN.nvram
    here = run(replace(PLAN, exists=lambda _path: True))
    assert here.findtext("os/loader") == "/gone/CODE.fd"
    assert here.findtext("devices/emulator") == "/opt/qemu"


def test_pools_travel_as_metadata() -> None:
    text = "<domain><metadata><s:source xmlns:s='urn:secondsite:libvirt:1'><s:disk dev='vda' pool='fast'/>"
    root = domxml.parse(text + "<s:disk dev='vdb'/></s:source></metadata></domain>")
    assert pools_of(root) == {"vda": "fast"}


def test_an_isolated_network_has_no_way_out_and_a_name_of_ours() -> None:
    root = domxml.parse(networks.isolated_xml("test-1"))
    assert root.find("forward") is None
    assert root.find("ip") is None
    assert root.findtext("uuid") == networks.uuid_of("test-1")
    assert networks.uuid_of("test-1") != networks.uuid_of("test-2")
