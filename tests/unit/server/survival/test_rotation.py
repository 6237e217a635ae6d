"""The server's authority is rotated while two gateways talk to each other and to it, at every step."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.gateway.common.enrolfiles import EnrolmentFiles
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.identity.errors import GatewayRevoked
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from secondsite.server.survival import rotation as module
from secondsite.server.survival.rotation import Rotation, RotationUnderWay
from secondsite.transfer.certificates import certificate_pem, new_signer
from secondsite.transfer.tls import (
    Revocation,
    TlsFiles,
    check_revoked,
    client_context,
    peer_of,
    server_context,
)
from support.control import Events
from support.databases import Databases
from support.server import cheap_passwords

CLOCK = SystemClock()


def handshake(client: TlsFiles, server: TlsFiles, name: str) -> None:
    """What a link and a listener do: both check chain, name and revocation list of the other."""
    one, other = socket.socketpair()
    one.settimeout(20)
    other.settimeout(20)
    wrong: list[BaseException] = []

    def listen() -> None:
        try:
            with server_context(server).wrap_socket(other, server_side=True) as taken:
                check_revoked(Revocation(server), peer_of(taken))
                taken.sendall(b"k")
        except (OSError, SecondsiteError) as error:
            wrong.append(error)
            other.close()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        with client_context(client).wrap_socket(one, server_hostname=name) as made:
            assert made.recv(1) == b"k", wrong
            check_revoked(Revocation(client), peer_of(made))
    finally:
        thread.join(30)
    assert not wrong, wrong


class Site:
    """A server with two gateways; nothing runs by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listen = Listen(host="127.0.0.1", port=0)
        self.server = Server(
            ServerConfig(state_dir=root / "server", listen=listen), passwords=cheap_passwords()
        )
        self.server.start()
        self.identity.vaults.create("North")
        self.keepers = {letter: self.enter(letter) for letter in "ab"}

    @property
    def identity(self) -> Identity:
        assert self.server.services is not None
        assert self.server.services.identity is not None
        return self.server.services.identity

    @property
    def rotation(self) -> Rotation:
        assert self.server.services is not None
        assert self.server.services.survival is not None
        return self.server.services.survival.rotation

    def begin(self) -> None:
        assert self.server.services is not None
        self.server.services.database.run(self.rotation.begin)
        self.identity.authority.look()

    def enter(self, letter: str) -> ServerKeeper:
        assert self.server.address is not None
        url = f"https://127.0.0.1:{self.server.address[1]}"
        key, _ = self.identity.keys.create("North", url=url, by="maria")
        member = NewMember(f"gateway-{letter}", letter, letter)
        enrol(key, member, self.root / letter, way=Way(url), clock=CLOCK)
        return ServerKeeper(self.root / letter, clock=CLOCK, events=Events(), chance=random.Random(1))

    def files(self, letter: str) -> EnrolmentFiles:
        return EnrolmentFiles(self.root / letter, f"gateway-{letter}")

    def talk(self) -> None:
        """Both ways, with what lies on their disks now."""
        a, b = self.files("a").tls, self.files("b").tls
        handshake(a, b, "gateway-b")
        handshake(b, a, "gateway-a")

    def phases(self) -> list[str]:
        return [one.phase for one in self.rotation.status()]

    def waits(self) -> list[str]:
        return sorted({name for one in self.rotation.status() for name in one.waits_for})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.server.stop()


def test_gateways_stay_in_touch_from_the_old_authority_to_the_new(site: Site, tmp_path: Path) -> None:
    a, b = site.keepers["a"], site.keepers["b"]
    for keeper in (a, b):
        keeper.look()
    site.talk()
    old_authority = site.identity.authority.fingerprint
    old = site.files("a").certificate()
    site.begin()
    with pytest.raises(RotationUnderWay):
        site.begin()
    assert site.phases() == ["Current", "Next"]
    assert not site.rotation.advance()
    a.look()  # takes both up, and says so with the next
    a.look()
    site.talk()
    assert site.waits() == ["gateway-b"]
    assert not site.rotation.advance()  # one that is away is waited for
    assert site.identity.authority.fingerprint == old_authority
    b.look()
    b.look()
    assert site.rotation.advance()
    assert site.phases() == ["Retiring", "Current"]
    assert site.identity.authority.fingerprint != old_authority
    site.talk()
    a.look()  # hears that its certificate goes
    a.look()  # has another one
    assert site.files("a").certificate().serial_number != old.serial_number
    site.talk()  # one of the new, one of the old
    assert not site.rotation.advance()
    for _ in range(3):
        a.look()
        b.look()
    assert site.waits() == []
    site.talk()
    assert site.rotation.advance()
    assert site.phases() == ["Retired", "Current"]
    for keeper in (a, b, a, b):  # also in the moment in which the old one is not trusted any more
        keeper.look()
        site.talk()
    pem = (tmp_path / "a" / "authority.crt").read_bytes()
    assert pem.count(b"BEGIN CERTIFICATE") == 1
    with pytest.raises(GatewayRevoked):  # what the old one signed counts no more
        site.identity.identify(old.public_bytes(serialization.Encoding.DER))
    site.enter("c").look()
    # and once more, from the new one on
    site.begin()
    assert site.phases() == ["Retired", "Current", "Next"]


def test_a_server_started_again_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.begin()
    site.server.stop()
    again = Server(ServerConfig(state_dir=tmp_path / "server"), passwords=cheap_passwords())
    try:
        services = again.open()
        assert services.survival is not None
        assert [one.phase for one in services.survival.rotation.status()] == ["Current", "Next"]
        assert services.identity is not None
        assert services.identity.authority.bundle.count("BEGIN CERTIFICATE") == 2
    finally:
        again.stop()


def test_a_set_of_strangers_is_not_trusted(site: Site, tmp_path: Path) -> None:
    stranger = certificate_pem(new_signer("evil", CLOCK.utc()).certificate).decode()
    before = (tmp_path / "a" / "authority.crt").read_bytes()
    with pytest.raises(InvalidInput):
        site.files("a").take_trust(stranger)
    assert (tmp_path / "a" / "authority.crt").read_bytes() == before


@pytest.mark.parametrize("at", [module.NEXT_MADE, module.SWITCHED, module.RETIRED])
def test_killed_anywhere_it_goes_on_and_one_authority_signs(
    at: str, databases: Databases, tmp_path: Path
) -> None:
    with databases.ready("sqlite") as url:
        words = [sys.executable, "-m", "support.rotation_steps", url, str(tmp_path / "master.key")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        killed = subprocess.run(
            words, env=environment | {"SECONDSITE_CRASH_AT": at}, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = subprocess.run(words, env=environment, capture_output=True, check=False, text=True)
        assert again.stdout.split() == ["Retired", "Current", "2"], again.stderr
