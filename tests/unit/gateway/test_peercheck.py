"""Whether another gateway is reached: real handshakes on loopback, and each thing that can be in the way."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from secondsite import __version__
from secondsite.base.clock import Clock, FakeClock, SystemClock
from secondsite.gateway.common.room import free_bytes
from secondsite.gateway.control.checkroutes import Checks
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.messages.unixconnection import UnixConnection
from secondsite.gateway.source.peercheck import PeerCheck, PeerChecks
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.protocols import Receiver
from secondsite.transfer.tls import TlsFiles
from support.control import Events as ReadableEvents
from support.transfer import Certificates, Events

CLOCK = SystemClock()
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@contextlib.contextmanager
def listening(files: TlsFiles, *, room: int | None = PLENTY, clock: Clock = CLOCK) -> Iterator[str]:
    """A target's listener; what a check asks for never reaches its receiver."""
    server = IngestServer(
        cast("Receiver", None),
        files,
        ("127.0.0.1", 0),
        name="gateway-b",
        clock=clock,
        events=Events(),
        room=lambda: room,
    )
    host, port = server.start()
    try:
        yield f"https://{host}:{port}"
    finally:
        server.close()


def check(files: TlsFiles, url: str | None, *, version: str = __version__) -> PeerCheck:
    return PeerChecks(files, {}, version=version, clock=CLOCK).check("gateway-b", url)


def codes(found: PeerCheck) -> list[object]:
    assert all(problem["action"] and problem["cause"] for problem in found.problems)
    return [problem["code"] for problem in found.problems]


def test_a_peer_in_order(certificates: Certificates) -> None:
    with listening(certificates.of("gateway-b")) as url:
        found = check(certificates.of("gateway-a"), url)
    assert (found.ok, found.reachable, found.version, found.free_bytes) == (True, True, __version__, PLENTY)
    assert found.round_trip_seconds is not None
    assert 0 < found.round_trip_seconds < 5
    assert found.clock_seconds is not None
    assert abs(found.clock_seconds) < 5
    assert codes(found) == []


def test_what_answers_is_another_gateway_or_of_another_authority(
    certificates: Certificates, tmp_path: Path
) -> None:
    ours = certificates.of("gateway-a")
    with listening(certificates.of("gateway-c")) as url:
        assert codes(check(ours, url)) == ["link.certificate-refused"]
    with listening(Certificates(tmp_path).of("gateway-b")) as url:
        assert codes(check(ours, url)) == ["link.certificate-refused"]
        assert not check(ours, url).reachable


def test_our_certificate_is_not_taken(certificates: Certificates) -> None:
    with listening(certificates.of("gateway-b")) as url:
        assert codes(check(certificates.expired("gateway-a"), url)) == ["link.certificate-refused"]


def test_nobody_listens_and_nobody_said_where(certificates: Certificates) -> None:
    ours = certificates.of("gateway-a")
    assert codes(check(ours, "https://127.0.0.1:1")) == ["link.down"]
    assert codes(check(ours, None)) == ["peer.address-missing"]


def test_clock_version_and_room_are_told_together(certificates: Certificates) -> None:
    late = FakeClock(CLOCK.utc() - dt.timedelta(seconds=200))
    with listening(certificates.of("gateway-b"), room=1000, clock=late) as url:
        found = check(certificates.of("gateway-a"), url, version="7.0.0")
    assert codes(found) == ["peer.version-differs", "peer.clock-off", "peer.store-full"]
    assert found.reachable
    assert not found.ok
    assert found.clock_seconds is not None
    assert -205 < found.clock_seconds < -195


def test_over_the_control_api(certificates: Certificates, tmp_path: Path) -> None:
    files = certificates.of("gateway-a")
    with listening(certificates.of("gateway-b"), room=None) as url:
        checks = PeerChecks(files, {"gateway-b": url}, version=__version__, clock=CLOCK)
        services = ControlServices(
            name="gateway-a", site="a", clock=CLOCK, events=ReadableEvents(), checks=Checks(checks)
        )
        server = serve_control(services, tmp_path / "control.sock")
        try:
            answers = []
            for query in ("", "?url=http://x", "?guess=https%3A%2F%2F127.0.0.1%3A1"):
                connection = UnixConnection(tmp_path / "control.sock", seconds_max=30)
                connection.request("GET", f"/v1/peers/gateway-b/check{query}")
                answer = connection.getresponse()
                answers.append((answer.status, json.loads(answer.read())))
                connection.close()
        finally:
            server.stop()
    assert answers[0][0] == 200
    assert (answers[0][1]["ok"], answers[0][1]["freeBytes"]) == (True, None)
    assert answers[1][0] == 400
    assert answers[2][1]["url"] == url  # a guess counts less than the configuration


def test_the_fullest_volume_counts(tmp_path: Path) -> None:
    assert free_bytes([]) is None
    assert free_bytes([tmp_path / "away"]) is None
    found = free_bytes([tmp_path, tmp_path / "away"])
    assert found is not None
    assert found > 0
