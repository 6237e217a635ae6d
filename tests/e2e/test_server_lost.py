"""RUNBOOK.md, server lost: the server and its machine go, the page's commands are typed as they stand."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper
from secondsite.server.config import BackupSettings, Listen, ServerConfig
from secondsite.server.jobs.records import get
from secondsite.server.jobs.states import JobState
from secondsite.server.main import Server
from secondsite.server.operations.backup import BackupServer
from secondsite.server.people.roles import THE_SERVER
from secondsite.server.survival.backups import BACKUP_JOB
from support.control import Events
from support.replicas import make_replica
from support.runbook import DO, SURE, WORKED, page, walk
from support.server import cheap_passwords, tls_caller, trusting
from support.until import until

pytestmark = pytest.mark.e2e
CLOCK = SystemClock()


@dataclass
class Hosts:
    """One machine plays all hosts: the paths of the page are below `root`, the name leads to loopback."""

    root: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.root / "server.toml"

    def run(self, host: str, line: str) -> tuple[int, str]:
        if line == "systemctl start secondsite-server":
            return self._start()
        said = line.replace("https://new.example", self.url)
        for path in ("/srv/", "/media/", "/var/lib/"):
            said = said.replace(path, f"{self.root}{path}")
        words = said.split()
        if words[:2] == ["secondsite", "server"] and words[2] != "backups":
            words += ["--config", str(self.config)]  # on a host of its own it is where it is looked for
        if host == "A":
            words += ["--out" if "enrol" in words else "--directory", str(self.root / "tls")]
        environment = {**os.environ, "SECONDSITE_CLIENT": str(self.root / "client.json"), "COLUMNS": "200"}
        ran = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False, env=environment
        )
        return ran.returncode, (ran.stdout + ran.stderr).replace(self.url, "https://new.example")

    def _start(self) -> tuple[int, str]:
        words = [sys.executable, "-m", "secondsite", "server", "--config", str(self.config)]
        with (self.root / "log").open("ab") as out:
            self.processes.append(subprocess.Popen(words, stdout=out, stderr=out))
        until(self._ready, (self.root / "log").read_text()[-2000:])
        return 0, ""

    def _ready(self) -> bool:
        assert self.processes[-1].poll() is None, (self.root / "log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            context = trusting(self.root / "var/lib/secondsite/server/authority.crt")
            return tls_caller("127.0.0.1", self.port, context)("GET", "/api/v1/ready").status == 200
        return False


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        made = Hosts(tmp_path, int(sock.getsockname()[1]))
    state = tmp_path / "var/lib/secondsite/server"
    made.config.write_text(
        f'state_dir = "{state}"\nurl = "{made.url}"\n[listen]\nhost = "127.0.0.1"\nport = {made.port}\n'
    )
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait(30)


@contextlib.contextmanager
def _gateway(hosts: Hosts) -> Iterator[Events]:
    events = Events()
    keeper = ServerKeeper(hosts.root / "tls", clock=CLOCK, events=events, chance=random.Random(1))
    keeper.start()
    try:
        yield events
    finally:
        keeper.close()


def _server_that_will_be_lost(hosts: Hosts, *, backup: bool = True) -> None:
    store = f"file://{hosts.root / 'srv/replicas'}"
    config = ServerConfig(
        state_dir=hosts.root / "old",
        listen=Listen(host="127.0.0.1", port=0),
        backup=BackupSettings(gateways=False, url=store),
    )
    server = Server(config, passwords=cheap_passwords())
    server.start()
    try:
        services = server.services
        assert services is not None
        assert services.identity is not None
        assert services.jobs is not None
        assert server.address is not None
        services.identity.vaults.create("North")
        url = f"https://127.0.0.1:{server.address[1]}"
        key, _ = services.identity.keys.create("North", url=url, by="maria")
        enrol(key, NewMember("gateway-a", "A", "a"), hosts.root / "tls", way=Way(url), clock=CLOCK)
        if not backup:
            return
        jobs, database = services.jobs, services.database
        job = database.run(lambda one: jobs.start(one, BACKUP_JOB, BackupServer(), THE_SERVER.name))

        def done() -> bool:
            with database.read() as connection:
                return get(connection, job).state is JobState.SUCCEEDED

        until(done, "the backup")
        (hosts.root / "media/safe").mkdir(parents=True, exist_ok=True)
        shutil.copy2(hosts.root / "old/master.key", hosts.root / "media/safe/master.key")
    finally:
        server.stop()
        shutil.rmtree(hosts.root / "old")


def test_server_lost(hosts: Hosts) -> None:
    (hosts.root / "srv/replicas").mkdir(parents=True)
    _server_that_will_be_lost(hosts)
    lost = page("server lost")
    with _gateway(hosts) as events:
        until(lambda: "server.away" in events.codes(), "the gateway tells it")
        walk(lost.steps(SURE), hosts.run, repeat=False)
        walk(lost.steps(DO), hosts.run, repeat=False)
        walk(lost.steps(WORKED), hosts.run, repeat=True)


def test_server_rebuilt_from_the_stores(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What whole gateways make of it: tests/unit/gateway/test_joined_rebuilt.py."""
    monkeypatch.setattr("secondsite.gateway.uplink.enrolkeeper.AWAY_SECONDS_MAX", 1.0)
    (hosts.root / "srv").mkdir()
    (hosts.root / "media/safe").mkdir(parents=True)
    replica = make_replica(hosts.root / "srv", claimant="gateway-a")
    replica.store_path.rename(hosts.root / "srv/replicas")
    replica.key_file.rename(hosts.root / "media/safe/vault.key")
    _server_that_will_be_lost(hosts, backup=False)
    rebuilt = page("server rebuilt from the stores")
    with _gateway(hosts) as events:
        until(lambda: "server.away" in events.codes(), "the gateway tells it")
        walk(rebuilt.steps(SURE), hosts.run, repeat=False)
        walk(rebuilt.steps(DO), hosts.run, repeat=False)
        walk(rebuilt.steps(WORKED), hosts.run, repeat=True)
