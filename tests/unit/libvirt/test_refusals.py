"""Every reason against protecting a machine, by name; what is merely different elsewhere is no reason."""

from __future__ import annotations

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.fabrics.libvirt import domxml, refusals

QCOW2 = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a.qcow2'/>"
    "<target dev='vda' bus='virtio'/>{more}</disk>"
)


def domain(devices: str = "", *, top: str = "", kind: str = "kvm") -> str:
    return (
        f"<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>m</name>{top}"
        f"<devices>{devices}</devices></domain>"
    )


def reasons(xml: str, *, persistent: bool = True) -> list[str]:
    root = domxml.parse(xml)
    found = refusals.machine_reasons(root, persistent=persistent)
    for disk in domxml.disks(root):
        if disk.copied:
            found += refusals.disk_reasons(disk)
    return found


@pytest.mark.parametrize(
    ("devices", "word"),
    [
        ("<hostdev mode='subsystem' type='pci'/>", "pci device of the host"),
        ("<hostdev mode='subsystem' type='usb'/>", "usb device of the host"),
        ("<hostdev mode='subsystem' type='mdev'/>", "mdev device of the host"),
        ("<interface type='hostdev'><mac address='52:54:00:00:00:01'/></interface>", "passed-through"),
        ("<interface type='vhostuser'/>", "vhost-user"),
        ("<interface type='vdpa'/>", "vDPA"),
        ("<tpm model='tpm-crb'><backend type='emulator'/></tpm>", "emulated TPM"),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "TPM of the host (passthrough)"),
        ("<tpm model='tpm-tis'><backend type='external'/></tpm>", "TPM of the host (external)"),
        ("<filesystem type='mount'><target dir='share'/></filesystem>", "file system share"),
        ("<memory model='nvdimm'/>", "persistent memory"),
        ("<shmem name='s'/>", "shmem"),
        ("<smartcard mode='host'/>", "smart card"),
        ("<input type='evdev'/>", "input device"),
        (QCOW2.format(more="<shareable/>"), "shared with other machines"),
        (QCOW2.format(more="<transient/>"), "transient"),
        (QCOW2.format(more="<mirror type='file'/>"), "block copy"),
        (QCOW2.format(more="<encryption format='luks'><secret type='passphrase'/></encryption>"), "secret"),
        (QCOW2.format(more="").replace("/></disk>", "/></disk>").replace("'qcow2'/>", "'raw'/>"), "is raw"),
        (QCOW2.format(more="").replace("'qcow2'", "'qcow2' error_policy='report'"), "reports write errors"),
        (QCOW2.format(more="").replace("device='disk'", "device='lun'"), "SCSI"),
        (QCOW2.format(more="").replace("<disk type='file'", "<disk type='network'"), "network source"),
        (QCOW2.format(more="").replace("<disk type='file'", "<disk type='vhostuser'"), "vhostuser source"),
        (QCOW2.format(more="").replace("<disk type='file'", "<disk type='nvme'"), "nvme source"),
        (
            QCOW2.format(more="").replace(
                "<source file='/i/a.qcow2'/>",
                "<source file='/i/a.qcow2'><encryption format='luks'/></source>",
            ),
            "secret",
        ),
    ],
)  # fmt: skip
def test_each_is_refused_by_name(devices: str, word: str) -> None:
    assert any(word in reason for reason in reasons(domain(devices))), reasons(domain(devices))


def test_reasons_of_the_machine_itself() -> None:
    assert any("transient" in reason for reason in reasons(domain(), persistent=False))
    assert any("type xen" in reason for reason in reasons(domain(kind="xen")))
    assert any("launchSecurity" in r for r in reasons(domain(top="<launchSecurity type='sev'/>")))
    commandline = "<qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>"
    assert any("qemu:commandline" in r for r in reasons(domain(top=commandline)))
    nvram = "<os><nvram type='network'><source protocol='nbd'/></nvram></os>"
    assert any("firmware variables" in r for r in reasons(domain(top=nvram)))


def test_all_reasons_are_named_at_once() -> None:
    found = reasons(domain("<hostdev type='pci'/><shmem name='s'/>" + QCOW2.format(more="<shareable/>")))
    assert len(found) == 3


def test_what_is_mapped_at_recovery_is_no_reason() -> None:
    ordinary = (
        QCOW2.format(more="")
        + "<disk type='file' device='cdrom'><driver type='raw'/><source file='/i/x.iso'/>"
        "<target dev='sda'/><readonly/></disk>"
        "<disk type='file' device='disk'><driver type='raw'/><source file='/i/ro.img'/>"
        "<target dev='vdc'/><readonly/></disk>"
        "<interface type='bridge'><source bridge='br0'/></interface><interface type='user'/>"
        "<graphics type='vnc'/><redirdev bus='usb' type='spicevmc'/><memory model='dimm'/>"
        "<smartcard mode='passthrough' type='spicevmc'/>"
    )
    assert reasons(domain(ordinary)) == []


def test_an_image_used_by_another_machine_is_named() -> None:
    disk = domxml.disks(domxml.parse(domain(QCOW2.format(more=""))))[0]
    assert refusals.disk_reasons(disk, {"/i/a.qcow2": {"other"}}) == ["disk vda is also used by other"]
    assert refusals.disk_reasons(disk, {"/i/b.qcow2": {"other"}}) == []


@pytest.mark.parametrize(
    "text",
    ["", "<domain>", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>", "<a/>" * 2, "x" * (domxml.XML_BYTES_MAX + 1)],
    ids=["empty", "cut", "doctype", "two roots", "too large"],
)
def test_no_definition_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        domxml.parse(text)


@pytest.mark.parametrize(
    ("interface", "network"),
    [
        ("<interface type='network'><source network='lan'/></interface>", "lan"),
        ("<interface type='bridge'><source bridge='br0'/></interface>", "bridge:br0"),
        ("<interface type='direct'><source dev='eth0'/></interface>", "direct:eth0"),
        ("<interface type='user'/>", None),
        ("<interface type='ethernet'><source/></interface>", None),
    ],
)
def test_what_an_adapter_is_attached_to(interface: str, network: str | None) -> None:
    assert domxml.nic_network(domxml.parse(interface)) == network


def test_firmware_and_its_variables() -> None:
    code = "<loader type='pflash' readonly='yes'>/c.fd</loader>"
    by_path = domxml.parse(domain(top=f"<os>{code}<nvram> /v.fd </nvram></os>"))
    assert domxml.firmware(by_path) == "uefi"
    assert domxml.nvram_path(by_path) == "/v.fd"
    by_source = domxml.parse(
        domain(top="<os firmware='efi'><nvram type='file'><source file='/w.fd'/></nvram></os>")
    )
    assert domxml.firmware(by_source) == "uefi"
    assert domxml.nvram_path(by_source) == "/w.fd"
    assert domxml.firmware(domxml.parse(domain(top="<os/>"))) == "bios"
