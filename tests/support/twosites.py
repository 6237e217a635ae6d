"""A server and gateways of imaginary sites, enrolled with it and listening: in one process, real TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from secondsite import __version__
from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.enrolfiles import EnrolmentFiles
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.control.checkroutes import Checks
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.source.peercheck import PeerChecks
from secondsite.gateway.uplink.calls import Uplink, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.model.machines import Host, Machine, Network, Pool
from secondsite.model.readiness import Check, Readiness
from secondsite.server.api.services import Services
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from secondsite.server.mappings.topology import Topology
from secondsite.transfer import enrolment as wire
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.protocols import Receiver
from support.control import Events, Protections
from support.server import Caller, cheap_passwords, tls_caller, trusting
from support.transfer import Events as EventSink

CLOCK = SystemClock()
PLENTY = 1 << 40


class SiteFabric(MemoryFabric):
    """An imaginary host with a name, networks and pools of its own."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self.nets = [Network(name="lan", active=True, isolated=False, subnets=("192.0.2.0/24",))]
        self.stores = [
            Pool(name="images", path="/i", active=True, capacity_bytes=1 << 40, free_bytes=1 << 39)
        ]
        self.listed: list[Machine] = []

    def hosts(self) -> list[Host]:
        return [Host(name=self.host, hypervisor="memory", memory_bytes=1 << 30, cpus=1)]

    def machines(self) -> list[Machine]:
        return list(self.listed)

    def networks(self) -> list[Network]:
        return list(self.nets)

    def pools(self) -> list[Pool]:
        return list(self.stores)


@dataclass
class SiteGateway:
    """One gateway and its imaginary site."""

    name: str
    fabric: SiteFabric
    files: Path
    control: Path
    id: str = ""
    url: str = ""
    room: int | None = PLENTY
    checks: tuple[Check, ...] = ()
    ingest: IngestServer | None = None
    stop: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass
class TwoSites:
    """The server and its gateways."""

    server: Server
    root: Path
    gateways: dict[str, SiteGateway] = field(default_factory=dict)

    @property
    def services(self) -> Services:
        assert self.server.services is not None
        return self.server.services

    @property
    def topology(self) -> Topology:
        assert self.services.topology is not None
        return self.services.topology

    @property
    def identity(self) -> Identity:
        assert self.services.identity is not None
        return self.services.identity

    @property
    def vault(self) -> str:
        return self.identity.vaults.get("North").id

    @property
    def url(self) -> str:
        assert self.server.address is not None
        return f"https://127.0.0.1:{self.server.address[1]}"

    def call(self, token: str) -> Caller:
        assert self.server.address is not None
        authority = trusting(self.root / "server" / "authority.crt")
        return tls_caller("127.0.0.1", self.server.address[1], authority, token)

    def add(
        self,
        name: str,
        site: str,
        *,
        publish: Literal["all", "none"] = "all",
        listens: bool = True,
        host: str | None = None,
    ) -> SiteGateway:
        """Enrol a gateway, have it listen for others and do what the server asks for."""
        key, _ = self.identity.keys.create("North", url=self.url, by="maria")
        directory = self.root / name
        directory.mkdir()
        made = SiteGateway(
            name, SiteFabric(host or f"host-{name[-1]}"), directory / "tls", directory / "control.sock"
        )
        member = NewMember(name, name, site, publish)
        made.id = enrol(key, member, made.files, way=Way(self.url), clock=CLOCK).gateway_id
        files = EnrolmentFiles(made.files, name).tls
        if listens:
            made.ingest = IngestServer(
                cast("Receiver", None),
                files,
                ("127.0.0.1", 0),
                name=name,
                clock=CLOCK,
                events=EventSink(),
                room=lambda: made.room,
            )
            address, port = made.ingest.start()
            made.stop.callback(made.ingest.close)
            made.url = f"https://{address}:{port}"
        peers = PeerChecks(files, {}, version=__version__, clock=CLOCK)

        def ready() -> Readiness:
            return Readiness(gateway=name, at=CLOCK.utc().isoformat(), checks=made.checks)

        services = ControlServices(
            name=name,
            site=site,
            clock=CLOCK,
            events=Events(),
            fabric=made.fabric,
            protections=Protections({}),
            checks=Checks(peers, ready),
        )
        control = serve_control(services, made.control)
        made.stop.callback(control.stop)
        clients = EnrolledClients(made.files)
        uplink = Uplink(
            ServerCalls(clients.open, clients.serial),
            over_socket(made.control),
            Fences(directory / "fences.json"),
            CLOCK,
        )
        uplink.start()
        made.stop.callback(uplink.close)
        self.gateways[name] = made
        self.beat(made)
        self.read(made)
        return made

    def beat(self, gateway: SiteGateway, *, protected: int = 0) -> None:
        """A heartbeat, as the gateway's keeper sends it."""
        heartbeat = wire.Heartbeat(
            version=__version__,
            sent_at=wire.time_text(CLOCK.utc()),
            url=gateway.url or None,
            protected=protected,
        )
        files = EnrolmentFiles(gateway.files, gateway.name)
        who = self.identity.gateways.identify(gateway.name, f"{files.certificate().serial_number:x}")
        self.identity.heartbeat(who, heartbeat, address="127.0.0.1")
        self.identity.heartbeats.flush()

    def read(self, gateway: SiteGateway) -> None:
        """Read its site, over its own connection."""
        assert self.services.inventory_reader is not None
        self.services.inventory_reader.read(gateway.id)


@contextlib.contextmanager
def two_sites(database_url: str, root: Path) -> Iterator[TwoSites]:
    """A server with the vault North; gateways are for the test to add."""
    listen = Listen(host="127.0.0.1", port=0)
    config = ServerConfig(state_dir=root / "server", database=database_url, listen=listen)
    server = Server(config, passwords=cheap_passwords())
    server.start()
    made = TwoSites(server, root)
    try:
        made.identity.vaults.create("North")
        yield made
    finally:
        for gateway in made.gateways.values():
            gateway.stop.close()
        server.stop()
