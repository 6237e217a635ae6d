"""A hostile or broken world around the link: bad certificates, slow peers, cuts, killed gateways."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3
import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.crash import MARKS
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.gateway.target import intake, receive
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal import chain, store_local
from secondsite.journal.chain import Journal
from secondsite.journal.names import segment_name, wrapped_key_name
from secondsite.journal.store_local import LocalStore
from secondsite.journal.store_memory import MemoryStore
from secondsite.transfer import spool as spool_module
from secondsite.transfer.errors import CacheFull, LinkDown
from secondsite.transfer.ingest import IngestLimits, IngestServer
from secondsite.transfer.link import POOLED_SECONDS_MAX, HttpsLink
from secondsite.transfer.protocols import error_code
from secondsite.transfer.retry import RetryPolicy, retry
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool
from secondsite.transfer.tls import TlsFiles, client_context
from support.target_gateway import NAME, PEER
from support.transfer import KEY, MACHINE, Certificates, Events, Made, Maker

pytestmark = pytest.mark.fault
TICK = threading.Event()


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    clock = SystemClock()
    end = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < end, "the condition did not come true"
        clock.wait(TICK, 0.005)


@dataclass
class Target:
    """A listener in this process."""

    certificates: Certificates
    store: MemoryStore
    events: Events
    server: IngestServer
    address: tuple[str, int]

    def link(self, files: TlsFiles | None = None, *, peer: str = NAME, idle_seconds: float = 30) -> HttpsLink:
        return HttpsLink(
            f"https://{self.address[0]}:{self.address[1]}",
            peer,
            files or self.certificates.of(PEER),
            clock=SystemClock(),
            idle_seconds=idle_seconds,
        )

    def raw(self) -> ssl.SSLSocket:
        plain = socket.create_connection(self.address, timeout=20)
        return client_context(self.certificates.of(PEER)).wrap_socket(plain, server_hostname=NAME)


LIMITS = IngestLimits(
    connections_max=8,
    handshake_seconds=0.5,
    head_seconds=0.5,
    between_requests_seconds=1.0,
    idle_seconds=0.5,
    body_seconds=2.0,
    body_bytes_per_second_min=10 * MIB,
)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    events, store = Events(), MemoryStore()
    certificates = Certificates(tmp_path)
    receiver = GatewayReceiver(
        store, vault=None, peers={PEER: PeerRule()}, clock=SystemClock(), events=events
    )
    server = IngestServer(
        receiver,
        certificates.of(NAME),
        ("127.0.0.1", 0),
        name=NAME,
        clock=SystemClock(),
        events=events,
        limits=LIMITS,
    )
    yield Target(certificates, store, events, server, server.start())
    server.close()


# -- certificates ---------------------------------------------------------------------------------


def _refusal(link: HttpsLink) -> SecondsiteError:
    with pytest.raises(SecondsiteError) as caught:
        link.head(MACHINE)
    assert error_code(caught.value) == "link.certificate-refused", caught.value
    assert not caught.value.retryable
    link.close()
    return caught.value


def test_a_certificate_of_another_authority_is_refused_by_both_sides(target: Target, tmp_path: Path) -> None:
    foreign = Certificates(tmp_path / "foreign")
    error = _refusal(target.link(foreign.of(PEER)))
    assert "self-signed certificate in certificate chain" in str(error) or "unable to get" in str(error)
    # one that trusts the target but shows a foreign certificate: the target must refuse it
    theirs = foreign.of(PEER)
    mixed = TlsFiles(theirs.certificate, theirs.key, target.certificates.authority.certificate_path)
    assert "unknown ca" in str(_refusal(target.link(mixed)))
    assert "handshake" in target.events.wait_for("ingest.handshake-refused")


def test_an_expired_certificate_is_refused(target: Target) -> None:
    assert "expired" in str(_refusal(target.link(target.certificates.expired(PEER))))
    assert "expired" in target.events.wait_for("ingest.handshake-refused")


def test_a_revoked_certificate_is_refused_at_once_and_the_next_one_works(target: Target) -> None:
    files = target.certificates.of(PEER)
    old = target.link(files)
    old.head(MACHINE)
    leaf = ssl._ssl._test_decode_cert(str(files.certificate))  # type: ignore[attr-defined]
    target.certificates.authority.revoke(int(leaf["serialNumber"], 16))
    copy = TlsFiles(files.certificate, files.key, files.authority)  # a source that has not got the list yet
    assert "revoked" in str(_refusal(target.link(copy)))
    assert "revoked" in target.events.wait_for("ingest.certificate-refused")
    target.link(target.certificates.of(PEER)).head(MACHINE)


def test_a_target_with_another_name_or_a_revoked_certificate_is_refused_by_the_source(target: Target) -> None:
    assert "Hostname mismatch" in str(_refusal(target.link(peer="gateway-x")))
    link = target.link()
    link.head(MACHINE)
    served = target.certificates.directory / "leaves" / f"{NAME}.crt"
    leaf = ssl._ssl._test_decode_cert(str(served))  # type: ignore[attr-defined]
    target.certificates.authority.revoke(int(leaf["serialNumber"], 16))
    assert "revoked" in str(_refusal(target.link()))


def test_no_certificate_and_no_tls_are_refused(target: Target) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(target.certificates.authority.certificate_path)
    plain = socket.create_connection(target.address, timeout=20)
    request = b"GET /v1/health HTTP/1.1\r\n\r\n"
    with context.wrap_socket(plain, server_hostname=NAME) as sock:
        # the alert comes after the client's handshake; a write may succeed before it
        with contextlib.suppress(OSError):
            sock.sendall(request)
        assert _answer(sock) == b""
    with socket.create_connection(target.address, timeout=20) as bare:
        with contextlib.suppress(OSError):
            bare.sendall(request)
        assert b"HTTP" not in _answer(bare)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(target.certificates.authority.certificate_path)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    plain = socket.create_connection(target.address, timeout=20)
    with pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname=NAME)
    plain.close()


def test_a_damaged_revocation_list_lets_nobody_in(target: Target) -> None:
    target.certificates.authority.revoked_path.write_bytes(b"not a list")
    files = target.certificates.of(PEER)
    link = target.link(TlsFiles(files.certificate, files.key, files.authority))
    with pytest.raises(SecondsiteError):
        link.head(MACHINE)


def test_nothing_secret_is_logged(target: Target) -> None:
    files = target.certificates.of(PEER)
    _refusal(target.link(target.certificates.expired(PEER)))
    text = repr(target.events.seen) + repr(target.certificates.authority.issue("gateway-z"))
    assert "PRIVATE KEY" not in text
    assert files.key.read_text().splitlines()[1] not in text
    assert files.key.stat().st_mode & 0o077 == 0


# -- hostile and slow peers -----------------------------------------------------------------------


def _answer(sock: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except OSError:
            return data
        if not more:
            return data
        data += more


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/health HTTP/1.1\r\n" + b"x: y\r\n" * 2000,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nx: 1\r\nx: 2\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(60)) + b"\r\n",
        b"nonsense\r\n\r\n",
        b"\xff\xfe /v1/health HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/1.0\r\nconnection: close\r\n\r\n",
        b"POST /v1/machines/%s/points HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n" % MACHINE.encode(),
        b"POST /v1/machines/%s/points HTTP/1.1\r\ncontent-length: -1\r\n\r\n" % MACHINE.encode(),
        b"POST /v1/machines/%s/claims HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        % MACHINE.encode(),
        b"POST /v1/machines/%s/claims HTTP/1.1\r\nconnection: close\r\ncontent-length: 4\r\n\r\n[[[["
        % MACHINE.encode(),
        b"PUT /v1/machines/%s/segments/1/../x HTTP/1.1\r\nconnection: close\r\n\r\n" % MACHINE.encode(),
        b"DELETE /v1/machines/%s/head HTTP/1.1\r\nconnection: close\r\n\r\n" % MACHINE.encode(),
    ],
    ids=lambda value: value[:40].decode("latin-1"),
)
def test_malformed_requests_are_answered_with_an_error_and_the_listener_lives(
    target: Target, request_bytes: bytes
) -> None:
    with target.raw() as sock:
        sock.sendall(request_bytes)
        answer = _answer(sock)
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500, answer
    assert b'"code":' in answer
    assert "ingest.internal-error" not in target.events.codes()
    link = target.link()
    assert link.health()["you"] == PEER
    link.close()


def test_random_bytes_never_break_the_listener(target: Target) -> None:
    chance = random.Random(7)
    for _ in range(30):
        with target.raw() as sock:
            start = chance.choice([b"", b"PUT /v1/machines/", b"GET /v1/health HTTP/1.1\r\n"])
            sock.sendall(start + chance.randbytes(chance.randrange(1, 3000)) + b"\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
    link = target.link()
    _until(lambda: link.health()["name"] == NAME)
    assert "ingest.internal-error" not in target.events.codes()
    link.close()


def test_slow_peers_are_cut_off_and_others_are_served(target: Target) -> None:
    Maker().claim(target.link())
    path = f"/v1/machines/{MACHINE}/segments/1/vda/{'ab' * 16}".encode()
    begin_body = (
        b"PUT " + path + b" HTTP/1.1\r\ncontent-length: 1000\r\nx-hash: " + b"0" * 64 + b"\r\n\r\nabc"
    )
    silent = socket.create_connection(target.address, timeout=20)  # never begins its handshake
    in_head, in_body = target.raw(), target.raw()
    in_head.sendall(b"GET /v1/he")
    in_body.sendall(begin_body)
    drip = target.raw()
    stop = threading.Event()

    def dripping() -> None:
        # each byte within the idle limit: only the limit on the whole head ends it
        clock = SystemClock()
        while not clock.wait(stop, 0.05):
            try:
                drip.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=dripping)
    thread.start()
    link = target.link()
    assert link.health()["name"] == NAME
    for sock in (silent, in_head, in_body, drip):
        poll = select.poll()  # select knows no descriptor above 1023
        poll.register(sock, select.POLLIN)
        assert poll.poll(20_000), "not cut off"
    stop.set()
    thread.join()
    for sock in (silent, in_head, in_body, drip):
        sock.close()
    link.close()


def test_more_connections_than_allowed_are_turned_away(target: Target) -> None:
    held = [socket.create_connection(target.address, timeout=20) for _ in range(LIMITS.connections_max)]
    with socket.create_connection(target.address, timeout=20) as one_more:
        assert one_more.recv(1) == b""
    assert "connection" in target.events.wait_for("ingest.too-many-connections")
    for sock in held:
        sock.close()
    link = target.link()

    def served() -> bool:
        try:
            return link.health()["name"] == NAME
        except LinkDown:
            return False

    _until(served)
    link.close()


# -- cut links ------------------------------------------------------------------------------------


class Proxy:
    """Forwards TCP to the target; cuts the first connection after `bytes_until_cut` bytes to the target."""

    def __init__(self, address: tuple[str, int], bytes_until_cut: int) -> None:
        self._address = address
        self._left = bytes_until_cut
        self._armed = True
        self.forwarded = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._address, timeout=20)
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(
                    target=self._pump, args=(source, sink, source is client), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if upwards:
                    self.forwarded += len(data)
                    if self._armed and self.forwarded > self._left:
                        self._armed = False
                        sink.sendall(data[: max(0, self._left - self.forwarded + len(data))])
                        break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.mark.parametrize("cut_at", [3_000, 70_000, 1_200_000, 5_000_000])
def test_a_link_cut_in_the_middle_of_a_segment_goes_on_where_it_was(target: Target, cut_at: int) -> None:
    maker = Maker()
    maker.claim(target.link())
    made = maker.segment(8 * MIB)
    proxy = Proxy(target.address, cut_at)
    url = f"https://127.0.0.1:{proxy.address[1]}"
    # a proxy that reads no more and says nothing is noticed by the time limit only
    link = HttpsLink(url, NAME, target.certificates.of(PEER), clock=SystemClock(), idle_seconds=3)
    with pytest.raises(SecondsiteError) as caught:
        link.send_segment(MACHINE, made.ref, made.data)
    assert caught.value.retryable
    assert caught.value.code in {"link.down", "link.timeout"}
    link.send_segment(MACHINE, made.ref, made.data)
    key = segment_name(MACHINE, 1, made.ref.disk, made.ref.id)
    assert target.store.get(key, size_bytes_max=10**9) == made.data
    # what had arrived was not sent again, but for what was under way (socket buffers, one block)
    assert proxy.forwarded < len(made.data) + 4 * MIB + 200_000
    if cut_at > 4 * MIB:
        assert proxy.forwarded < len(made.data) + cut_at
    link.close()
    proxy.close()


def test_a_target_that_stops_answering_is_a_timeout_and_can_be_tried_again(target: Target) -> None:
    hole = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = target.certificates.of(NAME)
    context.load_cert_chain(own.certificate, own.key)

    def swallow() -> None:
        plain, _ = hole.accept()
        with context.wrap_socket(plain, server_side=True) as sock:
            TICK.wait(0)
            finished.wait(20)
            sock.close()

    finished = threading.Event()
    thread = threading.Thread(target=swallow)
    thread.start()
    link = HttpsLink(
        f"https://127.0.0.1:{hole.getsockname()[1]}",
        NAME,
        target.certificates.of(PEER),
        clock=SystemClock(),
        idle_seconds=0.3,
    )
    made = Maker().segment(16 * MIB)
    with pytest.raises(SecondsiteError) as caught:
        link.send_segment(MACHINE, made.ref, made.data)
    assert caught.value.code == "link.timeout"
    assert caught.value.retryable
    finished.set()
    thread.join()
    link.close()
    hole.close()


def test_a_kept_connection_has_no_limit_left_of_the_answer_before(target: Target) -> None:
    """The first request after half a minute without any came out as link.timeout."""
    clock = FakeClock()
    url = f"https://127.0.0.1:{target.address[1]}"
    link = HttpsLink(url, NAME, target.certificates.of(PEER), clock=clock)
    made = Maker()
    made.claim(link)
    [(kept, _)] = link._idle
    clock.advance(POOLED_SECONDS_MAX - 1)
    assert link.health()["name"] == NAME
    assert [connection for connection, _ in link._idle] == [kept], "the same one served it"
    link.close()


class Freezing(Proxy):
    """After `freeze` nothing moves on the connections there are, which stay open, as behind a lost route."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.frozen = threading.Event()
        self.thaw = threading.Event()
        self.swallowed = 0
        self.connections = 0
        super().__init__(address, 10**12)

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        self.connections += upwards
        fresh = self.frozen.is_set()
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.frozen.is_set() and not fresh:
                    self.swallowed += 1
                    self.thaw.wait(20)
                    return
                sink.sendall(data)


def test_a_kept_connection_that_went_silent_is_replaced_at_once(target: Target) -> None:
    maker = Maker()
    proxy = Freezing(target.address)
    url = f"https://127.0.0.1:{proxy.address[1]}"
    link = HttpsLink(url, NAME, target.certificates.of(PEER), clock=SystemClock(), idle_seconds=0.3)
    maker.claim(link)
    made = maker.segment(16 * MIB)
    proxy.frozen.set()
    link.send_segment(MACHINE, made.ref, made.data)
    key = segment_name(MACHINE, 1, made.ref.disk, made.ref.id)
    assert target.store.get(key, size_bytes_max=10**9) == made.data
    assert (proxy.swallowed, proxy.connections) == (1, 2)
    proxy.thaw.set()
    link.close()
    proxy.close()


def test_closing_a_link_wakes_its_callers(target: Target) -> None:
    Maker().claim(target.link())
    proxy = Proxy(target.address, 10**12)
    link = HttpsLink(
        f"https://127.0.0.1:{proxy.address[1]}", NAME, target.certificates.of(PEER), clock=SystemClock()
    )
    errors: list[SecondsiteError] = []
    release = threading.Event()
    real = target.server._receiver.head

    def slow(*args: object) -> object:
        release.wait(20)
        return real(*args)  # type: ignore[arg-type]

    target.server._receiver.head = slow  # type: ignore[method-assign, assignment]

    def ask() -> None:
        try:
            link.head(MACHINE)
        except SecondsiteError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    _until(lambda: bool(link._busy))
    link.close()
    thread.join(20)
    assert not thread.is_alive()
    assert errors[0].code == "link.down"
    release.set()
    proxy.close()


# -- a killed gateway -----------------------------------------------------------------------------


class Process:
    """The receiving gateway as a real process; `crash_at` names the mark at which it dies by SIGKILL."""

    def __init__(self, directory: Path, *, port: int = 0, crash_at: str = "") -> None:
        environment = {
            **os.environ,
            "SECONDSITE_CRASH_AT": crash_at,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.target_gateway", str(directory), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


# (mark, which pass of it): every mark on the way of a segment, a key, a claim and a point into the store
RECEIVE_MARKS = [
    (intake.AFTER_BLOCK, 1),
    (intake.AFTER_BLOCK, 4),
    (intake.BEFORE_PUBLISH, 1),
    (intake.BEFORE_PUBLISH, 3),
    (intake.AFTER_PUBLISH, 1),
    (intake.AFTER_PUBLISH, 3),
    (store_local.AFTER_WRITE, 2),
    (store_local.AFTER_SYNC, 2),
    (store_local.AFTER_LINK, 2),
    (store_local.AFTER_LINK, 4),
    (receive.AFTER_KEY, 1),
    (chain.AFTER_CLAIM, 1),
    (chain.BEFORE_MANIFEST, 1),
    (chain.AFTER_MANIFEST, 1),
    (chain.AFTER_MANIFEST, 2),
    (receive.AFTER_COMMIT, 1),
    (receive.AFTER_COMMIT, 2),
]


def test_the_marks_of_the_receive_path_are_all_in_the_list() -> None:
    assert {mark for mark in MARKS if mark.startswith("receive.")} == {
        mark for mark, _ in RECEIVE_MARKS if mark.startswith("receive.")
    }


@pytest.mark.parametrize(("mark", "which"), RECEIVE_MARKS)
def test_a_receiver_killed_anywhere_loses_nothing_it_acknowledged(
    tmp_path: Path, mark: str, which: int
) -> None:
    certificates = Certificates(tmp_path / "tls")
    certificates.of(NAME)
    source = certificates.of(PEER)
    first = Process(tmp_path, crash_at=f"{mark}:{which}")
    running = [first]

    def supervise() -> None:
        first.process.wait()
        running.append(Process(tmp_path, port=first.port))

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    events, clock = Events(), SystemClock()
    link = HttpsLink(f"https://127.0.0.1:{first.port}", NAME, source, clock=clock)
    spool = Spool(tmp_path / "cache", limit_bytes=64 * MIB, identity=tmp_path / "known", events=events)
    shipper = LinkShipper(
        link,
        spool,
        clock=clock,
        chance=random.Random(1),
        events=events,
        policy=RetryPolicy(first_seconds=0.05, seconds_max=0.2),
    )
    points = _replicate(link, shipper)
    supervisor.join(30)
    assert first.process.returncode == -signal.SIGKILL, "the mark was never reached"
    shipper.close()
    link.close()
    running[-1].stop()
    _check_journal(LocalStore(tmp_path / "store"), points)
    assert not list((tmp_path / "store").rglob("*.part"))


def _replicate(link: HttpsLink, shipper: LinkShipper) -> list[tuple[str, list[Made]]]:
    """Three points of two segments each, whatever happens to the target; returns (nonce, segments)."""
    maker = Maker()
    _patiently(lambda: maker.claim(link) if link.head(MACHINE).epoch == 0 else 0)
    _patiently(lambda: link.put_key(MACHINE, KEY, b"wrapped"))
    points = []
    for _ in range(3):
        segments = [maker.segment(2_500_000), maker.segment(100_000)]
        shipment = shipper.begin(MACHINE, 1)
        for made in segments:
            shipment.add(made.ref, made.data, wait=True)
        proposal = maker.proposal(*segments)
        shipment.seal(proposal)
        shipment.commit()
        maker.parent = proposal.checkpoint
        points.append((proposal.nonce, segments))
    return points


def _patiently(call: Callable[[], object]) -> None:
    retry(
        call,
        policy=RetryPolicy(first_seconds=0.05, seconds_max=0.1),
        clock=SystemClock(),
        chance=random.Random(1),
        cancel=threading.Event(),
    )


def _check_journal(store: LocalStore, points: list[tuple[str, list[Made]]]) -> None:
    journal = Journal(store, MACHINE, None)
    found = journal.points()
    assert [point.nonce for point in found] == [nonce for nonce, _ in points]
    assert journal.head().epoch == 1
    assert store.get(wrapped_key_name(MACHINE, KEY), size_bytes_max=100) == b"wrapped"
    for point, (_, segments) in zip(found, points, strict=True):
        assert [ref.id for ref in point.segments] == [made.ref.id for made in segments]
        for made in segments:
            key = segment_name(MACHINE, 1, made.ref.disk, made.ref.id)
            assert store.get(key, size_bytes_max=10**9) == made.data


# -- a killed source ------------------------------------------------------------------------------

SPOOL_MARKS = [
    (spool_module.AFTER_SEGMENT, 1),
    (spool_module.AFTER_SEGMENT, 4),
    (spool_module.AFTER_PROPOSAL, 1),
    (spool_module.AFTER_PROPOSAL, 2),
    (spool_module.AFTER_GONE, 1),
    (spool_module.AFTER_GONE, 3),
    (chain.AFTER_MANIFEST, 2),
]


def test_the_marks_of_the_cache_are_all_in_the_list() -> None:
    assert {mark for mark in MARKS if mark.startswith("spool.")} <= {mark for mark, _ in SPOOL_MARKS}


def _run_source(directory: Path, crash_at: str) -> int:
    environment = {
        **os.environ,
        "SECONDSITE_CRASH_AT": crash_at,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    return subprocess.run(
        [sys.executable, "-m", "support.source_gateway", str(directory), "4"],
        env=environment,
        timeout=60,
        check=False,
    ).returncode


@pytest.mark.parametrize(("mark", "which"), SPOOL_MARKS)
def test_a_source_killed_anywhere_goes_on_from_its_cache(tmp_path: Path, mark: str, which: int) -> None:
    assert _run_source(tmp_path, f"{mark}:{which}") == -signal.SIGKILL, "the mark was never reached"
    assert _run_source(tmp_path, "") == 0
    store = LocalStore(tmp_path / "store")
    points = Journal(store, MACHINE, None).points()
    assert len(points) == 4
    for point in points:
        assert len(point.segments) == 6
        for ref in point.segments:
            key = segment_name(MACHINE, 1, ref.disk, ref.id)
            data = store.get(key, size_bytes_max=10**9)
            assert blake3.blake3(data).hexdigest() == ref.hash
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["cache.id"]
    assert not list((tmp_path / "cache").rglob(".gone-*"))


def test_a_full_cache_volume_is_a_full_cache(tmp_path: Path) -> None:
    """A real file system without room: writing fails with ENOSPC, nothing half stays, and it works again."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(volume)], check=True)
    try:
        spool = Spool(volume / "cache", limit_bytes=64 * MIB, identity=tmp_path / "known", events=Events())
        batch = spool.begin(MACHINE, 1)
        maker = Maker()
        kept = [maker.segment(MIB) for _ in range(2)]
        for order, made in enumerate(kept):
            batch.keep(order, made.ref, made.data)
        too_much = maker.segment(MIB)
        with pytest.raises(CacheFull):
            batch.keep(2, too_much.ref, too_much.data)
        assert spool.used_bytes == 2 * MIB
        assert len(list(volume.rglob("*.seg"))) == 2
        assert not list(volume.rglob(".tmp-*"))
        batch.acknowledge(0, kept[0].ref)
        assert batch.drop_sent()
        batch.keep(2, too_much.ref, too_much.data)
        batch.remove()
        assert spool.used_bytes == 0
    finally:
        subprocess.run(["umount", str(volume)], check=True)
