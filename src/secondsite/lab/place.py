"""A place of the lab, the wan or a site: its directory, its namespaces, and running things inside it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from secondsite.lab import processes
from secondsite.lab.errors import LabAbsent

LINE_SUBNET = "10.77.0"
ADDRESSES = {
    "A": f"{LINE_SUBNET}.1",
    "B": f"{LINE_SUBNET}.2",
    "C": f"{LINE_SUBNET}.3",
    "wan": f"{LINE_SUBNET}.254",
}


@dataclass(frozen=True)
class SiteProcess:
    """A process inside a site: `outer` is nsenter, which waits for it; `pid` is the process itself."""

    name: str
    outer: subprocess.Popen[bytes]
    pid: int
    log: Path

    def running(self) -> bool:
        """Whether it still runs."""
        return self.outer.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; gone already is fine."""
        if self.running():
            processes.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.outer.wait(timeout=60)

    def stop(self, seconds: float = 20) -> None:
        """Ask it to end (SIGTERM), kill it when it does not within `seconds`."""
        self.signal(signal.SIGTERM)
        try:
            self.outer.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Place:
    """The wan or a site: a directory and the namespaces that hang on its process 1."""

    root: Path
    name: str
    holder: int = 0  # process 1 of the place, as the machine numbers it

    @property
    def directory(self) -> Path:
        """Where everything of it lies."""
        return self.root / self.name

    @property
    def address(self) -> str:
        """Its address on the line between the sites; reachable from inside the lab only."""
        return ADDRESSES[self.name]

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """The command line that runs `arguments` inside."""
        if not self.holder:
            raise LabAbsent(root=self.root)
        # without a working directory of the caller: it may not exist inside
        enter = ["nsenter", "-t", str(self.holder), "-m", "-n", "-p", "--wdns=/"]
        return [*enter, *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout_seconds: float = 120) -> str:
        """Run a command inside to its end; see `processes.run`."""
        return processes.run(self.command(arguments), timeout_seconds=timeout_seconds)

    def find_holder(self) -> int:
        """Process 1 of a running place, 0 when there is none."""
        found = holders(self)
        # unshare carries the same words and waits for its child, which is process 1; a child of that carries
        # them too for the moment between its fork and its exec
        outer = [pid for pid in found if processes.parent(pid) not in found]
        inner = [pid for pid in found if processes.parent(pid) in outer]
        return inner[0] if inner else 0


@dataclass
class Site(Place):
    """A place with a libvirt."""

    spawned: list[SiteProcess] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """Libvirt's address from anywhere on the machine."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt/libvirt-sock"

    @property
    def inner_uri(self) -> str:
        """Libvirt's address for a process inside the site: what an administrator writes on a real host."""
        return "qemu:///system"

    @property
    def scratch(self) -> Path:
        """The scratch file system: a tmpfs, visible inside only."""
        return self.directory / "scratch"

    @property
    def sockets(self) -> Path:
        """Where sockets lie that QEMU serves or connects to: a short path, they have few bytes."""
        return self.directory / "sockets"

    @property
    def disks(self) -> Path:
        """The directory of the site's storage pool."""
        return self.directory / "disks"

    @property
    def pool(self) -> str:
        """The name of its storage pool."""
        return f"pool-{self.name.lower()}"

    @property
    def network(self) -> str:
        """The name of its production network."""
        return f"production-{self.name.lower()}"

    def host_path(self, path: str | Path) -> Path:
        """Where a path as a process inside the site names it lies for one outside."""
        bound = {"/var/lib/libvirt": "lib", "/var/log/libvirt": "log", "/var/cache/libvirt": "cache"}
        for inside, name in (*bound.items(), ("/etc/libvirt", "etc"), ("/run", "run"), ("/var/run", "run")):
            if Path(path).is_relative_to(inside):
                return self.directory / name / Path(path).relative_to(inside)
        return Path(path)

    def connect(self) -> libvirt.virConnect:
        """A connection to the site's libvirt; the caller closes it."""
        return libvirt.open(self.uri)

    def spawn(
        self, name: str, arguments: Sequence[str | Path], *, environment: Mapping[str, str] | None = None
    ) -> SiteProcess:
        """Start a process inside; its output goes to ``log/NAME.log`` of the site.

        It does not end with the caller but with the site.
        """
        log = self.directory / "log" / f"{name}.log"
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            outer = subprocess.Popen(
                self.command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        finally:
            os.close(output)

        def inner() -> int | None:
            found = processes.children(outer.pid)
            return found[0] if found else (-1 if outer.poll() is not None else None)

        pid = processes.wait_until(inner, what=f"process {name}", root=self.root, seconds=30)
        process = SiteProcess(name=name, outer=outer, pid=pid, log=log)
        self.spawned.append(process)
        return process


def holders(place: Place) -> list[int]:
    """The processes a place hangs on: unshare and its child; nothing when it does not run."""
    # the words of site-init.sh: nothing else on the machine carries this directory in this place
    kind = "site" if isinstance(place, Site) else "wan"
    return processes.find_by_arguments(str(place.directory), kind)
