"""A site is lost for good, its machine goes to hardware that is new, and what was lost turns up again.

Three sites with a libvirt each, and a real guest under load. A's power fails while it is protected to B; B
takes it over and commits. From there on it is the runbook's page, typed as it stands: a gateway is set up at
a host C that nobody knew, the machine is protected to it, moved, committed, and protected to B again. A comes
back in between, its guest started by its host, and is held through all that follows.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from secondsite.base.files import replace_file
from secondsite.base.units import MIB
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.lab.gateways import Gateways
from secondsite.lab.machine import Check, Guest, create_guest, read_checks, wait_console
from secondsite.lab.place import Site
from secondsite.lab.server import VAULT, LabServer
from secondsite.model import confirmations
from support.lab import SMALL_GUEST, RunningGuest, boot_files, running_sites
from support.pair import Pair
from support.runbook import DO, SURE, WORKED, page, walk

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(900)]

GUEST = replace(SMALL_GUEST, name="shop", system_bytes=64 * MIB, data_bytes=64 * MIB, files_bytes=8 * MIB)
RUNNING, PAUSED = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED
OFF = libvirt.VIR_DOMAIN_SHUTOFF
SOURCE = Path(__file__).resolve().parents[2] / "src"


class Hosts:
    """A shell at each site, where a host's own paths lie below the site's directory."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.root = pair.sites.root
        bin_ = self.root / "bin"
        bin_.mkdir()
        script = bin_ / "secondsite"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m secondsite "$@"\n')
        script.chmod(0o755)
        self.bin = bin_
        # what docs/install.md has people keep: the configuration, in the host's own words
        a = pair.sites.a
        text = pair.gateways.configuration(a).read_text().replace(a.address, "a.example")
        for named, path in reversed(self._places(a).items()):
            text = text.replace(path, named)
        replace_file(self.root / "safe" / "gateway-a.toml", text.encode())

    def _places(self, site: Site) -> dict[str, str]:
        home = site.directory / "gateway"
        places = {
            "/etc/secondsite": home,
            "/var/lib/secondsite/state": home / "state",
            "/srv/cache": home / "cache",
            "/srv/replicas": home / "store",
            "/srv/scratch": site.scratch,
            "/run/secondsite/gateway.sock": home / "control.sock",
            "/run/secondsite/qemu": site.sockets,
            "/var/lib/libvirt/images/replicas": site.disks / "replicas",
            "/media/safe": self.root / "safe",
        }
        return {named: str(path) for named, path in places.items()}

    def _placed(self, site: Site, text: str) -> str:
        for named, path in self._places(site).items():
            text = text.replace(named, path)
        return text

    def site(self, host: str) -> Site:
        return next(site for site in self.pair.sites.sites if site.name == host)

    def run(self, host: str, line: str) -> tuple[int, str]:
        """A line typed at the host: its exit code, and all it printed."""
        site = self.site(host)
        if line == "systemctl start secondsite-gateway":
            config = self.pair.gateways.configuration(site)
            text = self._placed(site, config.read_text()).replace("c.example", site.address)
            replace_file(config, text.encode(), mode=0o600)
            self.pair.gateways.start(site)
            return 0, ""
        assert self.pair.server is not None
        words = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": SOURCE,
            "SECONDSITE_CLIENT": self.pair.server.login,
            "SECONDSITE_GATEWAY": self.pair.gateways.control_socket(site),
            "COLUMNS": 500,
        }
        environment = ["env", *(f"{name}={value}" for name, value in words.items())]
        done = subprocess.run(
            site.command([*environment, "/bin/sh", "-euc", self._placed(site, line)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=400,
        )
        self.pair.said.append(f"{host}# {line}\n{done.stdout}")
        return done.returncode, done.stdout


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_sites(count=3) as sites:
        guest = create_guest(sites.a, boot_files(), GUEST)
        guest.start()
        server = LabServer(sites)
        server.start()
        server.run("policy", "create", VAULT, "1s", "--copy-every", "1s")
        gateways = Gateways(sites, server)
        gateways.prepare(sites.sites[:2])
        for site in (sites.b, sites.a):
            gateways.start(site)
            server.run("gateway", "prove-key", gateways.name(site), "--recovery-key", gateways.recovery_key)
        made = Pair(sites, gateways, RunningGuest(guest), server)
        try:
            guest.wait_ready()
            made.running.witness.attach(guest.channel_path())
            yield made
        except BaseException:  # root: the logs go with the sites, so they are shown before
            print(made.log_tails())
            raise
        finally:
            made.running.witness.close()
            gateways.stop()


def test_failback_to_new_hardware(pair: Pair) -> None:
    a, b, c = pair.sites.sites
    hosts, new = Hosts(pair), page("failback to new hardware")
    _taken_over_at_b(pair)
    _writes_on(pair, b)
    walk(new.steps(SURE), hosts.run, repeat=True, evidence=pair.log_tails)
    last = 0
    for step in new.steps(DO):
        if "failback" in step.command:
            _turns_up_and_is_held(pair)
            last = _last_written(pair)
        walk([step], hosts.run, repeat=step.command.endswith("held North"), evidence=pair.log_tails)
        if "failback" in step.command:
            assert [_state(site) for site in (a, b, c)] == [PAUSED, OFF, RUNNING]
    assert 0 < last <= _check(pair, c).last, "a record was lost"
    _writes_on(pair, c)
    walk(new.steps(WORKED), hosts.run, repeat=True, evidence=pair.log_tails)
    assert [_state(site) for site in (a, b, c)] == [OFF, OFF, RUNNING]


def _taken_over_at_b(pair: Pair) -> None:
    """What was written after the newest point is lost, and nothing else."""
    a, b, _ = pair.sites.sites
    pair.protect()
    pair.wait_protected()
    pair.wait_records(20)
    pair.sites.lose(a)
    witness = pair.running.witness
    witness.close()
    pair.item("failover", "--confirm", confirmations.taken_over(pair.machine, "gateway-a"))
    number = pair.item("show")["failover"]["point"]
    point = next(one for one in pair.points() if one.number == number)
    check = _check(pair, b)
    expected = witness.expectation(point.asked_at, point.at)
    assert not expected.unmet(last=check.last, token=check.token)
    pair.item("commit", "--confirm", confirmations.kept(pair.machine))
    pair.shows("CommitFailoverCompleted")


def _check(pair: Pair, site: Site) -> Check:
    """What its own checker found at its boot there."""
    with FailoverClient(pair.gateways.control_socket(site)) as client:
        log = site.host_path(client.failovers()[-1].console_log or "")
    wait_console(log, "READY", root=pair.sites.root)
    check = read_checks(log)[-1]
    assert check.good, check
    return check


def _writes_on(pair: Pair, site: Site) -> None:
    """Its load goes on there."""
    guest = Guest(site, GUEST)
    pair.until(guest.agent_answers, "its agent")
    pair.running.witness.attach(guest.channel_path())
    pair.wait_records(5)


def _last_written(pair: Pair) -> int:
    """Nobody has it write from now on."""
    pair.wait_records(5)
    pair.running.witness.close()
    return pair.running.witness.acknowledged


def _turns_up_and_is_held(pair: Pair) -> None:
    """The host has power again and starts its machine; then its gateway comes up."""
    a = pair.sites.a
    pair.sites.restore(a)
    Guest(a, GUEST).start()
    assert _state(a) == RUNNING
    pair.gateways.start(a)
    pair.until(lambda: _state(a) == PAUSED, "A's machine paused")


def _state(site: Site) -> int:
    """Of the machine there, as libvirt numbers it."""
    with contextlib.closing(site.connect()) as connection:
        return int(connection.lookupByName(GUEST.name).state()[0])
