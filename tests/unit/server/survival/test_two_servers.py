"""A restored server and an original that lives on: gateways obey the later and bring back what it lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, load_membership
from secondsite.gateway.common.incarnation import TwoServers, incarnations
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.enrol import NewMember, enrol, renew
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper
from secondsite.gateway.uplink.moving import move_server
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.identity.errors import GatewayRevoked
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from secondsite.server.survival.life import ServerSuperseded
from secondsite.server.survival.offline import backup_to_file, restore_server
from secondsite.transfer.incarnation import ShownIncarnation
from support.control import Events
from support.server import cheap_passwords

CLOCK = SystemClock()


@dataclass
class Running:
    """One life of the server."""

    config: ServerConfig
    server: Server

    @property
    def url(self) -> str:
        assert self.server.address is not None
        return f"https://127.0.0.1:{self.server.address[1]}"

    @property
    def identity(self) -> Identity:
        assert self.server.services is not None
        assert self.server.services.identity is not None
        return self.server.services.identity


@dataclass
class Lives:
    root: Path
    running: list[Running] = field(default_factory=list)

    def start(self, name: str) -> Running:
        state = self.root / name
        listen = Listen(host="127.0.0.1", port=0)
        config = ServerConfig(state_dir=state, listen=listen)
        server = Server(config, passwords=cheap_passwords())
        server.start()
        self.running.append(Running(config, server))
        return self.running[-1]

    def restored(self, first: Running, backup: Path, name: str) -> Running:
        config = ServerConfig(state_dir=self.root / name)
        restore_server(config, backup, first.config.state_dir / "master.key")
        return self.start(name)

    def gateway(self, at: Running, name: str) -> ServerKeeper:
        directory = self.root / name
        key, _ = at.identity.keys.create("North", url=at.url, by="maria")
        enrol(key, NewMember(name, name, "north"), directory, way=Way(at.url), clock=CLOCK)
        return self.keeper(name)

    def keeper(self, name: str) -> ServerKeeper:
        return ServerKeeper(self.root / name, clock=CLOCK, events=Events(), chance=random.Random(1))


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    made = Lives(tmp_path)
    try:
        yield made
    finally:
        for one in made.running:
            one.server.stop()


def test_gateways_obey_the_restored_one_and_bring_back_what_it_lost(lives: Lives, tmp_path: Path) -> None:
    old = lives.start("old")
    old.identity.vaults.create("North")
    a, b, c = (lives.gateway(old, f"gateway-{letter}") for letter in "abc")
    for keeper in (a, b, c):
        keeper.beat()
    backup = tmp_path / "server.ssbk"
    backup_to_file(old.config, backup)
    # what the backup does not know: b is revoked, and a has another certificate
    before = EnrolmentFiles(tmp_path / "gateway-b", "gateway-b").certificate().serial_number
    old.identity.gateways.revoke("gateway-b", why="stolen")
    files = EnrolmentFiles(tmp_path / "gateway-a", "gateway-a")
    clients = EnrolledClients(tmp_path / "gateway-a")
    with_old = clients.open()
    renewed = renew(with_old, files, clock=CLOCK)
    with_old.close()
    a.beat()  # and with it the list that names b
    new = lives.restored(old, backup, "new")
    for name in ("gateway-a", "gateway-c"):
        move_server(tmp_path / name, new.url)
    a.beat()
    assert a.membership.server == new.url
    c.beat()
    gateways = new.identity.gateways
    assert gateways.identify("gateway-a", f"{renewed.serial_number:x}").name == "gateway-a"
    with pytest.raises(GatewayRevoked):  # gateway-a told it
        gateways.identify("gateway-b", f"{before:x}")
    assert new.identity.revocations().number > old.identity.revocations().number
    # the original still answers: it is told, and what it says counts for nothing
    assert load_membership(tmp_path / "gateway-c").server == new.url
    with pytest.raises(TwoServers):
        move_server(tmp_path / "gateway-c", old.url)
    assert load_membership(tmp_path / "gateway-c").server == new.url
    assert _not_ready(old)
    # also to a gateway that never met the new one
    with pytest.raises(RemoteError) as refused:
        lives.gateway(old, "gateway-d").beat()
    assert refused.value.body["code"] == "server.superseded"
    old.server.stop()
    again = lives.start("old")
    assert _not_ready(again)


def _not_ready(one: Running) -> bool:
    assert one.server.services is not None
    with pytest.raises(ServerSuperseded):
        list(map(lambda check: check(), one.server.services.checks))  # noqa: C417 - each is called
    return True


def test_a_person_who_enrols_anew_decides(lives: Lives, tmp_path: Path) -> None:
    first = lives.start("first")
    first.identity.vaults.create("North")
    keeper = lives.gateway(first, "gateway-a")
    keeper.beat()
    known = incarnations(tmp_path / "gateway-a")
    known.met("elsewhere", ShownIncarnation(known.number + 5, known.shown.signature))
    # a gateway that makes one up ends nobody's work but its own
    with pytest.raises(TwoServers):
        keeper.beat()
    assert first.server.services is not None
    assert first.server.services.survival is not None
    first.server.services.survival.life.check()
    (tmp_path / "gateway-a" / "incarnation.json").unlink()  # as enrolling does
    keeper.beat()
