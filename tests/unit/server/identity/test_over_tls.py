"""Enrolment and what follows, over the server's real TLS listener: who is let in, and who is refused how."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from secondsite import __version__
from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, RemoteError, SecondsiteError
from secondsite.gateway.common.enrolerrors import (
    EnrolledAlready,
    NotEnrolled,
    OwnCertificateRefused,
    ServerNotTrusted,
    ServerUnreachable,
    WorkRefused,
)
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import ServerClient, Way, enrolled_client, trusting_client
from secondsite.gateway.uplink.enrolkeeper import Facts, ServerKeeper
from secondsite.server.identity.states import GatewayState
from secondsite.transfer import enrolment as wire
from secondsite.transfer.errors import CertificateRefused
from secondsite.transfer.pki import Authority
from secondsite.transfer.protocols import Peer
from secondsite.transfer.registration import RegistrationKey
from secondsite.transfer.tls import (
    Revocation,
    TlsFiles,
    check_revoked,
    client_context,
    peer_of,
    server_context,
)
from support.databases import Databases
from support.identity import Served, served

SECONDS_MAX = 20.0


@pytest.fixture
def server(databases: Databases, tmp_path: Path) -> Iterator[Served]:
    """On SQLite: what differs between databases is below, where the other tests of this directory look."""
    with databases.ready("sqlite") as url, served(tmp_path / "server", url) as running:
        yield running


def keeper(server: Served, directory: Path, facts: Facts | None = None) -> tuple[ServerKeeper, EventLog]:
    events = EventLog(server.clock)
    made = ServerKeeper(
        directory,
        clock=server.clock,
        events=events,
        chance=random.Random(1),
        facts=lambda: facts or Facts(),
        url="https://gateway-a.example:9443",
    )
    return made, events


def codes(events: EventLog) -> list[str]:
    return [event.code for _, event in events.since(0, 100)]


def beat(server: Served, files: TlsFiles) -> wire.HeartbeatAnswer:
    client = enrolled_client(Way(server.url), files, system_trust=False)
    body = wire.Heartbeat(version=__version__, sent_at=wire.time_text(server.clock.utc()))
    try:
        return client.post(wire.PATH_HEARTBEATS, body, wire.HeartbeatAnswer)
    finally:
        client.close()


def refused(code: str, error: pytest.ExceptionInfo[RemoteError]) -> str:
    assert error.value.body["code"] == code
    return " ".join(error.value.sentences())


def test_a_gateway_enrols_is_heard_and_finds_its_files(server: Served, tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    member = server.enrol(directory)
    assert (member.vault, member.state, member.server) == ("North", "Registered", server.url)
    kept, _ = keeper(server, directory, Facts(protected=2, points=40, health="Normal"))
    assert 5 < kept.look() < 15
    shown = server.identity.gateways.get("gateway-a")
    assert shown.contact is not None
    assert shown.contact.connected(server.clock.utc())
    assert (shown.contact.address, shown.contact.points) == ("127.0.0.1", 40)
    assert shown.contact.url == "https://gateway-a.example:9443"
    assert (directory / "gateway-a.key").stat().st_mode & 0o777 == 0o600
    files = EnrolmentFiles(directory, "gateway-a").tls
    assert not Revocation(files).is_revoked(1)
    assert sorted(path.name for path in directory.iterdir()) == [
        "authority.crt",
        "gateway-a.crt",
        "gateway-a.key",
        "incarnation.json",
        "membership.json",
        "revoked.pem",
        "servers.json",
    ]
    kept.close()


def test_a_key_on_day_six_is_refused(server: Served, tmp_path: Path) -> None:
    key = server.key()
    with server.clock.moved(days=5, seconds=1), pytest.raises(RemoteError) as error:
        server.enrol(tmp_path / "tls", key=key)
    assert "valid for 5 days" in refused("registration-key.expired", error)
    # once it is refused, nothing but the key pair that was tried is there, and a new key goes on with it
    assert [path.name for path in (tmp_path / "tls").iterdir()] == ["gateway-a.key.next"]
    assert server.enrol(tmp_path / "tls").state == "Registered"


def test_a_revoked_key_is_refused(server: Served, tmp_path: Path) -> None:
    key = server.key()
    server.identity.keys.revoke("North", key.id)
    with pytest.raises(RemoteError) as error:
        server.enrol(tmp_path / "tls", key=key)
    refused("registration-key.revoked", error)


def test_a_request_sent_again_is_refused(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever recorded it, even in the clear, cannot use it."""
    recorded: list[tuple[str, bytes]] = []
    plain = ServerClient.request

    def recording(self: ServerClient, method: str, path: str, body: bytes | None, **more: float) -> bytes:
        if body is not None:
            recorded.append((path, body))
        return plain(self, method, path, body, **more)

    monkeypatch.setattr(ServerClient, "request", recording)
    key = server.key()
    server.enrol(tmp_path / "tls", key=key)
    [(path, body)] = [found for found in recorded if found[0] == wire.PATH_CERTIFICATES]
    client = trusting_client(Way(server.url), server.identity.authority.pem, system_trust=False)
    with pytest.raises(RemoteError) as error:
        client.request("POST", path, body)
    refused("enrolment.replayed", error)
    changed = json.dumps(json.loads(body) | {"name": "gateway-b"}).encode()
    with pytest.raises(RemoteError) as error:
        client.request("POST", path, changed)
    refused("registration-key.refused", error)
    client.close()
    # the key itself never travelled
    everything = b"\n".join(found for _, found in recorded)
    for secret in (key.secret, key.secret.hex().encode(), base64.b64encode(key.secret), key.text().encode()):
        assert secret not in everything


def test_an_expired_certificate_is_refused(server: Served, tmp_path: Path) -> None:
    with server.clock.moved(days=-31):
        server.enrol(tmp_path / "tls")
    with pytest.raises(OwnCertificateRefused, match="certificate"):
        beat(server, EnrolmentFiles(tmp_path / "tls", "gateway-a").tls)
    assert server.identity.gateways.get("gateway-a").contact is None


def test_a_certificate_of_another_authority_is_refused(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    foreign = Authority.create(tmp_path / "foreign", clock=SystemClock())
    certificate, private = foreign.issue("gateway-a").save(tmp_path / "foreign", "gateway-a")
    own = EnrolmentFiles(tmp_path / "tls", "gateway-a").tls
    with pytest.raises(OwnCertificateRefused):
        beat(server, TlsFiles(certificate, private, own.authority))
    assert beat(server, own).revocation_number == 1


def test_without_a_certificate_there_is_no_heartbeat(server: Served) -> None:
    client = trusting_client(Way(server.url), server.identity.authority.pem, system_trust=False)
    body = wire.Heartbeat(version=__version__, sent_at=wire.time_text(server.clock.utc()))
    with pytest.raises(RemoteError) as error:
        client.post(wire.PATH_HEARTBEATS, body, wire.HeartbeatAnswer)
    refused("access.certificate-required", error)
    client.close()


def test_a_revocation_counts_on_a_connection_that_is_open(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    files = EnrolmentFiles(tmp_path / "tls", "gateway-a").tls
    client = enrolled_client(Way(server.url), files, system_trust=False)
    client.get(wire.PATH_REVOCATIONS, wire.RevocationsAnswer)
    server.identity.gateways.revoke("gateway-a", why="its disk was stolen")
    with pytest.raises(RemoteError) as error:
        client.get(wire.PATH_REVOCATIONS, wire.RevocationsAnswer)
    assert "its disk was stolen" in refused("gateway.revoked", error)
    client.close()


def test_other_gateways_fetch_the_list_and_never_go_back(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "a")
    server.enrol(tmp_path / "b", "gateway-b")
    kept, events = keeper(server, tmp_path / "b")
    kept.look()
    files = EnrolmentFiles(tmp_path / "b", "gateway-b")
    old = (tmp_path / "b" / "revoked.pem").read_text()
    serial = EnrolmentFiles(tmp_path / "a", "gateway-a").certificate().serial_number
    revocation = Revocation(files.tls)
    assert not revocation.is_revoked(serial)
    server.identity.gateways.revoke("gateway-a", why="x")
    kept.look()
    assert revocation.is_revoked(serial)
    assert codes(events) == ["server.revocations"]
    assert not files.take_revocations(old)
    assert revocation.is_revoked(serial)
    foreign = Authority.create(tmp_path / "foreign", clock=SystemClock())
    with pytest.raises(InvalidInput, match="not signed"):
        files.take_revocations(foreign.revoked_path.read_text())
    kept.close()


def test_a_server_that_is_not_the_keys_gets_nothing(server: Served, tmp_path: Path) -> None:
    key = server.key()
    other = RegistrationKey(key.id, key.url, key.ends_at, bytes(32), key.secret)
    with pytest.raises(ServerNotTrusted, match="fingerprint"):
        server.enrol(tmp_path / "tls", key=other)
    assert not (tmp_path / "tls").exists()


def test_a_server_under_another_name_is_not_trusted(server: Served, tmp_path: Path) -> None:
    """First contact goes by the fingerprint; from then on the name counts as well."""
    member = NewMember("gateway-a", "gateway-a", "site a")
    # 127.0.0.2 reaches nobody here but a listener on all addresses; the certificate does not hold it
    port = server.url.rsplit(":", 1)[1]
    with _forwarder("127.0.0.2", ("127.0.0.1", int(port))) as there:
        way = Way(f"https://127.0.0.2:{there}")
        with pytest.raises(ServerNotTrusted, match=r"127\.0\.0\.2"):
            enrol(server.key(), member, tmp_path / "tls", way=way, clock=server.clock)


def test_a_server_that_is_away_is_told_as_such(tmp_path: Path, server: Served) -> None:
    key = server.key()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    way = Way(f"https://127.0.0.1:{port}")
    with pytest.raises(ServerUnreachable):
        enrol(key, NewMember("gateway-a", "a", "a"), tmp_path / "tls", way=way, clock=server.clock)


@pytest.mark.parametrize("minutes", [6, -6])
def test_a_gateway_with_a_wrong_clock_does_not_enrol(server: Served, tmp_path: Path, minutes: int) -> None:
    key = server.key()
    wrong = type(server.clock)()
    member = NewMember("gateway-a", "a", "a")
    with (
        wrong.moved(minutes=minutes),
        pytest.raises(wire.ClockOff, match=r"at the gateway and .* at the server"),
    ):
        enrol(key, member, tmp_path / "tls", way=Way(server.url), clock=wrong)
    assert not (tmp_path / "tls").exists()


def test_a_gateway_that_is_too_new_does_not_enrol(server: Served, tmp_path: Path) -> None:
    member = NewMember("gateway-a", "a", "a")
    with pytest.raises(RemoteError) as error:
        enrol(
            server.key(),
            member,
            tmp_path / "tls",
            way=Way(server.url),
            clock=server.clock,
            version="99.0.0",
        )
    assert "Update the server first" in refused("gateway.version-refused", error)


def test_an_enrolment_is_not_replaced_by_accident(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    before = (tmp_path / "tls" / "gateway-a.crt").read_bytes()
    with pytest.raises(EnrolledAlready):
        server.enrol(tmp_path / "tls")
    member, way = NewMember("gateway-a", "a", "a"), Way(server.url)
    with pytest.raises(RemoteError) as error:
        enrol(server.key(), member, tmp_path / "tls", way=way, clock=server.clock, replace=True)
    refused("enrolment.name-taken", error)
    assert (tmp_path / "tls" / "gateway-a.crt").read_bytes() == before
    beat(server, EnrolmentFiles(tmp_path / "tls", "gateway-a").tls)
    again = server.key(again="gateway-a")
    enrol(again, member, tmp_path / "tls", way=way, clock=server.clock, replace=True)
    assert (tmp_path / "tls" / "gateway-a.crt").read_bytes() != before
    beat(server, EnrolmentFiles(tmp_path / "tls", "gateway-a").tls)


def test_an_answer_that_was_lost_is_asked_for_again(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = server.key()
    plain = ServerClient._once
    lost: list[str] = []

    def losing(self: ServerClient, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        data = plain(self, method, path, body, seconds)
        if path == wire.PATH_CERTIFICATES and not lost:
            lost.append(path)
            raise InvalidInput(what="the line", why="a test cut it")
        return data

    monkeypatch.setattr(ServerClient, "_once", losing)
    with pytest.raises(InvalidInput, match="a test cut it"):
        server.enrol(tmp_path / "tls", key=key)
    assert server.enrol(tmp_path / "tls", key=key).state == "Registered"
    assert server.identity.keys.of_vault("North")[0].uses == 1


def test_a_certificate_renews_itself_at_two_thirds(server: Served, tmp_path: Path) -> None:
    with server.clock.moved(days=-19):
        server.enrol(tmp_path / "young")
    with server.clock.moved(days=-21.1):
        server.enrol(tmp_path / "old", "gateway-b")
    young, _ = keeper(server, tmp_path / "young")
    before = EnrolmentFiles(tmp_path / "young", "gateway-a").certificate()
    young.look()
    assert EnrolmentFiles(tmp_path / "young", "gateway-a").certificate() == before
    files = EnrolmentFiles(tmp_path / "old", "gateway-b")
    before, key_before = files.certificate(), files.tls.key.read_bytes()
    old, events = keeper(server, tmp_path / "old")
    old.look()
    assert files.certificate() != before
    assert files.tls.key.read_bytes() != key_before
    assert files.tls.key.stat().st_mode & 0o777 == 0o600
    assert not files.next_key_path.exists()
    assert codes(events) == ["server.certificate-renewed"]
    beat(server, files.tls)
    old.look()
    assert codes(events) == ["server.certificate-renewed"]
    for one in (young, old):
        one.close()


def test_gateways_renew_at_different_moments(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    certificate = EnrolmentFiles(tmp_path / "tls", "gateway-a").certificate()
    moments = set()
    for seed in range(8):
        made = ServerKeeper(
            tmp_path / "tls",
            clock=server.clock,
            events=EventLog(server.clock),
            chance=random.Random(seed),
        )
        due = made.renewal_due(certificate)
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert 2 / 3 <= (due - certificate.not_valid_before_utc) / life <= 0.7
        moments.add(due)
    assert len(moments) == 8


def test_a_renewal_that_fails_is_tried_again_later_and_tells(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.clock.moved(days=-22):
        server.enrol(tmp_path / "tls")
    files = EnrolmentFiles(tmp_path / "tls", "gateway-a")
    before = files.certificate()
    kept, events = keeper(server, tmp_path / "tls")
    tries: list[str] = []
    plain = ServerClient._once

    def failing(self: ServerClient, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        if path == wire.PATH_RENEW:
            tries.append(path)
            if len(tries) == 1:
                raise InvalidInput(what="the disk", why="a test says that it is full")
        return plain(self, method, path, body, seconds)

    monkeypatch.setattr(ServerClient, "_once", failing)
    kept.look()
    kept.look()  # not due again yet: a renewal is not tried with every heartbeat
    assert len(tries) == 1
    assert codes(events) == ["server.renewal-failed"]
    assert server.identity.gateways.get("gateway-a").contact is not None
    kept._renew_not_before = 0.0
    kept.look()
    assert len(tries) == 2
    assert files.certificate() != before
    assert codes(events)[-1] == "server.certificate-renewed"
    kept.close()


def test_cut_off_between_certificate_and_key_it_is_settled_at_the_next_start(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.clock.moved(days=-22):
        server.enrol(tmp_path / "tls")
    files = EnrolmentFiles(tmp_path / "tls", "gateway-a")
    kept, _ = keeper(server, tmp_path / "tls")

    class CutOff(BaseException):
        """As a kill would."""

    def cut(self: EnrolmentFiles) -> None:
        raise CutOff

    with monkeypatch.context() as patched:
        patched.setattr(EnrolmentFiles, "settle", cut)
        with pytest.raises(CutOff):
            kept.look()
    kept.close()
    with pytest.raises((ssl.SSLError, OwnCertificateRefused)):
        beat(server, files.tls)
    again, _ = keeper(server, tmp_path / "tls")
    beat(server, files.tls)
    assert not files.next_key_path.exists()
    again.close()


def test_an_unregistered_gateway_refuses_new_work_until_it_is_back(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    kept, events = keeper(server, tmp_path / "tls")
    kept.look()
    kept.check_may_work()
    server.identity.gateways.unregister("gateway-a", why="the site is given up")
    assert kept.look() > 30  # asked seldom from now on
    with pytest.raises(WorkRefused, match="the site is given up"):
        kept.check_may_work()
    kept.look()
    assert codes(events) == ["server.let-go"]  # told once
    kept.close()
    # it knows after a restart, before it hears of the server again
    restarted, events = keeper(server, tmp_path / "tls")
    with pytest.raises(WorkRefused, match="unregistered"):
        restarted.check_may_work()
    member, way = NewMember("gateway-a", "a", "a"), Way(server.url)
    again = server.key(again="gateway-a")
    enrol(again, member, tmp_path / "tls", way=way, clock=server.clock, replace=True)
    restarted.look()
    restarted.check_may_work()
    assert server.identity.gateways.get("gateway-a").state is GatewayState.REGISTERED
    restarted.close()


def test_a_removed_gateway_knows_it(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    kept, _ = keeper(server, tmp_path / "tls")
    server.identity.gateways.revoke("gateway-a", why="x")
    kept.look()
    states = [kept.membership.state]
    server.identity.gateways.remove("gateway-a")
    kept.look()
    assert [*states, kept.membership.state] == ["Revoked", "Removed"]
    kept.close()


def test_a_refresh_is_answered_at_once(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    kept, _ = keeper(server, tmp_path / "tls")
    kept.look()
    asked = server.identity.gateways.refresh("gateway-a").refresh_number
    kept.look()
    contact = server.identity.gateways.get("gateway-a").contact
    assert contact is not None
    assert contact.refreshed == asked == 1
    kept.close()


def test_a_server_that_stops_is_told_once_and_found_again(tmp_path: Path) -> None:
    with served(tmp_path / "server") as server:
        server.enrol(tmp_path / "tls")
        kept, events = keeper(server, tmp_path / "tls")
        kept.look()
    kept.look()
    kept.look()
    kept.check_may_work()
    assert codes(events) == ["server.away"]
    kept.close()


def test_the_keeper_keeps_by_itself(server: Served, tmp_path: Path) -> None:
    server.enrol(tmp_path / "tls")
    kept, _ = keeper(server, tmp_path / "tls")
    kept.start()
    clock, waiting = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SECONDS_MAX
    while server.identity.gateways.get("gateway-a").contact is None and clock.monotonic() < deadline:
        clock.wait(waiting, 0.05)
    assert server.identity.gateways.get("gateway-a").contact is not None
    kept.close()


def test_a_directory_without_an_enrolment_is_told(tmp_path: Path, server: Served) -> None:
    with pytest.raises(NotEnrolled, match=r"membership\.json"):
        keeper(server, tmp_path)
    (tmp_path / "membership.json").write_text("{}")
    with pytest.raises(NotEnrolled, match="does not parse"):
        keeper(server, tmp_path)


@pytest.mark.parametrize("credentials", [None, "robot:secret word"])
def test_through_a_proxy(server: Served, tmp_path: Path, credentials: str | None) -> None:
    file = tmp_path / "credentials"
    if credentials:
        file.write_text(credentials + "\n")
    with _proxy(credentials) as port:
        way = Way(server.url, f"http://127.0.0.1:{port}", file if credentials else None)
        member = NewMember("gateway-a", "a", "a")
        enrolled = enrol(
            server.key(),
            member,
            tmp_path / "tls",
            way=way,
            clock=server.clock,
            credentials=file if credentials else None,
        )
        assert enrolled.proxy == f"http://127.0.0.1:{port}"
        kept, events = keeper(server, tmp_path / "tls")
        kept.look()
        assert codes(events) == []
        kept.close()
        assert server.identity.gateways.get("gateway-a").contact is not None
        if credentials:
            assert "secret word" not in (tmp_path / "tls" / "membership.json").read_text()
            file.write_text("robot:wrong")
            with pytest.raises(ServerUnreachable, match="407"):
                enrol(server.key(), member, tmp_path / "other", way=way, clock=server.clock)


@pytest.mark.parametrize("proxy", ["ftp://a:1", "http://a", "http://u:p@a:1", "a:1", "http://a:x"])
def test_proxies_that_are_none(proxy: str) -> None:
    with pytest.raises(InvalidInput):
        Way("https://server", proxy)


def test_nothing_secret_is_in_logs_or_errors(
    server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = server.key()
    said: list[str] = []
    server.enrol(tmp_path / "tls", key=key)
    with server.clock.moved(days=6), pytest.raises(SecondsiteError) as error:
        server.enrol(tmp_path / "late", key=key)
    said.append(str(error.value.as_dict()))
    with pytest.raises(SecondsiteError) as error:
        server.enrol(tmp_path / "same", key=key)
    said.append(str(error.value.as_dict()))
    text = caplog.text + "\n".join(said)
    assert "enrolment of gateway-a refused: registration-key.expired" in text  # it did listen
    private = (tmp_path / "tls" / "gateway-a.key").read_text().splitlines()[1]
    for secret in (key.text(), key.text()[40:80], key.secret.hex(), private):
        assert secret not in text


def test_two_enrolled_gateways_know_each_other_until_one_is_revoked(server: Served, tmp_path: Path) -> None:
    """The certificates are those of the data path: what one site sends the other goes over them."""
    server.enrol(tmp_path / "a")
    server.enrol(tmp_path / "b", "gateway-b")
    a, b = EnrolmentFiles(tmp_path / "a", "gateway-a").tls, EnrolmentFiles(tmp_path / "b", "gateway-b").tls
    seen = _meet(a, b, name="gateway-b")
    assert [peer.name for peer in seen] == ["gateway-b", "gateway-a"]
    revocation = Revocation(b)
    check_revoked(revocation, seen[1])
    kept, _ = keeper(server, tmp_path / "b")
    server.identity.gateways.revoke("gateway-a", why="stolen")
    kept.look()
    with pytest.raises(CertificateRefused, match="revoked"):
        check_revoked(revocation, seen[1])
    kept.close()


def test_the_servers_certificate_opens_no_gateway(server: Served, tmp_path: Path) -> None:
    """It is of the same authority, and good for answering only: a stolen one does not call a gateway."""
    server.enrol(tmp_path / "b", "gateway-b")
    b = EnrolmentFiles(tmp_path / "b", "gateway-b").tls
    leaf = server.identity.authority.server_leaf("server", ["gateway-a"])
    certificate, private = leaf.save(tmp_path / "stolen", "gateway-a")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _meet(TlsFiles(certificate, private, b.authority), b, name="gateway-b")


def _meet(caller: TlsFiles, called: TlsFiles, *, name: str) -> list[Peer]:
    """Whom the caller sees, and whom the called one sees."""
    found: list[Peer | OSError] = []

    def serve() -> None:
        accepted, _ = listener.accept()
        accepted.settimeout(SECONDS_MAX)
        try:
            with server_context(called).wrap_socket(accepted, server_side=True) as secured:
                found.append(peer_of(secured))
                secured.sendall(b"x")
        except OSError as error:
            found.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), SECONDS_MAX) as plain,
            client_context(caller).wrap_socket(plain, server_hostname=name) as secured,
        ):
            seen = peer_of(secured)
            secured.recv(1)
        thread.join(SECONDS_MAX)
    [other] = found
    if isinstance(other, OSError):
        raise other
    return [seen, other]


def test_certificates_name_one_gateway(server: Served, tmp_path: Path) -> None:
    member: Membership = server.enrol(tmp_path / "tls")
    found = EnrolmentFiles(tmp_path / "tls", member.name).certificate()
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["secondsite:gateway:gateway-a"]
    assert names.get_values_for_type(x509.DNSName) == ["gateway-a"]


# small peers


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _join(one: socket.socket, other: socket.socket) -> None:
    back = threading.Thread(target=_pump, args=(other, one), daemon=True)
    back.start()
    _pump(one, other)
    back.join()


@contextlib.contextmanager
def _accepting(host: str, serve: object) -> Iterator[int]:
    assert callable(serve)
    with socket.create_server((host, 0)) as listener:

        def loop() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(accepted,), daemon=True).start()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(SECONDS_MAX)


@contextlib.contextmanager
def _forwarder(host: str, to: tuple[str, int]) -> Iterator[int]:
    def serve(accepted: socket.socket) -> None:
        with accepted, socket.create_connection(to) as onward:
            _join(accepted, onward)

    with _accepting(host, serve) as port:
        yield port


@contextlib.contextmanager
def _proxy(credentials: str | None) -> Iterator[int]:
    """An HTTP proxy that knows CONNECT, and may want credentials."""
    wanted = base64.b64encode(credentials.encode()).decode() if credentials else None

    def serve(accepted: socket.socket) -> None:
        with accepted:
            head = b""
            while b"\r\n\r\n" not in head:
                data = accepted.recv(4096)
                if not data:
                    return
                head += data
            lines = head.decode("latin-1").split("\r\n")
            if wanted is not None and f"proxy-authorization: basic {wanted}".lower() not in [
                line.lower() for line in lines
            ]:
                accepted.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = lines[0].split(" ")[1].rpartition(":")
            with socket.create_connection((host, int(port))) as onward:
                accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                _join(accepted, onward)

    with _accepting("127.0.0.1", serve) as port:
        yield port
