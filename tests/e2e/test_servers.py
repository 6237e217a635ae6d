"""Several servers on one PostgreSQL behind a load balancer: one is killed, then PostgreSQL goes away."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.messages.gateway import ProtectRequest
from secondsite.gateway.uplink.calls import Uplink, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper
from secondsite.transfer.calls import Answer, Call
from secondsite.transfer.registration import parse_key
from support.balancer import Balancer
from support.control import Events, Protections
from support.databases import PostgreSQL
from support.server import Caller, tls_caller, trusting
from support.until import until

pytestmark = pytest.mark.e2e
CLOCK = SystemClock()
MACHINES = 12
VAULT = "/api/v1/vaults/North"


@dataclass
class Servers:
    """Real server processes of one database."""

    root: Path
    database: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    url: str = ""

    def state(self, name: str) -> Path:
        return self.root / name

    def start(self, name: str, *, wait: bool = True) -> None:
        state = self.state(name)
        config = self.root / f"{name}.toml"
        config.write_text(
            f'state_dir = "{state}"\ndatabase = "{self.database}"\nurl = "{self.url}"\n'
            f'[listen]\nhost = "127.0.0.1"\nport = {self.ports[name]}\n'
        )
        with (self.root / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "secondsite", "server", "--config", str(config)],
                stdout=out,
                stderr=out,
            )
        if wait:
            until(lambda: self.ready(name), self.log(name))

    def ready(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        with contextlib.suppress(OSError):
            context = trusting(self.state(name) / "authority.crt")
            return tls_caller("127.0.0.1", self.ports[name], context)("GET", "/api/v1/ready").status == 200
        return False

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()[-3000:]

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(30)


@dataclass
class Gateway:
    """A gateway of an imaginary site in this process; what it carried out is counted."""

    directory: Path
    carried: list[tuple[str, int]] = field(default_factory=list)
    fabric: MemoryFabric = field(default_factory=MemoryFabric)
    protections: Protections = field(default_factory=lambda: Protections({}))
    go_on: threading.Event = field(default_factory=threading.Event)  # what changes something waits for it

    def protect(self, count: int) -> list[str]:
        made = []
        for number in range(count):
            machine = self.fabric.add_machine(f"m{number}", {"vda": 1 << 20})
            self.protections.names[machine] = f"m{number}"
            request: dict[str, Any] = {"peer": "b", "nonce": "aa", "proof": "bb", "key_file": None}
            self.protections.protect(machine, ProtectRequest(**request))
            made.append(str(machine))
        return made

    @contextlib.contextmanager
    def running(self, root: Path) -> Iterator[ServerKeeper]:
        services = ControlServices(
            name="gateway-a",
            site="a",
            clock=CLOCK,
            events=Events(),
            fabric=self.fabric,
            protections=self.protections,
        )
        control = serve_control(services, root / "control.sock")
        carry_out, clients = over_socket(root / "control.sock"), EnrolledClients(self.directory)

        def counted(call: Call) -> Answer:
            if call.method != "GET":
                self.carried.append((call.id, call.epoch))
                assert self.go_on.wait(60)
            return carry_out(call)

        source = ServerCalls(clients.open, clients.serial)
        uplink = Uplink(source, counted, Fences(root / "fences.json"), CLOCK)
        keeper = ServerKeeper(self.directory, clock=CLOCK, events=Events(), chance=random.Random(1))
        uplink.start()
        keeper.start()
        try:
            yield keeper
        finally:
            keeper.close()
            uplink.close()
            control.stop()


@pytest.fixture
def postgresql() -> Iterator[PostgreSQL]:
    made = PostgreSQL()
    made.start()
    try:
        made.execute("CREATE DATABASE servers")
        yield made
    finally:
        made.remove()


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_one_is_killed_and_the_database_goes_away(postgresql: PostgreSQL, tmp_path: Path) -> None:
    ports = {"one": _free_port(), "two": _free_port()}
    servers = Servers(tmp_path, postgresql.url("servers"), ports=ports)
    with Balancer(list(ports.values())) as balancer:
        servers.url = f"https://127.0.0.1:{balancer.port}"
        try:
            servers.start("one")
            _needs_the_same_master_key(servers)
            servers.start("two")
            call = _owner(servers, balancer)
            gateway = _enrolled(servers, call, tmp_path)
            machines = gateway.protect(MACHINES)
            with gateway.running(tmp_path):
                site = f"{VAULT}/recoveryServicesProviders/gateway-a"
                assert call("POST", f"{site}/inventory").status == 200
                jobs = [call("POST", f"{site}/machines/{one}/recoveryPoints") for one in machines]
                assert {one.status for one in jobs} == {202}
                # in the middle: the gateway works on some, the others wait for their turn
                until(lambda: len(gateway.carried) >= MACHINES // 2, servers.log("one"))
                servers.processes["one"].send_signal(signal.SIGKILL)
                servers.processes["one"].wait(30)
                gateway.go_on.set()
                until(lambda: _all_ended(call, jobs), servers.log("two"))
                found = [call("GET", one.headers["location"]).json()["state"] for one in jobs]
                assert found == ["Succeeded"] * MACHINES
                twice = {key: n for key, n in Counter(key for key, _ in gateway.carried).items() if n != 1}
                assert not twice, "a call was carried out twice"
                assert len(gateway.carried) == MACHINES
                _database_away(postgresql, call, site)
                # the killed one comes back, and both work
                servers.start("one")
                assert min(balancer.chosen.values()) > 0
                more = call("POST", f"{site}/machines/{machines[0]}/recoveryPoints")
                until(lambda: _all_ended(call, [more]), servers.log("one"))
        finally:
            servers.end()


def _needs_the_same_master_key(servers: Servers) -> None:
    """A second server without it says so and ends; it does not begin anew as somebody else."""
    servers.start("two", wait=False)
    assert servers.processes["two"].wait(60) == 4
    assert "secrets.master-key-missing" in servers.log("two")
    servers.state("two").mkdir(exist_ok=True)
    shutil.copy2(servers.state("one") / "master.key", servers.state("two") / "master.key")


def _owner(servers: Servers, balancer: Balancer) -> Caller:
    home = {**os.environ, "SECONDSITE_CLIENT": str(servers.root / "client.json")}
    token = servers.state("one") / "setup-token"
    words = ["login", "--server", servers.url, "--token-file", str(token)]
    subprocess.run([sys.executable, "-m", "secondsite", *words], check=True, capture_output=True, env=home)
    import json

    found = json.loads((servers.root / "client.json").read_text())["token"]
    return tls_caller("127.0.0.1", balancer.port, trusting(servers.state("one") / "authority.crt"), found)


def _enrolled(servers: Servers, call: Caller, root: Path) -> Gateway:
    assert call("POST", "/api/v1/vaults", {"friendlyName": "North"}).status == 201
    made = call("POST", f"{VAULT}/registrationKeys", {})
    assert made.status == 201, made.data
    key = parse_key(made.json()["key"])
    assert key.url == servers.url
    gateway = Gateway(root / "tls")
    enrol(key, NewMember("gateway-a", "A", "a"), gateway.directory, way=Way(key.url), clock=CLOCK)
    return gateway


def _all_ended(call: Caller, jobs: list[Any]) -> bool:
    with contextlib.suppress(OSError):  # its connection may be to the one that is killed
        return all(call("GET", one.headers["location"]).json()["endedAt"] is not None for one in jobs)
    return False


def _database_away(postgresql: PostgreSQL, call: Caller, site: str) -> None:
    """Stopped and started under requests: 503 with a code, nothing else that is wrong, and all recovers."""
    seen: Counter[tuple[int, str]] = Counter()
    wrong: list[str] = []
    stop, lock = threading.Event(), threading.Lock()

    def ask(path: str) -> None:
        while not stop.is_set():
            answer = call("GET", path)
            code = "" if answer.status == 200 else answer.code
            with lock:
                seen[answer.status, code] += 1
                if answer.status not in {200, 503} or (answer.status == 503) != bool(code):
                    wrong.append(f"{path}: {answer.status} {answer.data[:200]!r}")

    paths = ("/api/v1/vaults", "/api/v1/jobs", "/api/v1/ready", "/api/v1/recoveryServicesProviders")
    threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    try:
        until(lambda: seen[200, ""] > 20, "requests")
        before = call("GET", site).json()["lastContact"]
        postgresql.stop()
        until(lambda: sum(n for (status, _), n in seen.items() if status == 503) > 10, f"503: {seen}")
        postgresql.start()
        done = seen[200, ""]
        until(lambda: seen[200, ""] > done + 40, f"recovery: {seen}")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not wrong, wrong[:5]
    assert {code for (status, code) in seen if status == 503} <= {"database.unavailable", "database.busy"}
    # heartbeats go on by themselves
    until(lambda: call("GET", site).json()["lastContact"] > before, "a heartbeat after it")
