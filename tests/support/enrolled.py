"""A server, and a gateway of an imaginary site enrolled with it: in one process, over real TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.uplink.calls import Uplink, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.server.api.services import Services
from secondsite.server.calls.service import Calls
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from support.control import Events, Protections
from support.server import Caller, cheap_passwords, tls_caller, trusting

SECONDS_MAX = 60.0
CLOCK = SystemClock()


@dataclass
class Place:
    """A server, and a gateway of an imaginary site enrolled with it."""

    server: Server
    root: Path
    fabric: MemoryFabric = field(default_factory=MemoryFabric)
    protections: Protections = field(default_factory=lambda: Protections({}))
    gateway: str = ""  # its id

    @property
    def services(self) -> Services:
        assert self.server.services is not None
        return self.server.services

    @property
    def identity(self) -> Identity:
        assert self.services.identity is not None
        return self.services.identity

    @property
    def calls(self) -> Calls:
        assert self.services.calls is not None
        return self.services.calls

    @property
    def files(self) -> Path:
        return self.root / "gateway"

    def call(self, token: str) -> Caller:
        assert self.server.address is not None
        authority = trusting(self.root / "server" / "authority.crt")
        return tls_caller("127.0.0.1", self.server.address[1], authority, token)

    def enrol(self, vault: str = "North") -> None:
        assert self.server.address is not None
        url = f"https://127.0.0.1:{self.server.address[1]}"
        self.identity.vaults.create(vault)
        key, _ = self.identity.keys.create(vault, url=url, by="maria")
        member = NewMember("gateway-a", "Gateway A", "site a")
        self.gateway = enrol(key, member, self.files, way=Way(url), clock=CLOCK).gateway_id

    @contextlib.contextmanager
    def uplink(self) -> Iterator[Uplink]:
        clients = EnrolledClients(self.files)
        source = ServerCalls(clients.open, clients.serial)
        fences = Fences(self.root / "fences.json")
        uplink = Uplink(source, over_socket(self.root / "control.sock"), fences, CLOCK)
        uplink.start()
        try:
            yield uplink
        finally:
            uplink.close()


@contextlib.contextmanager
def enrolled_place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    """Both up; the gateway's uplink is for the test to start."""
    listen = Listen(host="127.0.0.1", port=0)
    config = ServerConfig(state_dir=tmp_path / "server", database=database_url, listen=listen)
    server = Server(config, passwords=cheap_passwords())
    server.start()
    made = Place(server, tmp_path)
    services = ControlServices(
        name="gateway-a",
        site="a",
        clock=CLOCK,
        events=Events(),
        fabric=made.fabric,
        protections=made.protections,
    )
    control = serve_control(services, tmp_path / "control.sock")
    try:
        made.enrol()
        yield made
    finally:
        control.stop()
        server.stop()
