"""A fabric with one running machine, and a hand inside its guest: the same for the twin and for libvirt."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import libvirt

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Fabric
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.fabrics.libvirt.guard_client import GuardClient, GuardSettings, ask
from secondsite.fabrics.libvirt.guard_wire import Request
from secondsite.fabrics.memory import MemoryFabric
from secondsite.lab import processes
from secondsite.lab.guest import BootFiles
from secondsite.lab.machine import Guest, GuestSpec, create_guest, domain_xml
from secondsite.lab.place import Site
from secondsite.lab.witness import RECORDS_CHANNEL
from secondsite.model.events import Severity
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState

# Behind the data disk's file system; nothing but these tests writes there.
RING_SLOTS = 4096
QUIET_GUEST = GuestSpec(
    name="quiet",
    system_bytes=96 * MIB,
    data_bytes=64 * MIB,
    files_bytes=4 * MIB,
    pages_bytes=4 * MIB,
    record_slots=RING_SLOTS,
)


class Recorded:
    """An event sink that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        """Keep it."""
        self.events.append((code, text))


class Bench(Protocol):
    """What the contract suite needs besides the fabric."""

    fabric: Fabric
    machine: MachineId
    disk: str  # the disk `write` goes to
    free_offset: int  # from here on nobody else writes

    def write(self, offset: int, data: bytes) -> None:
        """The guest writes whole sectors of 4 KiB; durable when this returns."""

    def power_off(self) -> None:
        """Shut the machine off."""

    def power_on(self) -> None:
        """Start it again; returns when its guest answers."""


class MemoryBench:
    """The twin."""

    disk = "vdb"
    free_offset = 0

    def __init__(self) -> None:
        self.memory = MemoryFabric()
        self.fabric: Fabric = self.memory
        self.machine = self.memory.add_machine("quiet", {"vda": 8 * MIB, "vdb": 8 * MIB})

    def write(self, offset: int, data: bytes) -> None:
        """See `Bench`."""
        self.memory.write(self.machine, self.disk, offset, data)

    def power_off(self) -> None:
        """See `Bench`."""
        self.memory.set_power(self.machine, PowerState.OFF)

    def power_on(self) -> None:
        """See `Bench`."""
        self.memory.set_power(self.machine, PowerState.RUNNING)


def quiet_xml(guest: Guest) -> str:
    """The guest's definition without the channel its workload waits for: it boots and writes nothing."""
    text = domain_xml(guest)
    channel = f"<channel type='unix'><target type='virtio' name='{RECORDS_CHANNEL}'/></channel>"
    assert channel in text
    return text.replace(channel, "")


class LibvirtBench:
    """A real guest at a site of the lab, driven through its agent."""

    disk = "vdb"

    def __init__(self, site: Site, boot: BootFiles, scratch: Path) -> None:
        self.site = site
        self.scratch = scratch
        self.sockets = site.directory / "s"
        self.recorded = Recorded()
        self.guest = create_guest(site, boot, QUIET_GUEST)
        self.free_offset = QUIET_GUEST.data_bytes - RING_SLOTS * 4096
        self.connection: Any = site.connect()
        domain = self.connection.lookupByName(self.guest.name)
        domain.undefine()
        self.domain = self.connection.defineXML(quiet_xml(self.guest))
        self.machine = MachineId(self.domain.UUIDString())
        self.guard = GuardClient(self.guard_settings(), SystemClock())
        self.fabric: Fabric = self.make_fabric()
        self.power_on()

    def guard_settings(self) -> GuardSettings:
        """Of a guard that sees what we see."""
        return GuardSettings(
            uri=self.site.uri,
            socket=self.sockets / "guard.sock",
            scratch_dir=self.scratch,
            socket_dir=self.sockets,
            event_log=self.site.directory / "log" / "guard.events",
        )

    def make_fabric(self) -> LibvirtFabric:
        """Another fabric of the same host, as a restarted gateway has it."""
        return LibvirtFabric(
            self.site.uri,
            scratch_dir=self.scratch,
            socket_dir=self.sockets,
            guard=self.guard,
            clock=SystemClock(),
            events=self.recorded,
        )

    def write(self, offset: int, data: bytes) -> None:
        """See `Bench`. One byte value per call: the guest makes the data itself."""
        assert len(data) % 4096 == 0
        assert offset % 4096 == 0
        assert len(set(data)) == 1
        octal = f"\\{data[0]:03o}"
        pages = len(data) // 4096
        make = f"dd if=/dev/zero bs=4096 count={pages} 2>/dev/null | tr '\\000' '{octal}' > /tmp/data"
        put = f"dd if=/tmp/data of=/dev/{self.disk} bs=4096 seek={offset // 4096}"
        script = f"{make} && {put} oflag=direct conv=notrunc,fsync"
        code, output = self.guest.execute("/bin/sh", "-c", script)
        assert code == 0, output

    def power_off(self) -> None:
        """See `Bench`; orderly, so that QEMU stores its bitmaps."""
        self.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        processes.wait_until(
            lambda: not self.domain.isActive(), what="the guest's end", root=self.site.root, seconds=60
        )

    def power_on(self) -> None:
        """See `Bench`."""
        before = len(self.guest.console_log.read_bytes()) if self.guest.console_log.exists() else 0
        self.domain.create()
        processes.wait_until(
            lambda: b"READY" in self.guest.console_log.read_bytes()[before:] and self.guest.agent_answers(),
            what="the guest", root=self.site.root, seconds=180, poll_seconds=0.1,
        )  # fmt: skip

    def close(self) -> None:
        """Remove everything."""
        self.guard.close()
        self.fabric.close()
        stop_guard(self.guard_settings().socket)
        self.connection.close()
        self.guest.remove()


def stop_guard(socket: Path) -> None:
    """Ask a guard to end and wait until it has."""
    with contextlib.suppress(OSError):
        pid = ask(socket, Request(op="status")).pid
        processes.kill(pid, signal.SIGTERM)
        processes.wait_until(
            lambda: not processes_alive(pid), what="the guard's end", root=socket.parent, seconds=30
        )


def processes_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@contextlib.contextmanager
def shared_tmpfs() -> Iterator[Path]:
    """A directory on a tmpfs that both we and QEMU in a site see: the machine's own, made before any site."""
    directory = Path(tempfile.mkdtemp(prefix=f"secondsite-test-{uuid.uuid4().hex[:6]}-", dir="/dev/shm"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
