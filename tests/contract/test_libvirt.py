"""What only libvirt does: other products beside us, lost bitmaps, recovered machines that boot."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Ended, Quiesce, Recovered, RecoverySpec, Shape
from secondsite.fabrics.errors import (
    HypervisorUnreachable,
    NotIsolated,
    RecoveryFailed,
    SourceBusy,
    TrackingLost,
    Unprotectable,
)
from secondsite.fabrics.libvirt import checkpoints, domxml, hosttypes, original, overlays, settings
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.fabrics.libvirt.source import LibvirtSource
from secondsite.gateway.failover import verified
from secondsite.lab import processes
from secondsite.lab.machine import AGENT_CHANNEL, wait_console
from secondsite.lab.place import Site
from secondsite.model import recovered as recovered_settings
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.machines import Mapping
from secondsite.model.outlook import Outlook
from secondsite.model.points import Consistency
from secondsite.model.recovered import DiskBus, RecoveredSettings
from secondsite.nbd.exports import MemoryExport
from secondsite.nbd.server import NbdServer
from support.fabrics import LibvirtBench, shared_tmpfs
from support.lab import boot_files

pytestmark = pytest.mark.libvirt
_T = TypeVar("_T")


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
        told: list[str] = []

        def refused() -> bool:
            """libvirt forgets a disk's job a moment after the backup that it belonged to has ended."""
            with pytest.raises(libvirt.libvirtError) as caught:
                bench.domain.revertToSnapshot(bench.domain.snapshotLookupByName("s"), 0)
            told.append(str(caught.value))
            return "active block job" not in told[-1]

        processes.wait_until(refused, what="the end of the disks' jobs", root=bench.site.root, seconds=60)
        assert "active dirty bitmaps" in told[-1]
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


def test_an_agent_that_is_restarted_during_a_job_is_known_at_its_end(
    bench: LibvirtBench, source: LibvirtSource
) -> None:
    """Without what `jobs.abort_ours` does the job's end takes 30 s, and libvirt loses the agent for good."""
    agent = f"qemu-ga -d -m virtio-serial -p /dev/virtio-ports/{AGENT_CHANNEL} -f /var/run/agent.pid"
    script = f"sleep 0.5; kill $(pidof qemu-ga); sleep 1; rm -f /var/run/agent.pid; {agent}"

    def is_open() -> bool:
        answer = libvirt_qemu.qemuMonitorCommand(bench.domain, '{"execute": "query-chardev"}', 0)
        [port] = [one for one in json.loads(answer)["return"] if one["label"] == "charchannel0"]
        return bool(port["frontend-open"])

    def until(condition: Callable[[], bool], what: str) -> None:
        processes.wait_until(condition, what=what, root=bench.site.root, seconds=30, poll_seconds=0.02)

    with source.capture(since=None, checkpoint=None, quiesce=Quiesce.NONE):
        bench.guest.execute("/bin/sh", "-c", f"({script}) >/dev/null 2>&1 &")
        until(lambda: not is_open(), "the agent's end")
        until(is_open, "the agent's return")
        began = SystemClock().monotonic()
    assert SystemClock().monotonic() - began < 10
    until(bench.guest.agent_answers, "the agent's answer")


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


def test_a_machine_is_removed_with_its_own_images_and_no_others(bench: LibvirtBench) -> None:
    own, shared = bench.site.disks / "own.qcow2", bench.site.disks / "shared.qcow2"
    for image in (own, shared):
        processes.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"])

    def define(name: str, *images: Path) -> MachineId:
        disks = "".join(
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
            f"<target dev='vd{letter}' bus='virtio'/></disk>"
            for letter, image in zip("ab", images, strict=False)
        )
        xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
          <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}</devices></domain>"""
        return machine_id(bench.connection.defineXML(xml).UUIDString())

    machine, other = define("removed", own, shared), define("other", shared)
    fabric = bench.make_fabric()
    try:
        with pytest.raises(NotIsolated):
            fabric.remove_machine(machine, disks=True)
        fabric.isolate(machine, why="it runs elsewhere", autostart=True)
        assert list(fabric.remove_machine(machine, disks=True)) == [str(shared)]
        assert (own.exists(), shared.exists()) == (False, True)
        assert machine not in [known.id for known in fabric.machines()]
        assert list(fabric.remove_machine(machine, disks=True)) == [], "asked again after a crash"
    finally:
        bench.connection.lookupByUUIDString(other).undefine()
        own.unlink(missing_ok=True)
        shared.unlink()


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


def _mark(image: Path, verb: str) -> None:
    """Something its guest wrote, in a cluster of its own."""
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"{verb} -P 0x5a 1M 64k", str(image)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verification failed" not in done.stdout, done.stdout


def _hypervisor(name: str) -> int:
    return next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f"guest={name}," in _words(entry) and "qemu" in _words(entry)
    )


def _words(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _die(bench: LibvirtBench, name: str) -> None:
    os.kill(_hypervisor(name), signal.SIGKILL)
    processes.wait_until(
        lambda: not bench.connection.lookupByName(name).isActive(),
        what="the end of its hypervisor process", root=bench.site.root, seconds=30,
    )  # fmt: skip


def test_disks_made_plain_outlive_their_hypervisor(
    bench: LibvirtBench,
    source: LibvirtSource,
    exports: tuple[NbdServer, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pull's end is not its durability: QEMU keeps tables of what it pulled in memory until a flush."""
    fabric, name = bench.make_fabric(), "quiet-kept"
    recovered = fabric.start_recovered(_spec(bench, source, exports[1], name))
    console = Path(recovered.console_log or "")
    wait_console(console, "READY", root=bench.site.root)

    def plain() -> bool:
        return fabric.flatten(recovered, bytes_per_second=None).finished

    def cut(_domain: object, _paths: object) -> str:
        _die(bench, name)
        raise ProcessLookupError

    def boots() -> None:
        os.truncate(console, 0)
        assert fabric.run_recovered(recovered)
        wait_console(console, "READY", root=bench.site.root)
        assert b"MOUNT failed" not in console.read_bytes()

    # it dies when all is pulled and nothing flushed: the export beneath is used again
    with monkeypatch.context() as patch:
        patch.setattr(overlays, "make_durable", cut)
        with pytest.raises(ProcessLookupError):
            processes.wait_until(plain, what="the pull", root=bench.site.root, seconds=120)
    assert [overlays.backing(path) for path in recovered.overlays] == [None, None], "as if all were there"
    assert not all(overlays.is_plain(path) for path in recovered.overlays)
    boots()

    processes.wait_until(plain, what="plain disks", root=bench.site.root, seconds=120)
    _die(bench, name)
    exports[0].close()  # nothing is beneath any more
    boots()
    fabric.remove_recovered(recovered)


def test_disks_of_a_recovered_machine_sync_what_they_are_told_to(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    """A power cut in the middle of a copy leaves no table without its data: not so with cache=unsafe."""
    fabric, definition = bench.make_fabric(), source.definition()
    root = domxml.parse(definition.text)
    for driver in root.findall("devices/disk/driver"):
        driver.set("cache", "unsafe")
    definition = msgspec.structs.replace(definition, text=ET.tostring(root, encoding="unicode"))
    spec = _spec(bench, source, exports[1], "quiet-synced", definition=definition)
    told = [found.cause for found in fabric.outlook(spec).findings if "cache=unsafe" in found.cause]
    assert len(told) == len(spec.disks)
    recovered = fabric.start_recovered(spec)
    domain = bench.connection.lookupByName("quiet-synced")
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        drivers = domxml.parse(domain.XMLDesc(flags)).findall("devices/disk/driver")
        assert [driver.get("cache") for driver in drivers] == ["writeback"] * len(spec.disks)
    nodes = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-named-block-nodes"}', 0))
    assert not any(node["cache"]["no-flush"] for node in nodes["return"])
    fabric.remove_recovered(recovered)


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
    kept = [file.path for file in again.keep_overlays(recovered, "p7")]
    _mark(Path(kept[0]), "write")
    back = again.start_recovered(dataclasses.replace(spec, goes_on="p7"))
    bench.connection.lookupByName("quiet-test").destroy()
    _mark(Path(back.overlays[0]), "read")
    again.remove_recovered(back)
    again.remove_recovered(back)
    again.remove_kept(kept)
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
    assert [(nic.network, nic.up) for nic in _shape(fabric, recovered).nics] == [("", False)]
    domain.suspend()
    assert not fabric.resume_stopped(recovered)  # a person paused it
    domain.resume()
    domain.destroy()
    assert fabric.life_of(recovered).ended is Ended.IN_ORDER, "a person switched it off"
    assert fabric.shape_of(recovered) is None
    assert fabric.run_recovered(recovered)
    exports[0].close()
    stopped = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    processes.wait_until(
        lambda: domain.state() == stopped, what="a stop by its disk", root=bench.site.root, seconds=120
    )
    assert fabric.resume_stopped(recovered)
    pid = int((bench.site.directory / "run/libvirt/qemu/quiet-loss.pid").read_text())
    bench.site.run("kill", "-9", str(pid))
    processes.wait_until(lambda: not domain.isActive(), what="its end", root=bench.site.root, seconds=30)
    assert not domain.autostart(), "nothing but us starts it again"
    assert fabric.life_of(recovered).ended is Ended.LOST
    kept = fabric.keep_overlays(recovered, "p7")
    assert list(fabric.recovered()) == []
    assert [file.path for file in kept] == [f"{overlay}.p7.kept" for overlay in recovered.overlays]
    assert all(file.bytes > 0 for file in kept)
    assert not any(Path(overlay).exists() for overlay in recovered.overlays), "the next one's write there"
    assert fabric.keep_overlays(recovered, "p7") == kept, "asked again after a crash"
    paths = [Path(file.path) for file in kept]
    other = paths[0].with_name("secondsite-other.qcow2")
    other.touch()
    fabric.remove_kept([*map(str, paths), str(other)])
    fabric.remove_kept([str(path) for path in paths])
    assert [path.exists() for path in (*paths, other)] == [False] * len(paths) + [True]
    other.unlink()


STATIC = {"nic": "1", "mac": "new", "addressing": "static", "addresses": ["192.0.2.77/24", "2001:db8::77/64"]}


def _set(network: str, injection: str) -> RecoveredSettings:
    value = {
        "cpus": 2,
        "memoryBytes": 224 * MIB,
        "nics": [{**STATIC, "network": network, "gateways": ["192.0.2.1"]}],
        "injection": injection,
        "hosts": [{"address": "192.0.2.9", "names": ["db", "db.example.org"]}],
    }
    return recovered_settings.from_object(value)


def test_settings_are_what_the_machine_has_and_its_agent_brings_the_addresses_in(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    fabric = bench.make_fabric()
    files_before = sorted(bench.site.disks.iterdir())
    fabric.make_isolated_network("set-test")
    asked = _set("set-test", "agent")
    spec = _spec(bench, source, exports[1], "quiet-set", settings=asked, attach_as_set=True)
    seen = fabric.outlook(spec)
    assert [finding for finding in seen.findings if finding.required] == []
    assert (seen.cpus, seen.memory_bytes, seen.drive_bus, seen.home) == (2, 224 * MIB, "scsi", False)
    assert [(nic.network, nic.mac) for nic in seen.nics] == [("set-test", "new")]
    recovered = fabric.start_recovered(spec)
    try:
        assert recovered.console_log is not None
        wait_console(Path(recovered.console_log), "READY", root=bench.site.root)
        xml = domxml.parse(bench.connection.lookupByName("quiet-set").XMLDesc(0))
        assert (xml.findtext("vcpu"), xml.findtext("memory")) == ("2", str(224 * 1024))
        [interface] = xml.findall("devices/interface")
        assert domxml.nic_network(interface) == "set-test"
        assert domxml.nic_mac(interface) not in ("", source.machine.nics[0].mac)
        _has_the_shape_that_was_asked_for(bench, recovered, seen)
        run = _answering(bench, lambda: fabric.apply_in_guest(recovered))
        ended = _answering(bench, lambda: fabric.applied(recovered, run))
        assert ended.code == 0, ended.output
        assert "eth0: static 192.0.2.77/24 2001:db8::77/64" in ended.output
        assert set(asked.static_addresses) <= set(fabric.addresses_of(recovered))
        # the address is taken now, as far as this host hears
        again = fabric.outlook(dataclasses.replace(spec, name="quiet-other"))
        assert all(finding.name == "addresses" for finding in again.findings if finding.required)
    finally:
        fabric.remove_recovered(recovered)
        fabric.remove_network("set-test")
    assert sorted(bench.site.disks.iterdir()) == files_before


def _has_the_shape_that_was_asked_for(bench: LibvirtBench, recovered: Recovered, seen: Outlook) -> None:
    """By libvirt's own live definition, which follows what somebody does to the machine."""
    fabric, domain = bench.make_fabric(), bench.connection.lookupByName(recovered.name)
    asked = dataclasses.replace(_shape(fabric, recovered), nics=())
    assert asked == Shape(cpus=seen.cpus, memory_bytes=seen.memory_bytes, nics=())
    assert _checks(seen, fabric, recovered) == {}
    interface = domxml.parse(domain.XMLDesc(0)).find("devices/interface")
    assert interface is not None
    link, where = ET.SubElement(interface, "link", state="down"), interface.find("source")
    assert where is not None
    domain.updateDeviceFlags(ET.tostring(interface, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    assert _checks(seen, fabric, recovered) == {
        "networks": "adapter 1 is attached to set-test, and its link is down"
    }
    where.attrib.clear()
    where.set("network", bench.site.network)
    link.set("state", "up")
    domain.updateDeviceFlags(ET.tostring(interface, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    moved = f"adapter 1 is attached to {bench.site.network}, and set-test was asked for"
    assert _checks(seen, fabric, recovered) == {"networks": moved}
    where.set("network", "set-test")
    domain.updateDeviceFlags(ET.tostring(interface, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    more = msgspec.structs.replace(seen, cpus=3, memory_bytes=seen.memory_bytes + MIB)
    assert list(_checks(more, fabric, recovered)) == ["processors", "memory"]


def _shape(fabric: LibvirtFabric, recovered: Recovered) -> Shape:
    found = fabric.shape_of(recovered)
    assert found is not None
    return found


def _checks(asked: Outlook, fabric: LibvirtFabric, recovered: Recovered) -> dict[str, str]:
    """What differs, by name of the check, with its cause."""
    found = verified.verify(asked, fabric.shape_of(recovered), fabric.life_of(recovered).power)
    return {check.name: check.cause for check in found if not check.passed}


def test_a_guest_that_was_prepared_reads_the_drive_by_itself(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    fabric = bench.make_fabric()
    fabric.make_isolated_network("drive-test")
    definition = source.definition()
    prepared = definition.text.replace("lab.slots=", "lab.drive=1 lab.slots=")
    spec = _spec(
        bench, source, exports[1], "quiet-drive", settings=_set("drive-test", "drive"), attach_as_set=True,
        definition=msgspec.structs.replace(definition, text=prepared),
    )  # fmt: skip
    recovered = fabric.start_recovered(spec)
    try:
        assert recovered.console_log is not None
        line = wait_console(Path(recovered.console_log), "DRIVE ended", root=bench.site.root)
        assert line == "DRIVE ended with 0"
        wait_console(Path(recovered.console_log), "READY", root=bench.site.root)
        seen = _answering(bench, lambda: fabric.addresses_of(recovered))
        assert {"192.0.2.77", "2001:db8::77"} <= set(seen)
    finally:
        fabric.remove_recovered(recovered)
        fabric.remove_network("drive-test")


def test_back_at_its_host_a_machine_is_defined_as_it_was_there(
    bench: LibvirtBench, source: LibvirtSource, exports: tuple[NbdServer, Path]
) -> None:
    """As a point of the other site tells it: renamed, smaller, on that site's network, with our drive."""
    fabric = bench.make_fabric()
    here = domxml.parse(source.definition().text)
    there = domxml.parse(source.definition().text)
    for path, text in (("name", "quiet-b"), ("memory", "131072"), ("currentMemory", "131072")):
        element = there.find(path)
        assert element is not None
        element.text = text
    network = there.find("devices/interface/source")
    metadata = there.find("metadata")
    assert network is not None
    assert metadata is not None
    network.set("network", "of-the-other-site")
    metadata.clear()
    original.keep(here, metadata)
    settings.add_drive(there, settings.Drive("/of/the/other/site.iso", DiskBus.SCSI))
    travelled = msgspec.structs.replace(source.definition(), text=ET.tostring(there, encoding="unicode"))
    spec = _spec(bench, source, exports[1], "", definition=travelled, attach_as_set=True)
    seen = fabric.outlook(spec)
    assert (seen.home, seen.name, seen.memory_bytes) == (True, "quiet", source.machine.memory_bytes)
    assert [nic.network for nic in seen.nics] == [bench.site.network]
    assert seen.findings == ()
    smaller = RecoveredSettings(memory_bytes=160 * MIB)
    recovered = fabric.start_recovered(dataclasses.replace(spec, name="quiet-home", settings=smaller))
    try:
        xml = domxml.parse(bench.connection.lookupByName("quiet-home").XMLDesc(0))
        assert xml.findtext("memory") == str(160 * 1024)  # what is set for the way back is put over it
        [interface] = xml.findall("devices/interface")
        assert domxml.nic_network(interface) == bench.site.network
        assert domxml.nic_mac(interface) != source.machine.nics[0].mac  # a test beside the original
        assert not any(domxml.is_settings_drive(disk) for disk in xml.findall("devices/disk"))
        assert original.at_home(xml, hosttypes.host_uuid(bench.connection)) is None  # it is at home
    finally:
        fabric.remove_recovered(recovered)
    # at any other host it takes the definition of here along
    elsewhere = fabric.start_recovered(_spec(bench, source, exports[1], "quiet-away"))
    try:
        xml = domxml.parse(bench.connection.lookupByName("quiet-away").XMLDesc(0))
        back = original.at_home(xml, hosttypes.host_uuid(bench.connection))
        assert back is not None
        assert back.findtext("name") == "quiet"
    finally:
        fabric.remove_recovered(elsewhere)


def test_what_the_host_does_not_have_is_found_beforehand(bench: LibvirtBench, source: LibvirtSource) -> None:
    fabric = bench.make_fabric()
    wrong = recovered_settings.from_object(
        {
            "cpus": 1000, "memoryBytes": 1 << 44, "machineType": "virt-1.0", "diskBus": "ide",
            "bootOrder": ["vdq"],
            "nics": [{**STATIC, "network": "nowhere", "addresses": [_own_address(bench)]}, {"nic": "7"}],
            "injection": "agent",
        }
    )  # fmt: skip
    spec = _spec(bench, source, Path("/none"), "quiet-wrong", settings=wrong, attach_as_set=True)
    found = {finding.name: finding.cause for finding in fabric.outlook(spec).findings if finding.required}
    assert set(found) == {
        "processors", "memory", "machine-type", "boot-order", "networks", "adapters", "addresses",
    }  # fmt: skip
    assert "no network nowhere" in found["networks"]


def _own_address(bench: LibvirtBench) -> str:
    """One that the site's network has itself."""
    network = domxml.parse(bench.connection.networkLookupByName(bench.site.network).XMLDesc(0))
    ip = network.find("ip")
    assert ip is not None
    return f"{ip.get('address')}/24"


def _answering(bench: LibvirtBench, ask: Callable[[], _T | None]) -> _T:
    """What an agent says once it answers."""

    def answer() -> _T | None:
        try:
            return ask()
        except SourceBusy:
            return None

    return processes.wait_until(
        answer, what="the guest agent", root=bench.site.root, seconds=120, poll_seconds=0.1
    )


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
