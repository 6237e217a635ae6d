"""The worst day: the site is gone, and every gateway. A store, its key, a host that never saw the rest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from secondsite.lab import processes
from secondsite.lab.errors import LabCommandFailed
from secondsite.lab.machine import create_guest, read_checks, wait_console
from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from support.lab import SMALL_GUEST, RunningGuest, boot_files
from support.rescue import Left, leave_store

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(400)]

SPEC = replace(SMALL_GUEST, name="rescued")


class Rescuer:
    """The command at site B, with a state directory of its own."""

    def __init__(self, site: Site, left: Left) -> None:
        self.site = site
        self.left = left

    @property
    def state(self) -> Path:
        return self.site.directory / "rescue"

    def command(self, *arguments: str) -> list[str]:
        where = ["--store", str(self.left.store), "--key-file", str(self.left.key_file)]
        return ["rescue", *where, *arguments]

    def run(self, *arguments: str) -> str:
        return self.site.run(sys.executable, "-m", "secondsite", *self.command(*arguments))

    def place(self) -> list[str]:
        return ["--state-dir", str(self.state), "--socket-dir", str(self.site.sockets)]

    def boot(self, *arguments: str) -> dict[str, str]:
        status: dict[str, str] = json.loads(self.run("boot", SPEC.name, *self.place(), *arguments, "--json"))
        return status

    def clean_up(self) -> None:
        self.run("clean-up", SPEC.name, "--notes", "checked", *self.place())


@pytest.fixture(scope="module")
def left(sites: Sites) -> Iterator[Left]:
    """A guest ran at A under load and was killed. Its machine is gone; a store made of its disks is left."""
    guest = create_guest(sites.a, boot_files(), SPEC)
    place = sites.b.directory / "left"
    try:
        running = RunningGuest(guest)
        running.restart()
        processes.wait_until(
            lambda: running.witness.acknowledged > 50, what="records", root=sites.root, seconds=60
        )
        running.witness.close()
        guest.destroy()
        made = leave_store(guest, place)
    finally:
        guest.remove()
    yield made
    shutil.rmtree(place)


@pytest.fixture
def rescuer(sites: Sites, left: Left) -> Iterator[Rescuer]:
    rescuer = Rescuer(sites.b, left)
    yield rescuer
    with contextlib.suppress(LabCommandFailed):  # cleaned up by the test already
        rescuer.clean_up()
    shutil.rmtree(rescuer.state, ignore_errors=True)


def left_at(site: Site) -> list[str]:
    """Machines, networks and files at a site that were not there before."""
    with contextlib.closing(site.connect()) as connection:
        machines = [domain.name() for domain in connection.listAllDomains()]
        networks = [name for name in connection.listNetworks() if name != site.network]
    return [*machines, *networks, *(path.name for path in (*site.disks.iterdir(), *site.sockets.iterdir()))]


def test_boot_checks_its_records_and_clean_up_leaves_nothing(rescuer: Rescuer, sites: Sites) -> None:
    before = left_at(sites.b)
    [machine] = json.loads(rescuer.run("list", "--json"))
    assert (machine["name"], machine["points"]) == (SPEC.name, 1)
    status = rescuer.boot()
    assert status["state"] == "Completed"
    log = sites.b.host_path(status["consoleLog"])
    wait_console(log, "CHECK {", root=sites.root)
    check = read_checks(log)[-1]
    assert check.good, check
    assert check.last > 50
    assert [pin.number for pin in rescuer.left.journal.state().pins] == [rescuer.left.point]
    rescuer.clean_up()
    assert left_at(sites.b) == before
    assert rescuer.left.journal.state().pins == ()


def test_take_over_is_claimed_in_the_store_before_the_machine_boots(rescuer: Rescuer) -> None:
    before = rescuer.left.journal.head()
    out = rescuer.run(
        "boot", SPEC.name, *rescuer.place(), "--take-over", "--network", "none", "--name", "taken"
    )
    assert "taken is running" in out
    head = rescuer.left.journal.head()
    assert (head.number, head.epoch) == (before.number + 1, before.epoch + 1)
    assert head.claim is not None
    assert head.claim.reason == "failover"
    assert head.claim.claimant.startswith("rescue by ")
    with contextlib.closing(rescuer.site.connect()) as connection:
        assert "<source network=" not in connection.lookupByName("taken").XMLDesc()


def test_a_guest_stopped_by_a_killed_export_runs_on_after_it_is_served_again(
    rescuer: Rescuer, sites: Sites
) -> None:
    """Rule 11 with a real guest: error policy stop, export back at the same socket, resumed, no I/O error."""
    status = rescuer.boot("--name", "stopped")
    log = sites.b.host_path(status["consoleLog"])
    wait_console(log, "READY", root=sites.root)
    [run] = (rescuer.state / "exports").glob("*/run.json")
    outer = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(run.parent).encode() in _command_line(entry)
    ]
    for process in outer:
        os.kill(process, signal.SIGKILL)
    with contextlib.closing(sites.b.connect()) as connection:
        domain = connection.lookupByName("stopped")
        # the guest's workload writes; reads of what it has not cached make it notice
        domain.reset()
        processes.wait_until(
            lambda: domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED,
            what="the guest to stop",
            root=sites.root,
            seconds=120,
        )
        command = rescuer.command("watch", *rescuer.place())
        watching = sites.b.spawn("rescue-watch", [sys.executable, "-m", "secondsite", *command])
        processes.wait_until(
            lambda: domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING,
            what="the guest to run on",
            root=sites.root,
            seconds=60,
            evidence=lambda: f"{domain.state()} {processes.tail(watching.log, 20)}",
        )
    processes.wait_until(
        lambda: len(read_checks(log)) == 2, what="the second boot's check", root=sites.root, seconds=120
    )
    assert read_checks(log)[-1].good
    watching.stop()


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
