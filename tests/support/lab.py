"""The lab for tests: sites that end with the test run, small guests, and an audit of what is left behind."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from secondsite.base.units import MIB
from secondsite.lab.guest import BootFiles, build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest
from secondsite.lab.sites import Site, Sites, fresh_root, remove_stale_roots
from secondsite.lab.witness import Witness

SMALL_GUEST = GuestSpec(
    name="small",
    system_bytes=128 * MIB,
    data_bytes=96 * MIB,
    files_bytes=16 * MIB,
    pages_bytes=16 * MIB,
    record_slots=4096,
)


@functools.cache
def boot_files() -> BootFiles:
    """Built once a run."""
    return build_boot_files()


@contextmanager
def running_sites(scratch_bytes: int = 512 * MIB) -> Iterator[Sites]:
    """Two fresh sites, gone afterwards."""
    remove_stale_roots()
    sites = Sites(fresh_root())
    try:
        sites.up(attached=True, scratch_bytes=scratch_bytes)
        yield sites
    finally:
        sites.down()


@dataclass
class RunningGuest:
    """A booted guest whose workload writes, and the witness that talks to it."""

    guest: Guest
    witness: Witness = field(default_factory=Witness)

    @property
    def site(self) -> Site:
        """Where it runs."""
        return self.guest.site

    def restart(self) -> None:
        """Boot it (again) and go on writing."""
        self.guest.start()
        self.guest.wait_ready()
        self.witness.attach(self.guest.channel_path())


@contextmanager
def running_guest(site: Site, spec: GuestSpec = SMALL_GUEST) -> Iterator[RunningGuest]:
    """A guest under load at `site`, removed afterwards with its disks."""
    guest = create_guest(site, boot_files(), spec)
    running = RunningGuest(guest)
    try:
        running.restart()
        yield running
    finally:
        running.witness.close()
        guest.remove()


@dataclass(frozen=True)
class Traces:
    """What a lab could leave on the machine."""

    processes: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    files: frozenset[str]

    def left_since(self, before: Traces, *, of: str) -> list[str]:
        """What is here now and was not before, restricted to what names `of` (other tests run as well)."""
        new = [
            *(self.processes - before.processes),
            *(self.mounts - before.mounts),
            *(self.namespaces - before.namespaces),
            *(self.files - before.files),
        ]
        return sorted(trace for trace in new if of in trace)


def traces() -> Traces:
    """An audit of the machine as seen from outside every lab."""
    processes, namespaces = set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = (entry / "cwd").readlink(), (entry / "root").readlink()
            for kind in ("net", "mnt", "pid"):
                namespaces.add(f"{(entry / 'ns' / kind).readlink()} held by {entry.name} {words}")
        except OSError:
            continue
        processes.add(f"process {entry.name}: {words} {where}")
    return Traces(
        processes=frozenset(processes),
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        namespaces=frozenset(namespaces),
        files=frozenset(
            map(str, [*Path("/var/tmp").glob("*"), *Path("/run").glob("*"), *Path("/tmp").glob("*")])
        ),
    )
