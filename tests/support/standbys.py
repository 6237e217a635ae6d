"""Two sites with a gateway, a store and a server each, one active, one standby: in one process, over TLS."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock, SystemClock
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.uplink import whichserver
from secondsite.gateway.uplink.backups import ServerBackups
from secondsite.gateway.uplink.calls import Uplink, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper
from secondsite.journal.store_local import LocalStore
from secondsite.server.api.services import Services
from secondsite.server.config import BackupSettings, Listen, ServerConfig, StandbySettings
from secondsite.server.jobs import records
from secondsite.server.jobs.definitions import Definition, Done, RetryAfter, Step
from secondsite.server.jobs.states import JobState
from secondsite.server.main import Server
from secondsite.server.people.roles import THE_SERVER
from secondsite.server.standby.becoming import become_standby, begin_standby
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.takeover import SENTENCE, Order, TakenOver, take_over
from secondsite.server.survival.copies import Copies
from secondsite.server.survival.service import Survival
from secondsite.transfer.serverclaims import newest_claims
from support.control import Events
from support.server import cheap_passwords
from support.until import until

CLOCK = SystemClock()
# Two servers, two gateways and their test share what a busy machine leaves; the limit of a run is shorter.
SECONDS_MAX = 600.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Long(msgspec.Struct, frozen=True, kw_only=True):
    """The long job needs nothing."""


@dataclass
class Site:
    """A gateway with a store, and a server that is active, standby, or not there."""

    name: str
    root: Path
    other: str = ""  # the other site's server
    database: str | None = None
    port: int = field(default_factory=free_port)
    server: Server | None = None
    events: Events = field(default_factory=Events)
    _gateway: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.may_end = threading.Event()
        self.long_job = Definition(
            kind="test.long",
            version=1,
            input=Long,
            steps=(Step("wait", self._wait),),
            title=lambda _given: "A long job",
        )
        self.store = LocalStore(self.root / f"store-{self.name}")
        self._keeper: ServerKeeper | None = None

    def _wait(self, _run: object) -> Done | RetryAfter:
        return Done() if self.may_end.is_set() else RetryAfter(0.05, "waits for the test")

    def begin_job(self) -> str:
        """A job that is under way until `may_end`; a server has taken it once."""
        jobs, database = self.services.jobs, self.services.database
        assert jobs is not None
        job = database.run(lambda connection: jobs.start(connection, "test.long", Long(), THE_SERVER.name))
        self.services.nudge_jobs()
        until(lambda: self.state_of(job) is JobState.IN_PROGRESS, "the job is under way")
        return job

    def state_of(self, job: str) -> JobState:
        with self.services.database.read() as connection:
            return records.get(connection, job).state

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def config(self) -> ServerConfig:
        return ServerConfig(
            name=f"server-{self.name}",
            state_dir=self.root / f"server-{self.name}",
            database=self.database,
            url=self.url,
            listen=Listen(host="127.0.0.1", port=self.port),
            backup=BackupSettings(every_minutes=0, copy_seconds=1),
            standby=StandbySettings(
                store=self.store.url, active=self.other or None, look_seconds=0.2, late_minutes=5
            ),
        )

    # the server

    def start(self) -> Server:
        assert self.server is None
        server = Server(self.config, passwords=cheap_passwords(), definitions=[self.long_job])
        server.start()
        self.server = server
        return server

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    @property
    def services(self) -> Services:
        assert self.server is not None
        assert self.server.services is not None
        return self.server.services

    @property
    def survival(self) -> Survival:
        assert self.services.survival is not None
        return self.services.survival

    def vaults(self) -> list[str]:
        assert self.services.identity is not None
        return [vault.friendly_name for vault in self.services.identity.vaults.all()]

    def add_vault(self, name: str) -> None:
        assert self.services.identity is not None
        self.services.identity.vaults.create(name)

    @property
    def copies(self) -> Copies:
        assert self.survival.copies is not None
        return self.survival.copies

    # as a standby

    def follower(self, clock: Clock = CLOCK) -> Follower:
        return Follower(self.config, clock)

    @property
    def held_vaults(self) -> int:
        held = self.follower().held()
        return held.vaults if held is not None else 0

    @property
    def holds_last(self) -> bool:
        """The state after a hand-over."""
        held = self.follower().held()
        return held is not None and held.handed_over_at is not None

    def begin_standby(self, master_key: Path) -> None:
        state = self.config.state_dir
        state.mkdir(parents=True, mode=0o700)
        shutil.copy2(master_key, state / "master.key")
        begin_standby(self.config)

    def become_standby(self) -> None:
        self.stop()
        become_standby(self.config)

    def take_over(self, *, confirm: str = SENTENCE) -> TakenOver:
        return take_over(self.follower(), Order(confirm))

    # the gateway

    @property
    def enrolment(self) -> Path:
        return self.root / f"gateway-{self.name}"

    @property
    def gateway_server(self) -> str:
        """Where the gateway thinks that its server is."""
        return load_membership(self.enrolment).server

    def enrol(self, at: Site, vault: str) -> None:
        assert at.services.identity is not None
        key, _ = at.services.identity.keys.create(vault, url=at.url, by="maria")
        name = f"gateway-{self.name}"
        enrol(key, NewMember(name, name, self.name), self.enrolment, way=Way(at.url), clock=CLOCK)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the gateway knows that its server may be."""
        found = self.enrolment / whichserver.NAME
        return tuple(json.loads(found.read_text())["urls"]) if found.exists() else ()

    def keeper(self) -> ServerKeeper:
        if self._keeper is None:
            self._keeper = ServerKeeper(
                self.enrolment,
                clock=CLOCK,
                events=self.events,
                chance=random.Random(1),
                claims=partial(newest_claims, self.store),
            )
        return self._keeper

    def beats_until(self, there: Callable[[], bool]) -> None:
        """Heartbeats of the gateway until something is so."""
        what = f"gateway {self.name}: {self.events.codes()}"
        until(lambda: self.keeper().look() >= 0 and there(), what, SECONDS_MAX)

    def start_gateway(self) -> None:
        """Does what its server asks for; its heartbeats are the test's."""
        clients = EnrolledClients(self.enrolment)
        services = ControlServices(
            name=f"gateway-{self.name}",
            site=self.name,
            clock=CLOCK,
            events=self.events,
            server_backups=ServerBackups(self.store, clients.open, self.events),
        )
        path = self.root / f"{self.name}.sock"
        control = serve_control(services, path)
        self._gateway.callback(control.stop)
        source = ServerCalls(clients.open, clients.serial)
        fences = Fences(self.root / f"fences-{self.name}.json")
        uplink = Uplink(source, over_socket(path), fences, CLOCK)
        uplink.start()
        self._gateway.callback(uplink.close)

    def close(self) -> None:
        self._gateway.close()
        if self._keeper is not None:
            self._keeper.close()
        self.stop()


@contextlib.contextmanager
def two_sites(
    root: Path, *, databases: tuple[str | None, str | None] = (None, None)
) -> Iterator[tuple[Site, Site]]:
    """A active with a vault, both gateways enrolled and at work, B a standby that holds nothing yet."""
    a, b = Site("a", root, database=databases[0]), Site("b", root, database=databases[1])
    a.other, b.other = b.url, a.url
    try:
        a.start()
        a.add_vault("North")
        for site in (a, b):
            site.enrol(a, "North")
            site.start_gateway()
            site.keeper().beat()
        b.begin_standby(a.config.state_dir / "master.key")
        yield a, b
    finally:
        for site in (a, b):
            site.close()
