"""A source that is refused by its target says that it cannot know whether its machine was taken over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.gateway.failover.asking import NOT_ALLOWED_SECONDS, Asking
from secondsite.gateway.messages.gateway import Health, ProtectionStatus
from secondsite.model.failover import FailoverState
from secondsite.model.ids import machine_id
from secondsite.transfer import ingest
from secondsite.transfer.errors import CertificateRefused, LinkDown, PeerNotAllowed
from secondsite.transfer.pki import Authority
from secondsite.transfer.protocols import Peer
from support.control import Events
from support.gateway_pair import A
from support.two_sites import Two, two_sites
from support.until import until

MACHINE = machine_id("6f1d3c9a-2f6f-4d53-9d0e-0a4f6f6f8c11")


@pytest.fixture
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def shown(two: Two) -> ProtectionStatus:
    with two.at_a() as client:
        return client.status().protections[0]


def told(two: Two) -> list[str]:
    with two.at_a() as client:
        return [entry.event.code for entry in client.events() if entry.event.code.startswith("held.")]


def cannot_ask(two: Two, why: str) -> None:
    until(lambda: shown(two).code == "held.cannot-ask", "what cannot be asked is shown")
    status = shown(two)
    assert status.health is Health.CRITICAL
    assert "Whether shop was taken over elsewhere cannot be asked" in status.note
    assert why in status.note
    assert "Look at the other site first" in status.note
    assert told(two) == ["held.cannot-ask"]
    assert two.a_fabric.runs(two.machine), "nothing is isolated by that alone"


def give_a_certificate(two: Two, *, long_ago: bool) -> None:
    now = datetime.now(UTC)
    clock = FakeClock(now - timedelta(days=90)) if long_ago else SystemClock()
    authority = Authority.load(two.pair.root / "safe" / "authority", clock=clock)
    authority.issue(A).save(two.pair.root / A / "tls", A)


def test_one_whose_certificate_ran_out_while_it_was_away_says_so_until_it_has_another(two: Two) -> None:
    two.stop_a()
    two.start()
    two.ended(FailoverState.COMPLETED)
    give_a_certificate(two, long_ago=True)
    two.start_a()
    cannot_ask(two, "expired")
    two.stop_a()
    give_a_certificate(two, long_ago=False)
    two.start_a()
    two.wait_held()
    assert not two.a_fabric.runs(two.machine)
    assert shown(two).code == "replicate.held"


def test_one_that_was_revoked_says_so_and_that_it_can_ask_again(two: Two) -> None:
    def revoked(_list: object, peer: Peer) -> None:
        raise CertificateRefused(peer=peer.name, why="certificate 17 is revoked")

    two.stop_a()
    two.start()
    two.ended(FailoverState.COMPLETED)
    with mock.patch.object(ingest, "check_revoked", revoked):
        two.start_a()
        cannot_ask(two, "certificate 17 is revoked")
    two.wait_held()
    assert told(two)[:2] == ["held.cannot-ask", "held.asked-again"]


def test_only_a_refusal_is_told_once_and_one_that_may_pass_after_a_minute() -> None:
    clock, events = FakeClock(), Events()
    asking = Asking(clock, events)
    asking.refused(MACHINE, "shop", LinkDown(peer="gateway-b", why="cut"))
    clock.advance(2 * NOT_ALLOWED_SECONDS)
    unpaired = PeerNotAllowed(peer=A, machine=MACHINE, why="this gateway does not know the peer")
    asking.refused(MACHINE, "shop", unpaired)
    assert (asking.why_not(MACHINE), events.codes()) == ("", [])
    clock.advance(NOT_ALLOWED_SECONDS)
    for _ in range(2):
        asking.refused(MACHINE, "shop", unpaired)
    assert "does not know the peer" in asking.why_not(MACHINE)
    asking.refused(MACHINE, "shop", LinkDown(peer="gateway-b", why="cut"))
    assert asking.why_not(MACHINE), "that the line is cut as well answers nothing"
    asking.answered(MACHINE, "shop")
    asking.answered(MACHINE, "shop")
    assert (asking.why_not(MACHINE), events.codes()) == ("", ["held.cannot-ask", "held.asked-again"])
