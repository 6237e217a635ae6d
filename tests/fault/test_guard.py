"""The guard with a real guest: whatever dies or wedges, the guest goes on (invariant 5, rule 10)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.libvirt import guard_wire as wire
from secondsite.fabrics.libvirt.guard_client import ask
from secondsite.fabrics.libvirt.scratch import BALLAST_NAME
from secondsite.lab import processes
from secondsite.lab.machine import Guest, GuestSpec, create_guest
from secondsite.lab.place import Site, SiteProcess
from secondsite.model.events import Event
from support import guard_holder
from support.fabrics import quiet_xml
from support.lab import boot_files

pytestmark = [pytest.mark.libvirt, pytest.mark.fault]

RING_SLOTS = 16 * 1024  # 64 MiB, more than scratch holds
SCRATCH_BYTES = 40 * MIB
SPEC = GuestSpec(
    name="guarded",
    system_bytes=96 * MIB,
    data_bytes=112 * MIB,
    files_bytes=4 * MIB,
    pages_bytes=4 * MIB,
    record_slots=RING_SLOTS,
)


class Scene:
    """A site with a quiet guest, a small scratch file system, and whoever guards and holds."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.scratch = site.directory / "small-scratch"
        self.sockets = site.directory / "g"
        self.scratch.mkdir(exist_ok=True)
        size = f"size={SCRATCH_BYTES},mode=755"
        site.run("mount", "-t", "tmpfs", "-o", size, "small", str(self.scratch))
        self.guest: Guest = create_guest(site, boot_files(), SPEC)
        self.connection: Any = site.connect()
        self.connection.lookupByName(SPEC.name).undefine()
        self.domain = self.connection.defineXML(quiet_xml(self.guest))
        self.domain.create()
        self.guest.wait_ready()
        self.holders = 0

    @property
    def event_log(self) -> Path:
        return self.site.directory / "log" / "guarded.events"

    @property
    def guard_socket(self) -> Path:
        return self.sockets / "guard.sock"

    def options(self, what: str, seconds: float, checkpoint: str | None) -> dict[str, Any]:
        return {
            "uri": self.site.inner_uri, "guard": str(self.guard_socket), "scratch": str(self.scratch),
            "sockets": str(self.sockets), "event_log": str(self.event_log), "what": what,
            "machine": self.domain.UUIDString(), "seconds": seconds, "checkpoint": checkpoint,
        }  # fmt: skip

    def hold(self, what: str, *, seconds: float = 300, checkpoint: str | None = None) -> SiteProcess:
        """A process that froze the guest or opened a job, and now does nothing."""
        self.holders += 1
        words = [sys.executable, guard_holder.__file__, json.dumps(self.options(what, seconds, checkpoint))]
        process = self.site.spawn(
            f"holder-{os.getpid()}-{self.holders}", words, environment={"PYTHONPATH": "tests"}
        )
        self.until(
            lambda: "HOLDING" in process.log.read_text() or not process.running(), "the holder", seconds=60
        )
        assert process.running(), process.log.read_text()
        return process

    def try_to_hold(self) -> str:
        """What a second process says that wants a capture, too."""
        self.holders += 1
        words = [sys.executable, guard_holder.__file__, json.dumps(self.options("job", 60, None))]
        process = self.site.spawn(f"holder-{os.getpid()}-{self.holders}", words)
        self.until(lambda: not process.running(), "the second holder's end", seconds=60)
        return process.log.read_text()

    def kill(self, holder: SiteProcess) -> None:
        """Kill a holder, stopped or not; nsenter above it stops and goes on with it."""
        holder.signal(signal.SIGKILL)
        processes.kill(holder.outer.pid, signal.SIGCONT)
        holder.kill()

    def start_guard(self) -> SiteProcess:
        command = guard_holder.settings_of(self.options("", 0, None)).command()
        return self.site.spawn(f"guard-{os.getpid()}", command)

    def status(self) -> wire.Answer:
        return ask(self.guard_socket, wire.Request(op="status"))

    def kill_guard(self) -> None:
        # its pid is of the site's process namespace
        self.site.run("kill", "-9", str(self.status().pid))

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
        processes.wait_until(condition, what=what, root=self.site.root, seconds=seconds, poll_seconds=0.02)

    def events(self) -> list[Event]:
        try:
            lines = self.event_log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=Event) for line in lines]

    def told(self, code: str, text: str = "") -> bool:
        return any(event.code == code and text in event.text for event in self.events())

    def frozen(self) -> bool:
        return bool(self.guest.agent("guest-fsfreeze-status") == "frozen")

    def job_open(self) -> bool:
        return bool(self.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def stopped_by_disk(self) -> bool:
        stopped = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
        return bool(self.domain.state() == stopped)

    def running(self) -> bool:
        return bool(self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)

    def fill(self, value: int) -> tuple[int, str]:
        """The guest writes the whole ring; its exit code and output."""
        first = (SPEC.data_bytes - RING_SLOTS * 4096) // MIB
        count = RING_SLOTS * 4096 // MIB
        script = (
            f"dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\000' '\\{value:03o}' > /tmp/m; "
            f"i=0; while [ $i -lt {count} ]; do "
            f"dd if=/tmp/m of=/dev/vdb bs=1M seek=$(({first} + i)) oflag=direct conv=notrunc 2>&1 || exit 9; "
            f"i=$((i+1)); done"
        )
        words = ["/bin/sh", "-c", script]
        pid = self.guest.agent("guest-exec", path=words[0], arg=words[1:], capture_output=True)["pid"]
        done: list[dict[str, Any]] = []

        def finished() -> bool:
            # libvirt does not ask the agent of a guest that is stopped, which is what these tests cause
            with contextlib.suppress(libvirt.libvirtError):
                status = self.guest.agent("guest-exec-status", pid=pid)
                if status["exited"]:
                    done.append(status)
            return bool(done)

        self.until(finished, "the guest's writing", seconds=240)
        output = base64.b64decode(done[0].get("out-data", "")).decode(errors="replace")
        return done[0].get("exitcode", -1), output

    def clean(self) -> None:
        """No guard, no job, nothing of ours."""
        with contextlib.suppress(OSError):
            pid = self.status().pid
            self.site.run("kill", "-TERM", str(pid))
            self.until(lambda: not self.answers(), "the guard's end", seconds=60)
        if self.job_open():
            self.domain.abortJob()
        self.until(lambda: not self.job_open(), "no job")
        if self.stopped_by_disk():
            self.domain.resume()
        for checkpoint in reversed(self.domain.listAllCheckpoints(0)):
            checkpoint.delete()
        self.event_log.unlink(missing_ok=True)

    def answers(self) -> bool:
        try:
            self.status()
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.connection.close()
        self.guest.remove()
        self.site.run("umount", str(self.scratch))


@pytest.fixture(scope="module")
def stage(sites: Any) -> Iterator[Scene]:
    scene = Scene(sites.a)
    try:
        yield scene
    finally:
        scene.close()


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    yield stage
    stage.clean()


def test_a_killed_holder_leaves_no_guest_frozen(scene: Scene) -> None:
    holder = scene.hold("freeze")
    assert scene.frozen()
    scene.kill(holder)
    scene.until(lambda: not scene.frozen(), "a thaw", seconds=10)
    scene.until(lambda: scene.told("guard.thawed", "its holder died"), "the event")


def test_a_wedged_holder_is_thawed_at_the_deadline(scene: Scene) -> None:
    holder = scene.hold("freeze", seconds=2)
    holder.signal(signal.SIGSTOP)
    scene.until(lambda: not scene.frozen(), "a thaw", seconds=10)
    scene.until(lambda: scene.told("guard.thawed", "its deadline passed"), "the event")
    scene.kill(holder)


def test_guard_and_holder_killed_while_frozen_the_next_guard_thaws(scene: Scene) -> None:
    holder = scene.hold("freeze")
    holder.signal(signal.SIGSTOP)  # so that it does not start another guard itself
    scene.kill_guard()
    scene.kill(holder)
    assert scene.frozen()
    scene.start_guard()
    scene.until(lambda: not scene.frozen(), "a thaw", seconds=30)
    scene.until(lambda: scene.told("guard.thawed"), "the event")


def test_a_killed_holders_job_is_ended(scene: Scene) -> None:
    holder = scene.hold("job", checkpoint="held")
    assert scene.job_open()
    scene.kill(holder)
    scene.until(lambda: not scene.job_open(), "the job's end")
    scene.until(lambda: scene.told("guard.job-ended", "its holder died"), "the event")
    assert scene.running()


def test_a_living_holders_job_is_not_taken_from_it(scene: Scene) -> None:
    holder = scene.hold("job")
    assert "another process of secondsite captures it" in scene.try_to_hold()
    assert scene.job_open()
    scene.kill(holder)
    scene.until(lambda: not scene.job_open(), "the job's end")


def test_a_wedged_holders_job_is_ended_at_the_deadline(scene: Scene) -> None:
    holder = scene.hold("job", seconds=1)
    holder.signal(signal.SIGSTOP)
    scene.until(lambda: not scene.job_open(), "the job's end")
    scene.until(lambda: scene.told("guard.job-ended", "its deadline passed"), "the event")
    scene.kill(holder)


def test_a_killed_guard_is_started_again_and_knows_the_leases(scene: Scene) -> None:
    holder = scene.hold("job")
    first = scene.status()
    assert [lease.kind for lease in first.leases] == ["job"]
    scene.kill_guard()
    scene.until(lambda: scene.answers() and scene.status().leases, "another guard", seconds=60)
    second = scene.status()
    assert second.pid != first.pid
    assert [lease.machine for lease in second.leases] == [scene.domain.UUIDString()]
    assert scene.job_open()
    scene.kill(holder)
    scene.until(lambda: not scene.job_open(), "the job's end by the second guard")


def test_a_job_nobody_holds_is_ended_by_a_new_guard(scene: Scene) -> None:
    holder = scene.hold("job")
    holder.signal(signal.SIGSTOP)
    scene.kill_guard()
    scene.kill(holder)
    assert scene.job_open()
    scene.start_guard()
    scene.until(lambda: not scene.job_open(), "the orphan's end")
    scene.until(lambda: scene.told("guard.job-ended", "nobody holds it"), "the event")


def test_full_scratch_ends_the_job_and_the_guest_goes_on(scene: Scene) -> None:
    scene.fill(0x11)
    holder = scene.hold("job", checkpoint="full")
    paused: list[float] = []
    watching = threading.Event()

    def watch() -> None:
        clock = SystemClock()
        while not watching.is_set():
            if scene.stopped_by_disk():
                paused.append(clock.monotonic())
            clock.wait(watching, 0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code, output = scene.fill(0x22)
    watching.set()
    watcher.join()
    assert code == 0, output  # the guest saw no error
    assert scene.running()
    assert not scene.job_open()
    assert scene.told("guard.scratch-alarm")
    longest = max(paused) - min(paused) if paused else 0.0
    print(f"stopped for {longest:.2f} s")
    assert longest < 5
    scene.kill(holder)
    # the checkpoint outlives the job: nothing has to be copied again in full
    assert "secondsite-full" in [c.getName() for c in scene.domain.listAllCheckpoints()]
    free_again = scene.scratch / BALLAST_NAME
    scene.until(lambda: scene.site.run("ls", str(scene.scratch)).split() == [free_again.name], "new ballast")


def test_a_guest_stopped_while_the_guard_slept_runs_again(scene: Scene) -> None:
    scene.fill(0x33)
    holder = scene.hold("job")
    guard = str(scene.status().pid)
    scene.site.run("kill", "-STOP", guard)
    results: list[tuple[int, str]] = []
    writer = threading.Thread(target=lambda: results.append(scene.fill(0x44)))
    writer.start()
    try:
        scene.until(scene.stopped_by_disk, "a stop for want of scratch space", seconds=120)
    finally:
        scene.site.run("kill", "-CONT", guard)
    scene.until(scene.running, "the guest running again")
    writer.join(timeout=240)
    assert results
    assert results[0][0] == 0, results[0][1]
    assert scene.told("guard.guest-resumed")
    scene.kill(holder)


def test_a_guest_that_others_stopped_stays_stopped(scene: Scene) -> None:
    """Paused by a person while our job is open, and by another product's full scratch."""
    holder = scene.hold("job")
    scene.domain.suspend()
    scene.kill(holder)
    scene.until(lambda: not scene.job_open(), "the job's end")
    assert scene.domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
    scene.domain.resume()

    theirs = scene.site.directory / "their-scratch"
    theirs.mkdir(exist_ok=True)
    scene.site.run("mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "theirs", str(theirs))
    scene.fill(0x55)
    xml = (
        f"<domainbackup mode='pull'><server transport='unix' socket='{scene.sockets}/backup/theirs.sock'/>"
        f"<disks><disk name='vdb' backup='yes' type='file'><scratch file='{theirs}/vdb'/></disk></disks>"
        f"</domainbackup>"
    )
    scene.domain.backupBegin(xml, None, 0)
    writer = threading.Thread(target=lambda: scene.fill(0x66))
    writer.start()
    scene.until(scene.stopped_by_disk, "a stop by their scratch", seconds=120)
    SystemClock().wait(threading.Event(), 3)  # twelve looks of the guard's
    assert scene.stopped_by_disk()
    assert scene.status().pid
    scene.domain.abortJob()
    scene.until(lambda: not scene.job_open(), "the end of their job")
    scene.domain.resume()
    writer.join(timeout=240)
    scene.site.run("umount", str(theirs))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"not json\n", b"{}\n", b'{"op":"destroy"}\n', b'{"op":"hold"}\n', b"\xff" * 100 + b"\n",
        b'{"op":"status","' + b"a" * 10_000 + b'":1}\n',
        b'{"op":"hold","lease":"' + b"a" * 32 + b'","kind":"job","machine":"x","seconds":5}\n',
        b'{"op":"hold","lease":"' + b"a" * 32 + b'","kind":"job","machine":"x","seconds":1e12}\n',
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_the_guard_lives(scene: Scene, line: bytes) -> None:
    if not scene.answers():
        scene.start_guard()
        scene.until(scene.answers, "the guard", seconds=60)
    scene.until(lambda: not scene.status().leases, "no lease of tests before")
    before = scene.status().pid
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(30)
        peer.connect(str(scene.guard_socket))
        peer.sendall(line)
        peer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            answer = peer.makefile("rb").readline()
            assert not answer or msgspec.json.decode(answer, type=wire.Answer).error
    assert scene.status().pid == before
    assert scene.status().leases == ()
