"""A real server and two whole gateways enrolled with it, all over TLS: only the machines are imaginary."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.files import replace_file
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.journal.keys import VaultKey
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.main import Server
from support.exports import end_exports
from support.server import Caller, cheap_passwords, owner, tls_caller, trusting
from support.until import until

A, B = "gateway-a", "gateway-b"
ITEMS = "/api/v1/vaults/North/replicationProtectedItems"


# How often gateways look for their server and at claims, where machines are made up.
GATEWAYS_OFTEN = {
    "secondsite.transfer.enrolment.HEARTBEAT_SECONDS": 0.5,
    "secondsite.gateway.uplink.enrolkeeper.AWAY_SECONDS_MAX": 1.0,
    "secondsite.gateway.uplink.link.RETRY_SECONDS": (0.1, 0.5),
    "secondsite.gateway.failover.fencing.ASK_SECONDS": 0.5,
    "secondsite.gateway.failover.fencing.KEEP_SECONDS": 0.2,
}
# And all that they and servers do every second or few.
OFTEN = {
    **GATEWAYS_OFTEN,
    "secondsite.gateway.uplink.link.LOOK_SECONDS": 0.2,
    "secondsite.gateway.uplink.link.REPORT_SECONDS": 2.0,
    "secondsite.gateway.failover.guests.LOOK_SECONDS": 0.1,
    "secondsite.gateway.failover.run.FLATTEN_SECONDS": 0.1,
    "secondsite.gateway.reverse.kept.POLL_SECONDS": 0.1,
    "secondsite.server.identity.heartbeats.WRITE_SECONDS": 0.2,
    "secondsite.server.items.reports.WRITE_SECONDS": 0.2,
}
OPERATIONS, OPERATIONS_SECONDS = "secondsite.server.operations.", 0.2


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Have what is started from now on do often what it does now and then."""
    for name, seconds in OFTEN.items():
        patch.setattr(name, seconds)
    for name, module in list(sys.modules.items()):
        if name.startswith(OPERATIONS) and hasattr(module, "POLL_SECONDS"):
            patch.setattr(module, "POLL_SECONDS", OPERATIONS_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Joined:
    """`root` holds everything; a short path, since control sockets lie below it."""

    root: Path
    database_url: str
    port: int
    server: Server | None = None
    fabrics: dict[str, MemoryFabric] = field(default_factory=lambda: {A: MemoryFabric(), B: MemoryFabric()})
    gateways: dict[str, Gateway] = field(default_factory=dict)
    token: str = ""
    vault: VaultKey = field(default_factory=VaultKey.create)
    clock: Clock = field(default_factory=SystemClock)  # of the server and both gateways

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start_server(self) -> None:
        listen = Listen(host="127.0.0.1", port=self.port)
        config = ServerConfig(
            state_dir=self.root / "server", database=self.database_url, listen=listen, url=self.url
        )
        self.server = Server(config, passwords=cheap_passwords(), clock=self.clock)
        self.server.start()

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def enrol(self) -> None:
        assert self.server is not None
        services = self.server.services
        assert services is not None
        assert services.identity is not None
        services.identity.vaults.create("North")
        self.token = owner(services)
        for name in (A, B):
            home = self.root / name
            home.mkdir()
            self.vault.save(home / "vault.key")
            key, _ = services.identity.keys.create("North", url=self.url, by="maria")
            member = NewMember(name, name, f"site {name[-1]}")
            enrol(key, member, home / "tls", way=Way(self.url), clock=self.clock)
            replace_file(home / "gateway.toml", self._config(name, free_port()).encode())

    def _config(self, name: str, port: int) -> str:
        home = self.root / name
        files = {"cert": f"{name}.crt", "key": f"{name}.key", "ca": "authority.crt", "revoked": "revoked.pem"}
        lines = [
            f"name = {json.dumps(name)}",
            f'site = "site {name[-1]}"',
            f"control_socket = {json.dumps(str(home / 'c.sock'))}",
            f"state_dir = {json.dumps(str(home / 'state'))}",
            f"cache_dir = {json.dumps(str(home / 'cache'))}",
            f"vault_key = {json.dumps(str(home / 'vault.key'))}",
        ]
        if name == B:
            lines.append(f"store = {json.dumps('file://' + str(home / 'store'))}")
        lines += [
            "[tls]",
            *(f"{key} = {json.dumps(str(home / 'tls' / file))}" for key, file in files.items()),
        ]
        if name == B:
            lines += ["[listen]", 'host = "127.0.0.1"', f"port = {port}"]
            lines.append(f'advertise = "https://127.0.0.1:{port}"')
        return "\n".join([*lines, "[server]", f"directory = {json.dumps(str(home / 'tls'))}"])

    def start(self, name: str) -> Gateway:
        config = load_config(self.root / name / "gateway.toml")
        made = Gateway(config, fabric=self.fabrics[name], clock=self.clock)
        made.start()
        self.gateways[name] = made
        return made

    def stop(self, name: str) -> None:
        self.gateways.pop(name).stop()

    def client(self, name: str) -> GatewayClient:
        return GatewayClient(self.root / name / "c.sock")

    def prove_through_server(self) -> dict[str, Any]:
        """To A, from a file that is on another machine by what is said of it."""
        key = f"/api/v1/vaults/North/recoveryServicesProviders/{A}/recoveryKey"
        question = self.call("POST", f"{key}/challenge").json()
        proof = self.vault.prove(bytes.fromhex(question["nonce"])).hex()
        own = (self.root / A / "vault.key").stat()  # the same numbers, by chance
        file = {"path": "/media/vault.key", "device": own.st_dev, "inode": own.st_ino, "host": "ab" * 16}
        return self.job("POST", f"{key}/proof", {"nonce": question["nonce"], "proof": proof, "keyFile": file})

    @property
    def call(self) -> Caller:
        authority = trusting(self.root / "server" / "authority.crt")
        return tls_caller("127.0.0.1", self.port, authority, self.token)

    def read_site(self, name: str) -> None:
        """Have the server read what a gateway's site has, once the gateway was heard of."""
        provider = f"/api/v1/vaults/North/recoveryServicesProviders/{name}"

        def read() -> bool:
            return self.call("POST", f"{provider}/inventory").status in {200, 202}

        until(read, f"the inventory of {name}")

    def item(self, machine: str) -> dict[str, Any]:
        found = self.call("GET", f"{ITEMS}/{machine}")
        assert found.status == 200, found.data
        return dict(found.json())

    def job(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Begin one and wait for its end."""
        begun = self.call(method, path, body)
        assert begun.status == 202, begun.data
        where = begun.headers["location"]
        until(lambda: self.call("GET", where).json()["state"] not in _LIVE, f"the end of {where}", 100)
        return dict(self.call("GET", where).json())


_LIVE = {"NotStarted", "InProgress", "Undoing", "Finishing"}


@contextlib.contextmanager
def joined(database_url: str, root: Path, clock: Clock | None = None) -> Iterator[Joined]:
    """Server up, both gateways enrolled and running."""
    made = Joined(root, database_url, free_port(), clock=clock or SystemClock())
    made.start_server()
    try:
        made.enrol()
        made.start(B)
        made.start(A)
        yield made
    finally:
        for name in list(made.gateways):
            made.stop(name)
        made.stop_server()
        end_exports(root)
