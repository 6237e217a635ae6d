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
from secondsite.lab.place import Site
from secondsite.lab.roots import fresh_root
from secondsite.lab.sites import Sites, remove_stale_labs
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
def running_sites(scratch_bytes: int = 512 * MIB, *, count: int = 2) -> Iterator[Sites]:
    """Fresh sites, gone afterwards."""
    remove_stale_labs()
    sites = Sites(fresh_root(), count=count)
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
    """What a lab could leave on the machine, as seen from outside."""

    mounts: frozenset[str]
    files: frozenset[str]

    def left_since(self, before: Traces, *, of: str) -> list[str]:
        """Mounts and files that are here now and were not before and that name `of` (other tests run too)."""
        new = (self.mounts - before.mounts) | (self.files - before.files)
        return sorted(trace for trace in new if of in trace)


def traces() -> Traces:
    """An audit of this machine's mounts and of the directories where labs keep files."""
    places = (
        "/var/tmp",
        "/run",
        "/run/netns",
        "/tmp",
        "/etc/libvirt",
        "/var/lib/libvirt",
        "/var/log/libvirt",
    )
    return Traces(
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        files=frozenset(str(path) for place in places for path in Path(place).glob("*")),
    )


def namespaces_of(root: Path) -> frozenset[str]:
    """The namespaces of a running lab, e.g. ``net:[4026532000]``."""
    found = set()
    for place in Sites(root).places:
        holder = place.find_holder()
        assert holder, f"{place.name} of {root} does not run"
        found |= {str(Path(f"/proc/{holder}/ns/{kind}").readlink()) for kind in ("net", "mnt", "pid")}
    return frozenset(found)


def processes_in(namespaces: frozenset[str]) -> list[str]:
    """Every process that is in one of the namespaces, whoever started it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                inside = {str((entry / "ns" / kind).readlink()) for kind in ("net", "mnt", "pid")}
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if inside & namespaces:
                found.append(f"{entry.name} {words}")
    return found
