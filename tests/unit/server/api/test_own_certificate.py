"""A server with a certificate of the site's own CA: people, gateways, its change, and what is in between."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme

from secondsite import __version__
from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.gateway.common.enrolerrors import ServerNotTrusted
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, load_membership
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way, enrolled_client
from secondsite.server.api.certificate import CertificateFiles, ListenerCertificate
from secondsite.server.api.services import Services
from secondsite.server.config import Limits, Listen, ServerConfig, Tls
from secondsite.server.database.tables_people import tokens
from secondsite.server.main import Server
from secondsite.server.people.roles import THE_SERVER
from secondsite.transfer import enrolment as wire
from secondsite.transfer.registration import RegistrationKey
from support.databases import Databases
from support.server import cheap_passwords, owner, tls_caller

CLOCK = SystemClock()
MEMBER = NewMember("gateway-a", "Gateway A", "site a")


@dataclass
class Place:
    """A server that shows a certificate of the site's CA."""

    server: Server
    root: Path
    ca: trustme.CA

    @property
    def port(self) -> int:
        assert self.server.address is not None
        return self.server.address[1]

    def key(self, *, own: bool = False) -> RegistrationKey:
        """own: as of a server without a certificate of the site's."""
        services = self.server.services
        assert services is not None
        assert services.identity is not None
        identity = services.identity
        if not identity.vaults.all():
            identity.vaults.create("North")
        url = f"https://127.0.0.1:{self.port}"
        trust = identity.system_trust and not own
        made, _ = identity.keys.create("North", url=url, by="maria", system_trust=trust)
        return made

    def way(self, proxy: int | None = None) -> Way:
        return Way(f"https://127.0.0.1:{self.port}", f"http://127.0.0.1:{proxy}" if proxy else None)

    def shown(self) -> bytes:
        """The certificate a new connection sees."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="x") as secured,
        ):
            found = secured.getpeercert(binary_form=True)
        assert found is not None
        return found


def _write(ca: trustme.CA, directory: Path, *names: str) -> CertificateFiles:
    leaf = ca.issue_cert(*(names or ("127.0.0.1",)))
    files = CertificateFiles(directory / "own.crt", directory / "own.key")
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    for path, data in ((files.certificate, chain), (files.key, leaf.private_key_pem.bytes())):
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").replace(path)
    return files


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[Place]:
    ca = trustme.CA()
    files = _write(ca, tmp_path)
    with databases.ready("sqlite") as url:
        config = ServerConfig(
            state_dir=tmp_path / "state",
            database=url,
            url="https://127.0.0.1",
            listen=Listen(host="127.0.0.1", port=0),
            tls=Tls(cert=files.certificate, key=files.key),
            limits=Limits(stop_seconds=2),
        )
        server = Server(config, passwords=cheap_passwords())
        server.start()
        yield Place(server, tmp_path, ca)
        server.stop()


@pytest.fixture
def trusted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine trusts the site's CA, as an administrator would have it."""
    place.ca.cert_pem.write_to_path(os.fspath(place.root / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(place.root / "ca.pem"))


def test_people_know_the_server_by_the_sites_ca(place: Place) -> None:
    services = place.server.services
    assert services is not None
    context = ssl.create_default_context()
    place.ca.configure_trust(context)
    call = tls_caller("127.0.0.1", place.port, context, owner(services))
    assert call("GET", "/api/v1/me").status == 200
    own = ssl.create_default_context(cafile=os.fspath(place.root / "state" / "authority.crt"))
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_caller("127.0.0.1", place.port, own)("GET", "/api/v1/health")


@pytest.mark.usefixtures("trusted")
def test_a_gateway_enrols_and_is_heard(place: Place) -> None:
    key = place.key()
    assert key.system_trust
    enrol(key, MEMBER, place.root / "gateway", way=place.way(), clock=CLOCK)
    files = EnrolmentFiles(place.root / "gateway", MEMBER.name)
    assert load_membership(files.directory).system_trust
    client = enrolled_client(place.way(), files.tls, system_trust=True)
    answer = client.post(
        wire.PATH_HEARTBEATS,
        wire.Heartbeat(version=__version__, sent_at=wire.time_text(CLOCK.utc())),
        wire.HeartbeatAnswer,
    )
    client.close()
    assert answer.friendly_name == "Gateway A"


def test_a_gateway_whose_machine_does_not_trust_the_ca_sends_nothing(place: Place) -> None:
    with pytest.raises(ServerNotTrusted):
        enrol(place.key(), MEMBER, place.root / "gateway", way=place.way(), clock=CLOCK)
    assert not (place.root / "gateway" / "gateway-a.crt").exists()


def test_a_changed_certificate_is_taken_up_and_nobody_is_cut(place: Place) -> None:
    before = place.shown()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    place.ca.configure_trust(context)
    with (
        socket.create_connection(("127.0.0.1", place.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as kept,
    ):
        certificate = place.server.certificate
        assert certificate is not None
        assert certificate.refresh() is False
        _write(place.ca, place.root)
        place.server.tidy(_services(place), certificate)
        assert place.shown() != before
        kept.sendall(b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert kept.recv(15) == b"HTTP/1.1 200 OK"


def test_a_certificate_that_is_damaged_keeps_no_house_from_being_kept(place: Place) -> None:
    services, certificate = _services(place), place.server.certificate
    assert certificate is not None
    name = services.users.create(THE_SERVER, "maria", display_name="", password=None)
    with services.database.write() as connection:
        ended = dt.timedelta(seconds=-1)
        services.sessions.open(connection, name.id, lasts=ended, address="")
    (place.root / "own.key").write_bytes(b"damaged")
    before = place.shown()
    place.server.tidy(services, certificate)
    assert place.shown() == before
    with services.database.read() as connection:
        assert connection.execute(sa.select(tokens).where(tokens.c.user_id == name.id)).first() is None


def _services(place: Place) -> Services:
    assert place.server.services is not None
    return place.server.services


def test_half_a_change_leaves_the_one_before_in_use(tmp_path: Path) -> None:
    """Certificate and key are two files: in between they do not fit, and the listener needs both."""
    ca = trustme.CA()
    files = _write(ca, tmp_path)
    old = files.certificate.read_bytes(), files.key.read_bytes()
    kept = ListenerCertificate(
        files, authority_pem=ca.cert_pem.bytes().decode(), names=[], make=None, clock=CLOCK
    )
    first = _handshake(kept.context)
    _write(ca, tmp_path)
    new = files.certificate.read_bytes(), files.key.read_bytes()
    for certificate, key in ((new[0], old[1]), (b"damaged", old[1]), (new[0], b"damaged")):
        files.certificate.write_bytes(certificate)
        files.key.write_bytes(key)
        with pytest.raises(InvalidInput, match=r"own\.crt"):
            kept.refresh()
        assert _handshake(kept.context) == first
    files.key.write_bytes(new[1])
    assert kept.refresh()
    assert _handshake(kept.context) != first


def _handshake(server: ssl.SSLContext) -> bytes:
    """The certificate that context shows."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    found = ours.getpeercert(binary_form=True)
    assert found is not None
    return found


@dataclass
class Opened:
    """What a proxy that opens TLS saw in it."""

    lines: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def _opening_proxy(ca: trustme.CA, opened: Opened) -> Iterator[int]:
    """A proxy as some sites have it: it ends TLS with a certificate of its own CA, and reads along."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(inside)
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outside.check_hostname, outside.verify_mode = False, ssl.CERT_NONE
    listener = socket.create_server(("127.0.0.1", 0))

    def one(accepted: socket.socket) -> None:
        with contextlib.suppress(OSError), accepted:
            head = b""
            while b"\r\n\r\n" not in head:
                head += accepted.recv(4096)
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with (
                inside.wrap_socket(accepted, server_side=True) as client,
                socket.create_connection((host, int(port))) as plain,
                outside.wrap_socket(plain) as server,
            ):
                request = client.recv(65536)
                opened.lines.append(request.split(b"\r\n")[0])
                server.sendall(request)
                server.settimeout(30.0)  # a busy machine answers late
                while data := server.recv(65536):
                    client.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_proxy_that_opens_tls_is_told_before_anything_is_sent(place: Place) -> None:
    """Also where the machine trusts the proxy's CA: the key names whom to trust."""
    opened, ca = Opened(), trustme.CA()
    with _opening_proxy(ca, opened) as proxy, pytest.raises(ServerNotTrusted) as refused:
        enrol(place.key(own=True), MEMBER, place.root / "gateway", way=place.way(proxy), clock=CLOCK)
    assert "opens TLS" in str(refused.value.as_dict()["cause"])
    # one question, which holds nothing; the proof of the key was not sent
    assert opened.lines == [f"GET {wire.PATH_AUTHORITY} HTTP/1.1".encode()]
    assert not (place.root / "gateway" / "gateway-a.crt").exists()


def test_a_proxy_that_opens_tls_gets_no_certificate_where_the_ca_is_the_systems(
    place: Place,
) -> None:
    opened, ca = Opened(), trustme.CA()
    with _opening_proxy(ca, opened) as proxy, pytest.raises(ServerNotTrusted):
        enrol(place.key(), MEMBER, place.root / "gateway", way=place.way(proxy), clock=CLOCK)
    assert opened.lines == []
