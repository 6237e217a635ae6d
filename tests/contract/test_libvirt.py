"""What only libvirt does: other products beside us, lost bitmaps, recovered machines that boot."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Quiesce, RecoverySpec
from secondsite.fabrics.errors import (
    HypervisorUnreachable,
    RecoveryFailed,
    SourceBusy,
    TrackingLost,
    Unprotectable,
)
from secondsite.fabrics.libvirt import checkpoints, domxml
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.fabrics.libvirt.source import LibvirtSource
from secondsite.lab import processes
from secondsite.lab.machine import wait_console
from secondsite.lab.place import Site
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from secondsite.model.machines import Mapping
from secondsite.model.points import Consistency
from secondsite.nbd.exports import MemoryExport
from secondsite.nbd.server import NbdServer
from support.fabrics import LibvirtBench, shared_tmpfs
from support.lab import boot_files

pytestmark = pytest.mark.libvirt


@pytest.fixture(scope="module")
def bench(sites: object, request: pytest.FixtureRequest) -> Iterator[LibvirtBench]:
    if os.geteuid() != 0:
        pytest.skip("sites need root (./run test uses sudo)")
    with ExitStack() as stack:
        site: Site = request.getfixturevalue("sites").a
        made = LibvirtBench(site, boot_files(), stack.enter_context(shared_tmpfs()))
        stack.callback(made.close)
        yield made


@pytest.fixture
def source(bench: LibvirtBench) -> Iterator[LibvirtSource]:
    opened = bench.make_fabric().open_source(bench.machine)
    yield opened
    opened.release()
    ours = [c.getName() for c in bench.domain.listAllCheckpoints() if c.getName().startswith("secondsite-")]
    assert ours == []
    images = [disk.location for disk in opened.machine.disks]
    for image in images:
        assert [name for name in _bitmaps(image) if name.startswith("secondsite")] == []
    assert [path for path in bench.scratch.iterdir() if path.suffix == ".scratch"] == []


def _bitmaps(image: str) -> list[str]:
    """What the image itself holds, stored or in use by QEMU."""
    known = json.loads(processes.run(["qemu-img", "info", "-U", "--output=json", image]))
    return [bitmap["name"] for bitmap in known["format-specific"]["data"].get("bitmaps", [])]


def _capture(source: LibvirtSource, since: str | None, checkpoint: str | None) -> None:
    with source.capture(since=since, checkpoint=checkpoint, quiesce=Quiesce.NONE) as capture:
        for disk in capture.disks:
            disk.changed()


def test_checkpoints_of_others_are_left_alone(bench: LibvirtBench, source: LibvirtSource) -> None:
    theirs = "<domaincheckpoint><name>other-product</name></domaincheckpoint>"
    _capture(source, None, "before")
    bench.domain.checkpointCreateXML(theirs, 0)
    _capture(source, "before", "after")
    bench.write(bench.free_offset, b"\x77" * 4096)
    assert list(source.checkpoints()) == ["before", "after"]
    source.forget("before")
    with source.capture(since="after", checkpoint=None, quiesce=Quiesce.NONE) as capture:
        assert capture.disks[1].changed().intersect(Extents.of([(bench.free_offset, bench.free_offset + 1)]))
    source.release()
    assert [c.getName() for c in bench.domain.listAllCheckpoints()] == ["other-product"]
    bench.domain.checkpointLookupByName("other-product").delete()


def test_a_backup_of_others_is_waited_for_not_ended(bench: LibvirtBench, source: LibvirtSource) -> None:
    socket = bench.sockets / "backup" / "theirs.sock"
    disks = "".join(
        f"<disk name='{dev}' backup='yes' type='file'><scratch file='{bench.scratch}/theirs-{dev}'/></disk>"
        for dev in ("vda", "vdb")
    )
    server = f"<server transport='unix' socket='{socket}'/>"
    xml = f"<domainbackup mode='pull'>{server}<disks>{disks}</disks></domainbackup>"
    bench.domain.backupBegin(xml, None, 0)
    try:
        began = SystemClock().monotonic()
        with pytest.raises(SourceBusy):
            _capture(source, None, None)
        # libvirt itself would let us wait 30 s for the machine's lock
        assert SystemClock().monotonic() - began < 10
        assert str(socket) in bench.domain.backupGetXMLDesc()
    finally:
        bench.domain.abortJob()
    processes.wait_until(
        lambda: bench.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE,
        what="the end of the other product's job", root=bench.site.root, seconds=30,
    )  # fmt: skip


def test_a_job_that_a_dead_process_left_is_ended(bench: LibvirtBench, source: LibvirtSource) -> None:
    source.capture(since=None, checkpoint="left", quiesce=Quiesce.NONE)
    bench.recorded.events.clear()
    again = bench.make_fabric().open_source(bench.machine)
    _capture(again, "left", None)
    assert "capture.job-ended" in [code for code, _ in bench.recorded.events]


def test_a_killed_qemu_loses_tracking_and_a_full_capture_works(
    bench: LibvirtBench, source: LibvirtSource
) -> None:
    _capture(source, None, "lost")
    pid = int((bench.site.directory / "run/libvirt/qemu" / f"{bench.guest.name}.pid").read_text())
    # the pid is of the site's own process namespace
    bench.site.run("kill", "-9", str(pid))
    processes.wait_until(
        lambda: not bench.domain.isActive(), what="the end of QEMU", root=bench.site.root, seconds=30
    )
    bench.power_on()
    with pytest.raises(TrackingLost):
        _capture(source, "lost", "next")
    source.forget("lost")
    _capture(source, None, "anew")
    assert list(source.checkpoints()) == ["anew"]
    _capture(source, "anew", None)


def test_released_while_off_it_has_no_bitmaps(bench: LibvirtBench, source: LibvirtSource) -> None:
    _capture(source, None, "one")
    _capture(source, "one", "two")
    bench.power_off()
    try:
        assert "secondsite-one" in _bitmaps(str(bench.guest.disk_paths["vdb"]))
        source.forget("one")
        assert list(source.checkpoints()) == ["two"]
        source.release()
        assert list(source.checkpoints()) == []
        assert _bitmaps(str(bench.guest.disk_paths["vdb"])) == []
    finally:
        bench.power_on()


def test_firmware_variables_travel(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    """A UEFI machine's variables are found, carried and given to the recovered one."""
    text = source.definition().text
    variables = bench.site.disks / "uefi_VARS.fd"
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    nvram = f"<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{variables}</nvram>"
    root = domxml.parse(text)
    for dead in ("uuid", "metadata"):
        root.remove(root.find(dead))  # type: ignore[arg-type]
    root.find("name").text = "uefi"  # type: ignore[union-attr]
    os_element = root.find("os")
    assert os_element is not None
    for serial in (*root.findall("devices/serial"), *root.findall("devices/console")):
        root.find("devices").remove(serial)  # type: ignore[union-attr]
    for line in (loader, nvram):
        os_element.append(domxml.parse(line))
    for disk in root.findall("devices/disk"):
        overlay = bench.site.disks / f"uefi-{disk.find('target').get('dev')}.qcow2"  # type: ignore[union-attr]
        processes.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(64 * MIB)])
        disk.find("source").set("file", str(overlay))  # type: ignore[union-attr]
    domain = bench.connection.defineXML(ET.tostring(root, encoding="unicode"))
    fabric = bench.make_fabric()
    recovered = None
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        carried = fabric.open_source(domain.UUIDString()).definition()
        assert carried.firmware_variables == variables.read_bytes()
        marked = b"MARK" + (carried.firmware_variables or b"")[4:]
        spec = _spec(bench, source, exports[1], "uefi-test")
        changed = msgspec.structs.replace(carried, firmware_variables=marked)
        recovered = fabric.start_recovered(dataclasses.replace(spec, definition=changed))
        xml = domxml.parse(bench.connection.lookupByName("uefi-test").XMLDesc(0))
        path = domxml.nvram_path(xml)
        assert path is not None
        assert path != str(variables)
        assert len(Path(path).read_bytes()) == len(marked)
        assert Path(path).stat().st_uid != 0  # libvirt gave it to QEMU
    finally:
        if recovered is not None:
            fabric.remove_recovered(recovered)
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        for left in bench.site.disks.glob("uefi-*"):
            left.unlink()
    assert not list(bench.site.disks.glob("*uefi*"))


def test_a_restart_with_internal_snapshots_loses_tracking(bench: LibvirtBench, source: LibvirtSource) -> None:
    """A revert leaves no trace in bitmaps, so where one is possible a restart is not believed.

    QEMU 7.2 refuses the revert itself while an image has bitmaps, and libvirt 9.0 leaves the machine off.
    """
    bench.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>", 0)
    try:
        _capture(source, None, "before")
        _capture(source, "before", "same-run")
        with pytest.raises(libvirt.libvirtError, match="active dirty bitmaps"):
            bench.domain.revertToSnapshot(bench.domain.snapshotLookupByName("s"), 0)
        bench.power_on()
        with pytest.raises(TrackingLost, match="snapshots"):
            _capture(source, "same-run", None)
        _capture(source, None, "anew")
        _capture(source, "anew", None)
    finally:
        bench.domain.snapshotLookupByName("s").delete()


def test_restarted_libvirtd_is_found_again(bench: LibvirtBench, source: LibvirtSource) -> None:
    _capture(source, None, "kept")
    pid = (bench.site.directory / "run/libvirtd.pid").read_text().strip()
    bench.site.run("kill", "-9", pid)
    with pytest.raises(HypervisorUnreachable) as caught:
        bench.make_fabric().machines()
    assert caught.value.retryable
    bench.site.run("libvirtd", "-d", "-p", "/run/libvirtd.pid")
    bench.connection = bench.site.connect()
    bench.domain = bench.connection.lookupByName(bench.guest.name)
    _capture(source, "kept", None)


def test_without_an_agent_the_point_is_crash_consistent_and_says_why(
    bench: LibvirtBench, source: LibvirtSource
) -> None:
    bench.recorded.events.clear()
    bench.guest.execute(
        "/bin/sh",
        "-c",
        "(sleep 1; kill -STOP $(pidof qemu-ga); sleep 20; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &",
    )
    processes.wait_until(
        lambda: not bench.guest.agent_answers(), what="a silent agent", root=bench.site.root, seconds=30
    )
    with source.capture(since=None, checkpoint=None, quiesce=Quiesce.FREEZE) as capture:
        assert capture.instant.consistency is Consistency.CRASH
        assert "frozen" in capture.instant.note
    assert "capture.consistency-lowered" in [code for code, _ in bench.recorded.events]
    processes.wait_until(bench.guest.agent_answers, what="the agent", root=bench.site.root, seconds=60)


def test_scratch_beside_guest_disks_is_refused(bench: LibvirtBench) -> None:
    fabric = LibvirtFabric(
        bench.site.uri, scratch_dir=bench.site.disks / "scratch", socket_dir=bench.sockets,
        guard=bench.guard, clock=SystemClock(), events=bench.recorded,
    )  # fmt: skip
    with pytest.raises(Unprotectable, match="file system of guest disks"):
        fabric.open_source(bench.machine)


def test_a_raw_and_a_shared_disk_are_both_named(bench: LibvirtBench) -> None:
    raw = bench.site.disks / "raw.img"
    raw.write_bytes(b"")
    os.truncate(raw, MIB)
    xml = f"""<domain type='qemu'><name>odd</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
      <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{raw}'/>
        <target dev='vda' bus='virtio'/><shareable/></disk>
      <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
        <source file='{bench.guest.disk_paths["vdb"]}'/><target dev='vdb' bus='virtio'/></disk>
      </devices></domain>"""
    domain = bench.connection.defineXML(xml)
    try:
        with pytest.raises(Unprotectable) as caught:
            bench.fabric.open_source(domain.UUIDString())
        text = str(caught.value)
        assert "disk vda is raw" in text
        assert "disk vda is shared" in text
        assert f"disk vdb is also used by {bench.guest.name}" in text
    finally:
        domain.undefine()
        raw.unlink()


@pytest.fixture
def exports(bench: LibvirtBench, source: LibvirtSource) -> Iterator[tuple[NbdServer, Path]]:
    """The machine's disks as of now, served as a point's are."""
    served = {}
    with source.capture(since=None, checkpoint=None, quiesce=Quiesce.FREEZE) as capture:
        for disk in capture.disks:
            data = bytearray(disk.size_bytes)
            for offset, view in disk.read(disk.changed().pieces(MIB)):
                data[offset : offset + len(view)] = view
            served[str(disk.id)] = MemoryExport(data)
    path = bench.sockets / "point.sock"
    with NbdServer(served) as server:
        server.listen_unix(str(path))
        yield server, path


class _Exported:
    def __init__(self, name: str, size_bytes: int, path: Path) -> None:
        self.id = DiskId(name)
        self.export_name = name
        self.size_bytes = size_bytes
        self.socket_path = str(path)


def _spec(bench: LibvirtBench, source: LibvirtSource, path: Path, name: str, **more: object) -> RecoverySpec:
    disks = [_Exported(disk.id, disk.size_bytes, path) for disk in source.machine.disks]
    values: dict[str, object] = {
        "name": name, "definition": source.definition(), "disks": disks,
        "mapping": Mapping(default_pool=bench.site.pool), "network": None, "keep_identity": False,
        "note": "quiet, point 7",
    }  # fmt: skip
    return RecoverySpec(**{**values, **more})  # type: ignore[arg-type]


def test_recovered_machine_boots_is_found_again_and_leaves_nothing(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    fabric = bench.make_fabric()
    files_before = sorted(bench.site.disks.iterdir())
    fabric.make_isolated_network("recover-test")
    spec = _spec(bench, source, exports[1], "quiet-test", network="recover-test")
    recovered = fabric.start_recovered(spec)
    assert recovered.console_log is not None
    wait_console(Path(recovered.console_log), "READY", root=bench.site.root)
    domain = bench.connection.lookupByName("quiet-test")
    xml = domxml.parse(domain.XMLDesc(0))
    assert domain.UUIDString() != bench.machine
    assert not domain.autostart()
    assert "quiet, point 7" in (xml.findtext("title") or "")
    assert {driver.get("error_policy") for driver in xml.findall("devices/disk/driver")} == {"stop"}
    mac = xml.find("devices/interface/mac")
    assert mac is not None
    assert mac.get("address") == source.machine.nics[0].mac
    with pytest.raises(RecoveryFailed, match="exists"):
        fabric.start_recovered(spec)
    again = bench.make_fabric()  # as after a crash of ours: nothing but libvirt knows
    assert list(again.recovered()) == [recovered]
    assert recovered.networks == ("recover-test",)
    again.remove_recovered(recovered)
    again.remove_recovered(recovered)
    again.remove_network("recover-test")
    assert list(again.recovered()) == []
    assert sorted(bench.site.disks.iterdir()) == files_before


def test_recovered_machine_is_resumed_only_after_the_loss_of_its_export(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    fabric = bench.make_fabric()
    recovered = fabric.start_recovered(_spec(bench, source, exports[1], "quiet-loss"))
    domain = bench.connection.lookupByName("quiet-loss")
    link = domxml.parse(domain.XMLDesc(0)).find("devices/interface/link")
    assert link is not None
    assert link.get("state") == "down"  # unmapped: attached to nothing
    domain.suspend()
    assert not fabric.resume_stopped(recovered)  # a person paused it
    domain.resume()
    exports[0].close()
    stopped = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    processes.wait_until(
        lambda: domain.state() == stopped, what="a stop by its disk", root=bench.site.root, seconds=120
    )
    assert fabric.resume_stopped(recovered)
    fabric.remove_recovered(recovered)
    assert list(fabric.recovered()) == []


def test_failed_start_leaves_nothing(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    fabric = bench.make_fabric()
    files_before = sorted(bench.site.disks.iterdir())
    for more in (
        {"network": "no-such-network"},
        {"mapping": Mapping(default_pool="no-such-pool")},
        {"mapping": Mapping()},
    ):
        with pytest.raises(RecoveryFailed):
            fabric.start_recovered(_spec(bench, source, exports[1], "quiet-fails", **more))
    assert list(fabric.recovered()) == []
    assert sorted(bench.site.disks.iterdir()) == files_before
    with pytest.raises(libvirt.libvirtError):
        bench.connection.lookupByName("quiet-fails")


def test_a_kept_identity_keeps_uuid_and_mac(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path], sites: object
) -> None:
    """The same machine cannot be defined twice at one host: libvirt says so, in an error of ours."""
    spec = _spec(bench, source, exports[1], "quiet-failover", keep_identity=True)
    with pytest.raises(RecoveryFailed, match=bench.machine):
        bench.make_fabric().start_recovered(spec)


def test_names_of_checkpoints_are_prefixed_and_checked() -> None:
    assert checkpoints.full_name("7-a.b_c") == "secondsite-7-a.b_c"
    for bad in ("", "a/b", "a b", "-a", "x" * 101, str(uuid.uuid4()) + "\n"):
        with pytest.raises(Exception, match="not valid"):
            checkpoints.full_name(bad)
