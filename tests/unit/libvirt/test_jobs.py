"""What is asked of libvirt for a capture, and what a freeze earns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from secondsite.base.clock import FakeClock
from secondsite.fabrics.libvirt import checkpoints, domxml, jobs, places, quiesce, space, tracking
from secondsite.fabrics.libvirt.errors import HostUnready
from secondsite.fabrics.libvirt.places import Places
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency

MACHINE = MachineId("6f5b2c1e-0d5c-4c8f-9f9b-8d7a6c5b4a39")
PLACES = Places(Path("/scratch"), Path("/run/secondsite"))


def test_a_first_copy_names_every_disk_and_asks_for_no_bitmap() -> None:
    root = domxml.parse(jobs.backup_xml(PLACES, MACHINE, ["vda", "vdb"], ["vda", "vdb", "sda"], since=None))
    assert root.get("mode") == "pull"
    assert root.find("incremental") is None
    assert root.find("server").get("socket") == str(PLACES.backup_socket(MACHINE))  # type: ignore[union-attr]
    disks = {disk.get("name"): disk for disk in root.findall("disks/disk")}
    assert [disks[name].get("backup") for name in ("vda", "vdb", "sda")] == ["yes", "yes", "no"]
    assert all(disk.get("exportbitmap") is None for disk in disks.values())
    scratch = disks["vdb"].find("scratch")
    assert scratch is not None
    assert scratch.get("file") == f"/scratch/{MACHINE}-vdb.scratch"


def test_an_increment_names_its_checkpoint_and_our_bitmap() -> None:
    root = domxml.parse(jobs.backup_xml(PLACES, MACHINE, ["vda"], ["vda"], since="7"))
    assert root.findtext("incremental") == "secondsite-7"
    assert [disk.get("exportbitmap") for disk in root.findall("disks/disk")] == [jobs.BITMAP]


def test_a_checkpoint_is_over_the_protected_disks_only() -> None:
    root = domxml.parse(checkpoints.xml("7", ["vda"], ["vda", "vdb"], "a note"))
    assert root.findtext("name") == "secondsite-7"
    assert root.findtext("description") == "a note"
    kinds = {disk.get("name"): disk.get("checkpoint") for disk in root.findall("disks/disk")}
    assert kinds == {"vda": "bitmap", "vdb": "no"}


class StuckDomain:
    """libvirt 9.0 with an event of a port that waits for the end of our job: see `jobs._notice_end`."""

    def __init__(self, socket: str, *, stuck: bool = True, ends_by_itself: bool = True) -> None:
        self.socket: str | None = socket
        self.stuck, self.ends_by_itself = stuck, ends_by_itself
        self.left = ["vda", "vdb"]
        self.aborted, self.touched = 0, list[str]()

    def backupGetXMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        if self.socket is None:
            missing = libvirt.libvirtError("no domain backup job present")
            missing.err = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP,)
            raise missing
        disks = "".join(f"<disk name='{dev}' backup='yes'/>" for dev in ("vda", "vdb"))
        others = "<disk name='sda' backup='no'/>"
        server = f"<server transport='unix' socket='{self.socket}'/>"
        return f"<domainbackup mode='pull'>{server}<disks>{disks}{others}</disks></domainbackup>"

    def abortJob(self) -> None:  # noqa: N802 - libvirt's name
        self.aborted += 1
        if not self.stuck:
            self.socket = None

    def blockJobAbort(self, dev: str, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.touched.append(dev)
        self.left.remove(dev)
        if not self.left:
            self.socket = None if self.ends_by_itself else "/of/another.sock"
        raise libvirt.libvirtError("block job on disk is still being ended")


def _abort(domain: StuckDomain, clock: FakeClock) -> jobs.JobEnd:
    return jobs.abort_ours(domain, PLACES, MACHINE, clock)


def test_a_job_whose_end_libvirt_cannot_notice_is_ended_at_once() -> None:
    ours, clock = str(PLACES.backup_socket(MACHINE)), FakeClock()
    stuck = StuckDomain(ours)
    assert _abort(stuck, clock) is jobs.JobEnd.UNSTUCK
    # once a disk, after libvirt had its time, and long before its own 30 s
    assert (stuck.aborted, stuck.touched) == (1, ["vda", "vdb"])
    assert jobs.NOTICE_SECONDS <= clock.monotonic() < 1.0
    assert _abort(stuck, clock) is jobs.JobEnd.NONE


def test_a_job_that_ends_as_usual_is_not_touched_further() -> None:
    well = StuckDomain(str(PLACES.backup_socket(MACHINE)), stuck=False)
    assert _abort(well, FakeClock()) is jobs.JobEnd.ENDED
    assert well.touched == []


def test_the_job_of_another_program_is_neither_aborted_nor_touched() -> None:
    theirs = StuckDomain("/of/another.sock")
    assert _abort(theirs, FakeClock()) is jobs.JobEnd.NONE
    assert (theirs.aborted, theirs.touched) == (0, [])
    # ours ends between two disks, and somebody else begins one at that moment
    follows = StuckDomain(str(PLACES.backup_socket(MACHINE)), ends_by_itself=False)
    follows.left = ["vda"]
    assert _abort(follows, FakeClock()) is jobs.JobEnd.UNSTUCK
    assert follows.touched == ["vda"]


class CountedLease:
    def __init__(self) -> None:
        self.released = 0

    def renew(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Counted."""
        self.released += 1


class OneGuard:
    def __init__(self) -> None:
        self.lease = CountedLease()

    def job(self, machine: MachineId, *, seconds: float) -> CountedLease:
        """See `quiesce.Guard`."""
        return self.lease

    def freeze(self, machine: MachineId, *, seconds: float) -> CountedLease:
        """See `quiesce.Guard`."""
        return self.lease

    def held_elsewhere(self, machine: MachineId) -> bool:
        """See `quiesce.Guard`."""
        return False


class FakeDomain:
    """A guest's agent that fails as told."""

    def __init__(self, freeze: Exception | int, thaw: Exception | int) -> None:
        self.freeze, self.thaw = freeze, thaw
        self.thaws = 0

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:  # noqa: N802 - libvirt's name
        assert seconds < quiesce.FREEZE_SECONDS_MAX

    def fsFreeze(self, points: None, flags: int) -> int:  # noqa: N802 - libvirt's name
        if isinstance(self.freeze, Exception):
            raise self.freeze
        return self.freeze

    def fsThaw(self, points: None, flags: int) -> int:  # noqa: N802 - libvirt's name
        self.thaws += 1
        if isinstance(self.thaw, Exception):
            raise self.thaw
        return self.thaw


LATE = quiesce.FREEZE_SECONDS_MAX


@dataclass(frozen=True)
class Case:
    name: str
    label: Consistency
    count: int = 3
    problem: str = ""
    thawed: int = 3
    seconds: float = 0.2
    given: bool = True


CASES = [
    Case("all kept", Consistency.APPLICATION),
    Case("mounted twice", Consistency.APPLICATION, thawed=4),
    Case("one thawed early", Consistency.FILE_SYSTEM, thawed=2),
    Case("all thawed early", Consistency.CRASH, thawed=0),
    Case("nothing to freeze", Consistency.CRASH, count=0, thawed=0),
    Case("a hook failed", Consistency.CRASH, count=0, problem="hook failed", thawed=0),
    Case("too late", Consistency.CRASH, seconds=LATE),
    Case("no instant", Consistency.CRASH, given=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_labels_are_earned(case: Case) -> None:
    frozen = quiesce.Freeze(CountedLease(), asked_at=0.0, count=case.count, problem=case.problem)
    earned = quiesce.judge(frozen, thawed=case.thawed, seconds=case.seconds, instant_given=case.given)
    assert earned.consistency is case.label
    assert bool(earned.note) == (case.label is not Consistency.APPLICATION)


class FakeError(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self, code: int, message: str) -> None:
        self.err = (code, 0, message, 0, "", None, None, 0, 0)


@pytest.mark.parametrize(
    ("code", "message", "lost"),
    [
        (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, "checkpoint inconsistent: missing or broken bitmap", True),
        (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, "no domain checkpoint with matching name", True),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "unable to execute QEMU command: Bitmap 'x' is inconsistent", True),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock", False),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "Could not create scratch: No space left", False),
    ],
)
def test_which_refusals_mean_lost_tracking(code: int, message: str, lost: bool) -> None:
    assert tracking.says_lost(FakeError(code, message)) is lost


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /srv rw - btrfs /dev/sdb1 rw,subvol=/a
22 20 0:50 / /srv/two rw - btrfs /dev/sdb1 rw,subvol=/b
23 20 0:51 / /net rw - nfs4 server:/x rw
24 20 0:52 / /with\\040space rw - tmpfs tmpfs rw
"""


def test_which_file_system_holds_a_path() -> None:
    root = space.file_system_of(Path("/nonexistent/deeper"), MOUNTS)
    assert (root.type, root.source) == ("ext4", "/dev/sda1")
    assert not root.remote
    assert space.FileSystem(1, "nfs4", "server:/x").remote
    assert space.FileSystem(1, "fuse.glusterfs", "g").remote


def test_one_pool_of_space_under_two_devices_is_seen() -> None:
    one, two = space.FileSystem(50, "btrfs", "/dev/sdb1"), space.FileSystem(51, "btrfs", "/dev/sdb1")
    assert one.shares_space_with(two)
    assert space.FileSystem(1, "zfs", "tank/a").shares_space_with(space.FileSystem(2, "zfs", "tank/b/c"))
    assert not space.FileSystem(1, "zfs", "tank/a").shares_space_with(space.FileSystem(2, "zfs", "other/a"))
    assert not space.FileSystem(1, "ext4", "/dev/a").shares_space_with(space.FileSystem(2, "ext4", "/dev/b"))
    assert not one.shares_space_with(space.FileSystem(52, "tmpfs", "/dev/sdb1"))


def test_scratch_beside_a_disk_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"")
    (reason,) = space.scratch_reasons(tmp_path / "scratch", {str(image): {"shop"}})
    assert "shop" in reason
    assert space.scratch_reasons(tmp_path / "scratch", {"/no/such/image": {"shop"}}) == []


def test_apparmor_is_asked_for_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled, local = tmp_path / "enabled", tmp_path / "apparmor.d" / "local" / "abstractions" / "libvirt-qemu"
    monkeypatch.setattr(places, "APPARMOR_ENABLED", enabled)
    monkeypatch.setattr(places, "APPARMOR_LOCAL", local)
    directory = Path("/run/secondsite")
    assert places.apparmor_allows(directory)  # a kernel without it
    enabled.write_text("Y\n")
    (tmp_path / "apparmor.d").mkdir()
    assert not places.apparmor_allows(directory)
    with pytest.raises(HostUnready) as caught:
        places.check_reachable(directory, None)
    assert places.apparmor_rule(directory) in caught.value.sentences()[2]
    local.parent.mkdir(parents=True)
    local.write_text("# ours\n  /run/secondsite/** rw,\n")
    assert places.apparmor_allows(directory)
    assert places.apparmor_allows(directory / "backup")
    assert not places.apparmor_allows(Path("/run/other"))
    enabled.write_text("N\n")
    assert places.apparmor_allows(Path("/run/other"))


def test_a_directory_qemu_cannot_pass_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "sockets").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(HostUnready, match=str(closed)):
        places.check_reachable(closed / "sockets", (64055, 108), confined=False)


SILENT = FakeError(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: timed out")
ABSENT = FakeError(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: not connected")
NONE = FakeError(libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "QEMU guest agent is not configured")


@pytest.mark.parametrize(
    ("freeze", "thaw", "label", "released", "thaws"),
    [
        (2, 2, Consistency.APPLICATION, 1, 1),
        (NONE, 0, Consistency.CRASH, 1, 0),
        (ABSENT, 0, Consistency.CRASH, 1, 0),
        # it may freeze any moment now: the guard keeps the lease until a thaw is certain
        (SILENT, SILENT, Consistency.CRASH, 0, 1),
        (SILENT, 2, Consistency.CRASH, 1, 1),
        (2, SILENT, Consistency.FILE_SYSTEM, 0, 1),
    ],
    ids=["works", "none", "not connected", "silent", "silent, then thawed", "thaw not confirmed"],
)
def test_the_guard_is_let_go_only_when_the_guest_is_certain_to_run(
    freeze: Exception | int, thaw: Exception | int, label: Consistency, released: int, thaws: int
) -> None:
    guard, clock, domain = OneGuard(), FakeClock(), FakeDomain(freeze, thaw)
    frozen = quiesce.freeze(domain, MACHINE, guard, clock)
    earned = quiesce.thaw(domain, frozen, clock, instant_given=True)
    assert earned.consistency is label
    assert (guard.lease.released, domain.thaws) == (released, thaws)
    # libvirt may have missed that an agent came, and only people can tell whether one is there
    assert bool(quiesce.advice(earned.note)) is (freeze is ABSENT)
