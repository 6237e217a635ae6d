"""Two sites with their gateways and a guest under load, for end-to-end tests, and independent oracles.

Where the sites have a server, orders go to it as a user gives them; what they come to is looked at where it
happens.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import GIB
from secondsite.fabrics.libvirt import jobs
from secondsite.gateway.control.client import GatewayUnreachable
from secondsite.gateway.messages.gateway import (
    DismissRequest,
    ExportRequest,
    PointSummary,
    ProtectionState,
    ProtectionStatus,
)
from secondsite.lab import processes
from secondsite.lab.gateways import Gateways
from secondsite.lab.machine import GuestSpec
from secondsite.lab.place import Site
from secondsite.lab.server import VAULT, LabServer
from secondsite.lab.sites import Sites
from support.lab import SMALL_GUEST, RunningGuest, running_guest, running_sites

T = TypeVar("T")

# Two busy cores and an emulated guest: limits are generous, conditions are polled.
SECONDS_MAX = 150.0
# Before the guest is stopped, or read beside its cycles; see `wait_for_no_job`.
QUIET_SECONDS, QUIET_SECONDS_MAX = 0.2, 5.0


@dataclass
class Pair:
    """Sites, gateways, guest; a server, where there is one."""

    sites: Sites
    gateways: Gateways
    running: RunningGuest
    server: LabServer | None = None
    frequency: float | None = None  # at which the server copies it now; None: it does not
    said: list[str] = field(default_factory=list)  # what was ordered, for a failure's message
    job: str = ""  # of the protection, until it was followed to its end

    @property
    def machine(self) -> str:
        """The guest's name."""
        return self.running.guest.name

    def order(self, *words: str | Path, seconds: float = 300) -> Any:
        """A command at the server, to the end of its job; what it says as JSON. Raises LabCommandFailed."""
        assert self.server is not None
        self.said.append(" ".join(map(str, words)))
        return json.loads(self.server.run(*words, "--json", timeout_seconds=seconds))

    def item(self, verb: str, *words: str | Path) -> Any:
        """The same about this machine."""
        return self.order("item", verb, VAULT, self.machine, *words)

    def protect(self, *, copy_frequency_seconds: float = 1.0) -> None:
        """Ask for protection; does not wait."""
        policy = f"{copy_frequency_seconds:g}s"
        if self.server is None:
            self.gateways.protect(self.machine, copy_frequency_seconds=copy_frequency_seconds)
        elif self.frequency is None:
            a, b = self.sites.a, self.sites.b
            mapped = ("--network", f"{a.network}={b.network}", "--pool", f"{a.pool}={b.pool}")
            to = ("--to", self.gateways.name(b), "--policy", policy)
            self.job = self.item("protect", *to, *mapped, "--no-wait")["id"]
        elif self.frequency != copy_frequency_seconds:
            self.item("policy", policy)
        self.frequency = copy_frequency_seconds

    def unprotect(self, *, delete_replica: bool = False) -> None:
        """End it."""
        if self.server is None:
            with self.gateways.client(self.sites.a) as client:
                client.unprotect(self.machine)
        elif self.frequency is not None:
            self.follow()
            if delete_replica:
                self._dismiss()
            self.item("disable", "--delete-replica" if delete_replica else "--no-delete-replica")
        self.frequency = None

    def _dismiss(self) -> None:
        """What a test wrote at once may have raised an alert, whose last clean point no deletion takes."""
        with self.gateways.client(self.sites.b) as client:
            if any(one.name == self.machine and one.doubt for one in client.status().replicas):
                client.dismiss(self.machine, DismissRequest(by="tester", note="a test wrote it"))

    def follow(self) -> None:
        """The job that protects it, to its end. Raises LabCommandFailed unless it succeeded."""
        if self.job:
            job, self.job = self.job, ""
            self.order("job", "follow", job)

    def shows(self, state: str) -> dict[str, Any]:
        """Until the server shows the machine like this."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.item("show")
            self.said.pop()
            return found if found["state"] == state else None

        return self.until(look, f"{self.machine} as {state}", seconds=180, poll_seconds=0.3)

    def until(
        self, probe: Callable[[], T | None], what: str, *, seconds: float = 120, poll_seconds: float = 0.1
    ) -> T:
        """Until it is true; what it gave."""
        root = self.sites.root
        return processes.wait_until(
            probe, what=what, root=root, seconds=seconds, poll_seconds=poll_seconds, evidence=self.log_tails
        )

    def status(self) -> ProtectionStatus:
        """At A."""
        with self.gateways.client(self.sites.a) as client:
            return client.protection(self.machine)

    def points(self) -> list[PointSummary]:
        """At B, oldest first."""
        with self.gateways.client(self.sites.b) as client:
            return client.points(self.machine)

    def points_exist(self) -> bool:
        """Whether B holds any point of the machine; a machine it does not know has none."""
        try:
            return bool(self.points())
        except (RemoteError, GatewayUnreachable):
            return False

    def log_tails(self) -> str:
        """What was ordered and the ends of all logs, for a failure's message."""
        logs = [site.directory / "log" / f"{self.gateways.name(site)}.log" for site in self.sites.sites]
        if self.server is not None:
            logs.append(self.server.site.directory / "log" / "server.log")
        # an assertion of the hypervisor's, which ended a guest, stands here and nowhere else
        logs += [site.directory / "log" / "qemu" / "shop.log" for site in self.sites.sites]
        return "\n".join([*self.said, *(f"--- {log.name}\n{processes.tail(log, 25)}" for log in logs)])

    def kill_at(self, site: Site, mark: str) -> None:
        """From now on the site's gateway dies at a mark of its code."""
        self.gateways.running[site.name].stop()
        self.gateways.start(site, environment={"SECONDSITE_CRASH_AT": mark})

    def revive(self, site: Site) -> None:
        """It did die; it is started again."""
        process = self.gateways.running[site.name]
        processes.wait_until(
            lambda: not process.running(),
            what=f"the death of the gateway of site {site.name}",
            root=self.sites.root,
            seconds=SECONDS_MAX,
            evidence=self.log_tails,
        )
        self.gateways.start(site)

    def wait_protected(self, seconds: float = SECONDS_MAX) -> ProtectionStatus:
        """Until the first point is committed, and the server's job has ended."""

        def done() -> ProtectionStatus | None:
            if (status := self.taken_up()) is None:
                return None
            assert status.state is not ProtectionState.FAILED, f"{status.note}\n{self.log_tails()}"
            return status if status.last_point is not None else None

        status = self.until(done, "the first point", seconds=seconds)
        self.follow()
        return status

    def taken_up(self) -> ProtectionStatus | None:
        """At A; None as long as its gateway does not know that it is to protect it."""
        with self.gateways.client(self.sites.a) as client:
            return next((one for one in client.status().protections if one.name == self.machine), None)

    def wait_point(self, *, asked_after: str, seconds: float = SECONDS_MAX) -> PointSummary:
        """Until a point is committed whose instant was asked for after a time; that point."""

        since = moment(asked_after)

        def found() -> PointSummary | None:
            return next((point for point in self.points() if moment(point.asked_at) > since), None)

        return processes.wait_until(
            found,
            what=f"a point asked for after {asked_after}",
            root=self.sites.root,
            seconds=seconds,
            poll_seconds=0.1,
            evidence=self.log_tails,
        )

    def require_right(self, point: PointSummary, hashes: dict[str, str]) -> None:
        """The point's disks, read by nbdcopy from its export, have these hashes."""
        assert self.exported_hashes(point) == hashes, f"point {point.number} differs\n{self.log_tails()}"

    def exported_hashes(self, point: PointSummary) -> dict[str, str]:
        """sha256 of every disk of a point, by disk."""
        with self.gateways.client(self.sites.b) as client:
            directory = str(self.sites.b.sockets)
            export = client.start_export(
                self.machine, ExportRequest(point=str(point.number), socket_dir=directory)
            )
            try:
                return {str(disk.id): nbd_sha256(disk.uri) for disk in export.disks}
            finally:
                client.end_export(self.machine, export.id)

    @contextlib.contextmanager
    def stopped_guest(self) -> Iterator[str]:
        """The guest's processors stand still, so its disks do; gives the time since when."""
        with contextlib.closing(self.sites.a.connect()) as connection:
            domain = connection.lookupByName(self.machine)
            wait_for_no_job(domain)
            domain.suspend()
        try:
            yield now()
        finally:
            self.running.guest.resume()

    def compare_now(self, disks: Sequence[str] = ("vda", "vdb")) -> tuple[PointSummary, dict[str, str]]:
        """Stop the guest, wait for a point of that moment, compare its disks with the source's by hash.

        Returns the point and the hashes.
        """
        with self.stopped_guest() as since:
            point = self.wait_point(asked_after=since)
            hashes = source_hashes(self.sites.a, self.machine, disks)
        self.require_right(point, hashes)
        return point, hashes

    def wait_records(self, more: int, seconds: float = 60) -> None:
        """Until the guest acknowledged `more` further records."""
        target = self.running.witness.acknowledged + more
        processes.wait_until(
            lambda: self.running.witness.acknowledged >= target,
            what=f"{more} records",
            root=self.sites.root,
            seconds=seconds,
            evidence=lambda: self.running.witness.trouble,
        )


def now() -> str:
    """The time of day as points carry it."""
    return SystemClock().utc().isoformat()


def moment(text: str) -> datetime:
    """A time of a point, to compare; texts with and without a fraction do not compare as texts."""
    return datetime.fromisoformat(text)


def nbd_sha256(uri: str) -> str:
    """sha256 of all bytes of an export, holes as zeros, read by libnbd's own program."""
    with subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE) as copy:
        summed = subprocess.run(["sha256sum"], stdin=copy.stdout, stdout=subprocess.PIPE, check=True)
        assert copy.wait(300) == 0
    return summed.stdout.split()[0].decode()


def source_hashes(site: Site, machine: str, disks: Sequence[str] = ("vda", "vdb")) -> dict[str, str]:
    """sha256 of the disks of a machine as the hypervisor has it now: by a backup job of our own.

    The machine must stand still and hold no other job (a cycle that meets this one tries again later).
    """
    socket_path, scratch = site.sockets / "oracle.sock", site.scratch
    text = "".join(
        f"<disk name='{disk}' backup='yes' type='file' exportname='{disk}'>"
        f"<scratch file='{scratch}/oracle-{disk}'/></disk>"
        for disk in disks
    )
    server = f"<server transport='unix' socket='{socket_path}'/>"
    with contextlib.closing(site.connect()) as connection:
        domain = connection.lookupByName(machine)
        others = set(re.findall(r"<target dev='(\w+)' bus=", domain.XMLDesc())) - set(disks)
        text += "".join(f"<disk name='{disk}' backup='no'/>" for disk in sorted(others))
        job = f"<domainbackup mode='pull'>{server}<disks>{text}</disks></domainbackup>"
        wait_for_no_job(domain)
        # libvirt waits for a job that is open; 30 s are its limit, cycles are far shorter
        domain.backupBegin(job, None, 0)
        try:
            return {disk: nbd_sha256(f"nbd+unix:///{disk}?socket={socket_path}") for disk in disks}
        finally:
            domain.abortJob()


def wait_for_no_job(domain: Any) -> None:
    """Until no cycle is under way, and the last is over for a moment; on a busy machine for so long at most.

    A stop or a job that meets the end of another one's may end QEMU 7.2 by an assertion, as exports and nodes
    of that are removed (``blk_unref: Assertion `blk->refcnt == 1' failed``, and one in
    qcow2_get_specific_info): three times in some 800 cycles, with three labs on two processors.
    """
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + QUIET_SECONDS_MAX
    quiet_since = clock.monotonic()
    while (now := clock.monotonic()) < end and now - quiet_since < QUIET_SECONDS:
        if jobs.any_running(domain):
            quiet_since = clock.monotonic()
        clock.wait(never, 0.02)


@contextlib.contextmanager
def running_pair(spec: GuestSpec = SMALL_GUEST, *, spool_bytes: int = GIB) -> Iterator[Pair]:
    """Fresh sites, a guest under load and both gateways; all gone afterwards."""
    with running_sites() as sites, running_guest(sites.a, replace(spec, name="shop")) as running:
        gateways = Gateways(sites)
        gateways.prepare(spool_bytes=spool_bytes)
        for site in reversed(sites.sites):
            gateways.start(site)
        pair = Pair(sites, gateways, running)
        try:
            yield pair
        except BaseException:  # root: the logs go with the sites, so they are shown before
            print(pair.log_tails())
            raise
        finally:
            gateways.stop()


def files_of(directory: Path) -> list[str]:
    """Names of all files below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
