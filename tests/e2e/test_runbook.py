"""RUNBOOK.md, page by page: the situation is made to happen, the page's commands are typed as they stand.

Most pages need no guest: two gateways over real sockets, with the hypervisor's twin at A. `support.hosts`
gives each host a root of its own, so that the paths of the pages are typed as they are. The rescue boots a
real machine at a site of the lab.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.source import status
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.lab.machine import create_guest, wait_console
from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from secondsite.transfer.retry import RetryPolicy
from support.hosts import MACHINE, Hosts, two_hosts
from support.lab import SMALL_GUEST, boot_files
from support.rescue import Left, leave_store
from support.runbook import DO, SURE, WORKED, Page, Step, page, walk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    # a gateway that found the other one in trouble asks again within half a minute; here within two seconds
    monkeypatch.setattr(RetryPolicy, "seconds", lambda self, attempt, chance: min(0.25 * attempt, 2.0))
    with tempfile.TemporaryDirectory(prefix="rb") as name, two_hosts(Path(name)) as made:
        yield made


def be_sure(hosts: Hosts, page: Page) -> list[str]:
    return walk(page.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)


def do(hosts: Hosts, steps: list[Step]) -> list[str]:
    return walk(steps, hosts.run, repeat=False, evidence=hosts.evidence)


def see_that_it_worked(hosts: Hosts, page: Page) -> None:
    walk(page.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)


def test_lag_grows(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway at B stopped, and the link carries a tenth of what changes."""
    monkeypatch.setattr(status, "RPO_GRACE_SECONDS", 2.0)
    hosts.write_config("A", bandwidth_bytes_per_second=2_000_000.0)
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    before = hosts.points()
    hosts.stop("B")
    hosts.busy(bytes_per_second=20_000_000)
    lag = page("lag grows")
    be_sure(hosts, lag)
    do(hosts, lag.steps(DO))
    see_that_it_worked(hosts, lag)
    assert (hosts.status().rpo_seconds or 99) < 15
    hosts.check_newest()
    # nothing of before was copied again or given up
    after = {point.number: point.at for point in hosts.points()}
    assert all(after[point.number] == point.at for point in before)
    assert {point.epoch for point in hosts.points()} == {1}


@pytest.fixture
def small_volume(hosts: Hosts) -> Iterator[Path]:
    """B's store on a file system of its own, of 24 MiB."""
    place = hosts.path("B", "/srv/replicas")
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], check=True)
    yield place
    hosts.close()
    subprocess.run(["umount", "-l", place], check=True)


def fill(hosts: Hosts) -> None:
    """Write until the store at B has no room, and a little more."""
    seen = hosts.codes("A").count("ship.link-trouble")
    hosts.busy(bytes_per_second=8_000_000)
    hosts.until(lambda: hosts.codes("A").count("ship.link-trouble") > seen, "a full store")
    hosts.quiet()


def test_store_full(hosts: Hosts, small_volume: Path) -> None:
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    full = page("store full")
    fill(hosts)
    be_sure(hosts, full)
    assert "ingest.request-refused" in hosts.codes("B")
    room = os.statvfs(small_volume)
    assert room.f_bavail * room.f_frsize < 4 * MIB
    kept = hosts.points()
    assert hosts.read_point(kept[-1].number), "what is in a full store can be read"
    # 1. it grows: nothing is restarted
    subprocess.run(["mount", "-o", "remount,size=64m", small_volume], check=True)
    hosts.until(lambda: hosts.codes("A")[-1] != "ship.link-trouble", "replication goes on by itself")
    hosts.check_newest()
    # 2. it is full again, and cannot grow
    fill(hosts)
    do(hosts, full.steps(DO))
    see_that_it_worked(hosts, full)
    hosts.check_newest()
    after = {point.number: point.at for point in hosts.points()}
    assert all(after[point.number] == point.at for point in kept)


def test_damaged_object(hosts: Hosts) -> None:
    """A byte of the newest point's segment turns; the volume was copied the night before."""
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    store = hosts.path("B", "/srv/replicas")
    journal = Journal(LocalStore(store), hosts.machine, hosts.vault)
    names: list[str] = []
    while not names:  # a point of the copy frequency may come first and have what was written
        hosts.fabric.write(hosts.machine, "vdb", 65536, secrets.token_bytes(65536))
        with hosts.client("A") as client:
            number = client.take_point(MACHINE).number
        segments = journal.point(number).segments
        names = [journal.segment_name(segment) for segment in segments if segment.disk == "vdb"]
    [name] = names
    content = hosts.read_point(number)
    shutil.copytree(store, hosts.safe / "copy-of-replicas")
    turn_a_byte(store / name)
    damaged = page("damaged object")
    printed = be_sure(hosts, damaged)[-1]
    assert name in printed
    assert re.search(rf"costs points {number}\b", printed), printed
    do(
        hosts,
        [Step(step.host, step.command.replace("OBJECT", name), step.expected) for step in damaged.steps(DO)],
    )
    see_that_it_worked(hosts, damaged)
    hosts.check_newest()
    assert hosts.read_point(number) == content


def turn_a_byte(path: Path) -> None:
    """In the middle of an object, whatever its permissions."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x20]))


def test_source_lost_its_tracking(hosts: Hosts) -> None:
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    before = hosts.points()[-1]
    content = hosts.read_point(before.number)
    hosts.fabric.write(hosts.machine, "vda", 3 * 65536, b"while nobody looked" * 500)
    hosts.fabric.lose_tracking(hosts.machine)
    lost = page("source lost its tracking")
    be_sure(hosts, lost)
    do(hosts, lost.steps(DO))
    see_that_it_worked(hosts, lost)
    hosts.check_newest()
    assert hosts.read_point(before.number) == content


def of_host(steps: list[Step], host: str) -> list[Step]:
    """A page that speaks of either host, read at one of them: the other's own steps are left out."""
    name = {"A": "gateway-a", "B": "gateway-b"}
    other = "B" if host == "A" else "A"
    first = next(i for i, step in enumerate(steps) if step.command.startswith("systemctl start")) + 1
    own = [Step(host, step.command.replace(name["B"], name[host]), step.expected) for step in steps[:first]]
    return own + [step for step in steps[first:] if step.host != other]


def served(root: Path) -> list[str]:
    """Processes that serve points of a host below `root`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                found += [entry.name] if b"gateway.recovery.export" in words and bytes(root) in words else []
    return found


def test_gateway_lost_at_the_target(hosts: Hosts) -> None:
    """Killed while somebody looks at a point; its host, state and cache are gone."""
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    before = hosts.points()
    hosts.shell("B", f"secondsite points export {MACHINE} latest --socket-dir /run/secondsite/look --keep")
    assert served(hosts.root)
    hosts.lose("B", keep=("/srv/replicas", "/srv/bases"))
    hosts.until(lambda: not served(hosts.root), "the end of all that ran there")
    gone = page("gateway lost")
    printed = be_sure(hosts, gone)
    assert "No gateway answers" in printed[1]
    do(hosts, of_host(gone.steps(DO), "B"))
    see_that_it_worked(hosts, gone)
    hosts.check_newest()
    after = {point.number: point for point in hosts.points()}
    assert all(after[point.number].at == point.at for point in before)
    assert not any(point.held_by for point in after.values())


def test_gateway_lost_at_the_source(hosts: Hosts) -> None:
    """The machine runs on, on its own storage; the gateway's host, state and cache are gone."""
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    before = hosts.points()
    hosts.lose("A")
    hosts.fabric.write(hosts.machine, "vdb", 65536, b"nobody was there to see it" * 100)
    hosts.fabric.lose_tracking(hosts.machine)  # the hypervisor is another one
    gone = page("gateway lost")
    printed = be_sure(hosts, gone)
    assert "No gateway answers" in printed[0]
    do(hosts, of_host(gone.steps(DO), "A"))
    see_that_it_worked(hosts, gone)
    hosts.check_newest()
    after = {point.number: point for point in hosts.points()}
    assert all(after[point.number].at == point.at for point in before)
    # it was compared, not copied
    assert "replicate.resynced" in hosts.codes("A")
    assert "replicate.key-recovered" in hosts.codes("A")
    sent = sum(point.sent_bytes for point in hosts.points() if point.number > before[-1].number)
    assert sent < 64 * 1024, "only differences travelled"


def test_rotate_the_recovery_key(hosts: Hosts) -> None:
    """Under a running replication; afterwards store and new file are enough, and the old file is not."""
    hosts.start("B")
    hosts.start("A")
    hosts.protect()
    before = hosts.points()[-1].number
    content = hosts.read_point(before)
    old = hosts.safe / "old.key"
    shutil.copy(hosts.safe / "vault.key", old)
    rotate = page("rotate the recovery key")
    be_sure(hosts, rotate)
    do(hosts, rotate.steps(DO))
    see_that_it_worked(hosts, rotate)
    hosts.check_newest()
    assert hosts.read_point(before) == content
    rescue = "secondsite rescue list shop --store file:///srv/replicas --key-file"
    listed = hosts.shell("B", f"{rescue} /media/safe/vault.key --json")
    assert f'"number": {before},' in listed
    assert "key.rotation-finished" in hosts.codes("B")
    code, printed = hosts.run("B", f"{rescue} {old}")
    assert code == 4
    assert "before this vault's key was rotated" in printed
    needed = hosts.shell("B", f"secondsite key show {old} --store file:///srv/replicas")
    assert {line.split()[-1] for line in needed.splitlines()[1:]} == {"yes", "NO"}


class Stranger:
    """A host that never saw the rest: a libvirt, the store's volume and the key."""

    def __init__(self, site: Site, left: Left) -> None:
        self.site, self.left = site, left
        self.state = site.directory / "rescue"

    def run(self, _host: str, line: str) -> tuple[int, str]:
        for word, meant in (
            ("/srv/replicas", str(self.left.store)),
            ("/media/safe/vault.key", str(self.left.key_file)),
            ("--network default", f"--network {self.site.network}"),
            ("secondsite ", f"{sys.executable} -m secondsite "),
        ):
            line = line.replace(word, meant)
        places = [f"SECONDSITE_RESCUE_STATE={self.state}", f"SECONDSITE_RESCUE_SOCKETS={self.site.sockets}"]
        done = subprocess.run(
            self.site.command(["env", "COLUMNS=500", *places, "/bin/sh", "-euc", line]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout


@pytest.fixture
def stranger(sites: Sites) -> Iterator[Stranger]:
    guest = create_guest(sites.a, boot_files(), replace(SMALL_GUEST, name="shop"))
    try:
        left = leave_store(guest, sites.b.directory / "left-for-the-runbook")
    finally:
        guest.remove()
    made = Stranger(sites.b, left)
    yield made
    made.run(
        "R", f"secondsite rescue clean-up shop --notes end --store {left.store} --key-file {left.key_file}"
    )
    shutil.rmtree(left.store.parent)
    shutil.rmtree(made.state, ignore_errors=True)


@pytest.mark.libvirt
def test_rescue_without_a_server(stranger: Stranger, sites: Sites) -> None:
    rescue = page("rescue without a server")
    walk(rescue.steps(SURE), stranger.run, repeat=False)
    printed = walk(rescue.steps(DO), stranger.run, repeat=False)
    walk(rescue.steps(WORKED), stranger.run, repeat=False)
    # it is the machine: its own system says so on its console
    [log] = [word for word in printed[-1].split() if word.endswith(".log")]
    wait_console(sites.b.host_path(log), "READY", root=sites.root)
    claim = stranger.left.journal.head().claim
    assert claim is not None
    assert claim.reason == "failover"
    with contextlib.closing(sites.b.connect()) as connection:
        assert [domain.name() for domain in connection.listAllDomains()] == ["shop"]
