"""RUNBOOK.md, standby takeover: site A's server goes, the page is typed, it comes back as the standby."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.gateway.uplink import whichserver
from secondsite.server.standby.process import Standby
from secondsite.server.survival import service
from support.runbook import DO, SURE, WORKED, page, walk
from support.standbys import CLOCK, Site, two_sites
from support.until import until

pytestmark = pytest.mark.e2e
NAMES = {"a": "https://a.example", "b": "https://b.example"}


@dataclass
class Hosts:
    """One machine plays both sites' servers: A's in this process, B's as a process of its own."""

    a: Site
    b: Site
    root: Path
    stop: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def config(self, site: Site) -> Path:
        path = self.root / f"{site.name}.toml"
        settings = site.config.standby
        assert settings is not None
        path.write_text(
            f'name = "{site.config.name}"\nstate_dir = "{site.config.state_dir}"\nurl = "{site.url}"\n'
            f'[listen]\nhost = "127.0.0.1"\nport = {site.port}\n[backup]\nevery_minutes = 0\n'
            f'[standby]\nstore = "{settings.store}"\nactive = "{settings.active}"\nlook_seconds = 0.2\n'
        )
        return path

    def start_b(self) -> None:
        words = [
            sys.executable,
            "-m",
            "secondsite",
            "server",
            "--standby",
            "--config",
            str(self.config(self.b)),
        ]
        with (self.root / "log").open("ab") as out:
            process = subprocess.Popen(words, stdout=out, stderr=out)
        self.stop.callback(process.wait, 30)
        self.stop.callback(process.terminate)

    def run(self, host: str, line: str) -> tuple[int, str]:
        site = self.a if host == "A" else self.b
        if line.startswith("systemctl "):
            assert host == "A"
            if " stop " in line:
                until(lambda: site.survival.life.superseded, "the new server tells the old one")
                site.stop()
            else:
                standby = Standby(site.config, CLOCK)
                standby.start()
                self.stop.callback(standby.stop)
            return 0, ""
        words = [sys.executable, "-m", *_words(line), "--config", str(self.config(site))]
        environment = {**os.environ, "COLUMNS": "200"}
        ran = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        said = ran.stdout + ran.stderr
        for one in (self.a, self.b):
            said = said.replace(one.url, NAMES[one.name])
        if "take-over --confirm" in line:  # what comes next in life: the line is there again
            self.a.start()
        return ran.returncode, said

    def log(self) -> str:
        return (self.root / "log").read_text()[-3000:]


def _words(line: str) -> list[str]:
    before, quote, rest = line.partition('"')
    return [*before.split(), *([rest.rstrip('"')] if quote else [])]


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    monkeypatch.setattr(whichserver, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(whichserver, "TROUBLE_SECONDS", 0.0)
    monkeypatch.setattr(service, "FORMER_SECONDS", 0.3)
    with two_sites(tmp_path) as (a, b):
        made = Hosts(a, b, tmp_path)
        try:
            yield made
        finally:
            made.stop.close()


def test_standby_takeover(hosts: Hosts) -> None:
    a, b = hosts.a, hosts.b
    a.copies.make()
    hosts.start_b()
    until(lambda: b.follower().status().current_at != "" and b.url in _addresses(a), "it follows", 90)
    for site in (a, b):
        site.keeper().beat()
    a.stop()
    until(lambda: b.follower().status().active_problem != "", "the standby sees that nobody answers")
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=([a, b], stop), daemon=True)
    beats.start()
    try:
        took = page("standby takeover")
        walk(took.steps(SURE), hosts.run, repeat=False, evidence=hosts.log)
        walk(took.steps(DO), hosts.run, repeat=False, evidence=hosts.log)
        walk(took.steps(WORKED), hosts.run, repeat=True, evidence=hosts.log)
        until(lambda: a.gateway_server == b.gateway_server == b.url, "both gateways came over")
    finally:
        stop.set()
        beats.join(30)


def _addresses(active: Site) -> list[str]:
    return active.survival.standbys.addresses()


def _beat(sites: list[Site], stop: threading.Event) -> None:
    while not CLOCK.wait(stop, 0.2):
        for site in sites:
            site.keeper().look()
