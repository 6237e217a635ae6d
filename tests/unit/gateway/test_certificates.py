"""A gateway takes renewed certificates up while it runs, and warns before one ends."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.gateway.common.certificates import CertificateWatch
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.store_memory import MemoryStore
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.pki import Authority
from secondsite.transfer.tls import TlsFiles


class Site:
    """One gateway's files, with a clock to move."""

    def __init__(self, directory: Path, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock(SystemClock().utc())
        self.authority = Authority.create(directory / "ca", clock=self.clock)
        self.directory = directory / "tls"
        self.renew()
        self.files = TlsFiles(
            self.directory / "gateway-b.crt",
            self.directory / "gateway-b.key",
            self.authority.certificate_path,
            self.authority.revoked_path,
        )
        self.events = EventLog(self.clock)
        self.reloaded = 0
        self.watch = CertificateWatch(self.files, [self.reload], clock=self.clock, events=self.events)

    def renew(self) -> None:
        self.authority.issue("gateway-b").save(self.directory, "gateway-b")

    def reload(self) -> None:
        from secondsite.transfer.tls import server_context

        server_context(self.files)
        self.reloaded += 1

    def codes(self) -> list[str]:
        return [event.code for _, event in self.events.since(0, 100)]


def test_nothing_changed_nothing_happens(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.watch.look()
    assert (site.reloaded, site.codes()) == (0, [])


def test_a_renewed_certificate_is_taken_up_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.renew()
    site.watch.look()
    site.watch.look()
    assert (site.reloaded, site.codes()) == (1, ["certificate.renewed"])


def test_half_a_renewal_is_no_trouble_and_a_bad_file_is_told_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    good = site.files.certificate.read_bytes()
    site.files.certificate.write_bytes(b"not a certificate")
    site.watch.look()
    assert site.codes() == [], "perhaps it is being written"
    site.watch.look()
    site.watch.look()
    assert site.codes() == ["certificate.unusable"]
    site.files.certificate.write_bytes(good)
    site.watch.look()
    assert site.codes() == ["certificate.unusable", "certificate.renewed"]


def test_the_end_is_told_in_time_and_not_every_minute(tmp_path: Path) -> None:
    site = Site(tmp_path)
    day = timedelta(days=1).total_seconds()
    for _ in range(19 * 4):
        site.clock.advance(day / 4)
        site.watch.look()
    assert site.codes() == []
    site.clock.advance(2 * day)
    for _ in range(5):
        site.clock.advance(60)
        site.watch.look()
    assert site.codes() == ["certificate.expires-soon"]
    site.clock.advance(10 * day)
    site.watch.look()
    assert site.codes()[-1] == "certificate.expired"


@pytest.mark.timeout(60)
def test_real_connections_use_the_renewed_certificate(tmp_path: Path) -> None:
    clock = SystemClock()
    site = Site(tmp_path, FakeClock(clock.utc()))
    certificate, key = site.authority.issue("gateway-a").save(tmp_path / "a", "gateway-a")
    theirs = TlsFiles(certificate, key, site.authority.certificate_path, site.authority.revoked_path)
    receiver = GatewayReceiver(
        MemoryStore(), vault=None, peers={"gateway-a": PeerRule()}, clock=clock, events=site.events
    )
    server = IngestServer(
        receiver, site.files, ("127.0.0.1", 0), name="gateway-b", clock=clock, events=site.events
    )
    host, port = server.start()
    link = HttpsLink(f"https://{host}:{port}", "gateway-b", theirs, clock=clock)
    watch = CertificateWatch(site.files, [server.reload], clock=clock, events=site.events)
    try:
        assert link.health()["name"] == "gateway-b"
        site.renew()
        watch.look()
        link.reload()  # drops the idle connection: the next one meets the new certificate
        assert link.health()["name"] == "gateway-b"
        assert site.codes() == ["certificate.renewed"]
    finally:
        link.close()
        server.close()
