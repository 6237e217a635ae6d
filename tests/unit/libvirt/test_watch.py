"""What is noticed of machines that are off or were changed, and which errors mean that a daemon is gone."""

from __future__ import annotations

import os
from pathlib import Path

import libvirt
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.errors import SourceBusy, SourceGone, SourceMoved
from secondsite.fabrics.libvirt import definition, domxml
from secondsite.fabrics.libvirt.errors import HypervisorRefused, translate
from secondsite.fabrics.libvirt.inventory import Found
from secondsite.fabrics.libvirt.tracking import disk_named
from secondsite.fabrics.libvirt.watch import Images, was_migrated, why_off
from secondsite.model.ids import DiskId

VDA, VDB = DiskId("vda"), DiskId("vdb")


@pytest.fixture
def images(tmp_path: Path) -> dict[DiskId, str]:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"as it was")
        os.utime(tmp_path / name, ns=(1, 1))
    return {VDA: str(tmp_path / "a"), VDB: str(tmp_path / "b")}


def test_an_image_written_to_while_off_makes_its_older_checkpoints_lie(images: dict[DiskId, str]) -> None:
    watch = Images()
    watch.look(images, ["one", "two"])
    watch.look(images, ["one", "two"])
    assert not watch.lies("vda", "two")
    Path(images[VDB]).write_bytes(b"otherwise")
    watch.look(images, ["one", "two"])
    watch.look(images, ["one", "two"])
    watch.running()
    assert not watch.lies("vda", "two")
    assert watch.lies("vdb", "one")
    assert watch.lies("vdb", "two")
    assert not watch.lies("vdb", "three"), "made since, it knows what is there"


def test_a_copy_in_an_images_place_is_another_image(images: dict[DiskId, str]) -> None:
    watch = Images()
    watch.look(images, ["one"])
    copy = Path(images[VDA] + ".copy")
    copy.write_bytes(Path(images[VDA]).read_bytes())
    os.utime(copy, ns=(1, 1))
    copy.rename(images[VDA])
    watch.look(images, ["one"])
    assert watch.lies("vda", "one")


def test_what_runs_or_what_we_wrote_is_no_trouble(images: dict[DiskId, str]) -> None:
    watch = Images()
    watch.look(images, ["one"])
    Path(images[VDA]).write_bytes(b"a bitmap taken out by us")
    watch.ours(images)
    watch.look(images, ["one"])
    watch.running()
    Path(images[VDB]).write_bytes(b"the guest's business")
    watch.look(images, ["one"])  # off again
    assert not watch.lies("vda", "one")
    assert not watch.lies("vdb", "one")


def test_why_it_is_off() -> None:
    assert "killed" not in why_off(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
    assert "orderly" in why_off(libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
    assert why_off(12345) == "it does not run"
    assert was_migrated(libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
    assert not was_migrated(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)


def test_the_disk_libvirt_names_is_found_in_any_language() -> None:
    devs = ["vda", "vdb"]
    assert disk_named("missing or broken bitmap 'x' for disk 'vdb'", devs) == "vdb"
    assert disk_named("Bitmap »x« der Festplatte 'vda' fehlt", devs) == "vda"
    assert disk_named("both 'vda' and 'vdb'", devs) is None
    assert disk_named("none", devs) is None


@pytest.mark.parametrize(
    ("code", "domain", "kind"),
    [
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, SourceGone),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, HypervisorRefused),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, SourceGone),
        (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_FROM_QEMU, SourceMoved),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_FROM_QEMU, SourceBusy),
    ],
)
def test_translations(code: int, domain: int, kind: type[SecondsiteError]) -> None:
    error = libvirt.libvirtError("a call failed")
    error.err = (code, domain, "client socket is closed", 2, None, None, None, -1, -1)
    assert type(translate(error, machine="shop", what="begin a backup")) is kind


def _machine(*disks: str) -> str:
    each = "".join(
        f"<disk type='file' device='disk'><source file='/disks/{disk}'/><target dev='{disk}' bus='virtio'/>"
        f"<alias name='virtio-{disk}'/></disk>"
        for disk in disks
    )
    return f"<domain type='kvm'><name>shop</name><os/><devices>{each}</devices></domain>"


def test_a_disk_plugged_in_for_this_run_only_travels_with_the_definition() -> None:
    class Domain:
        def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's name
            assert flags & libvirt.VIR_DOMAIN_XML_INACTIVE
            return _machine("vda", "vdb")

        def connect(self) -> object:
            return Host()

    class Host:
        def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
            return "<capabilities><host><uuid>here</uuid></host></capabilities>"

    live = domxml.parse(_machine("vda", "vdc"))
    found = definition.read(Found(Domain(), live, tuple(domxml.disks(live))), [])
    root = domxml.parse(found.text)
    assert [domxml.target_dev(disk) for disk in root.findall("devices/disk")] == ["vda", "vdb", "vdc"]
    assert definition.source_host(root) == "here"
    added = root.findall("devices/disk")[-1]
    assert added.find("alias") is None
