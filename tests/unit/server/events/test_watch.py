"""Silent gateways and servers that were down: said once, by whichever server notices, and so is the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.events.service import Events, Search
from secondsite.server.events.watch import DOWN_AFTER, Watch
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.identity.heartbeats import SILENT_AFTER
from support.identity import URL, NewGateway, der, heartbeat, open_identity

SECONDS = SILENT_AFTER.total_seconds() + 1


class Rig:
    def __init__(self, url: str, root: Path) -> None:
        self.clock = FakeClock()
        self.database: Database = open_database(url, self.clock)
        self.identity = open_identity(self.database, root, self.clock)
        self.identity.vaults.create("North")
        self.key, _ = self.identity.keys.create("North", url=URL, by="maria")
        self.events = Events(self.database)

    def enrol(self, name: str) -> GatewayIdentity:
        found = self.identity.identify(
            der(NewGateway(self.identity, name).enrol(self.key, self.clock).certificate)
        )
        assert found is not None
        return found

    def watch(self) -> Watch:
        return Watch(self.database, self.events, self.identity.gateways)

    def heard(self, gateway: GatewayIdentity) -> None:
        self.identity.heartbeat(gateway, heartbeat(self.clock), address="::1")
        self.identity.heartbeats.flush()

    def codes(self) -> list[tuple[str, str]]:
        return [(event.code, event.gateway) for event in self.events.after(Search(), 0, limit=100)]


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(database_url, tmp_path)
    yield made
    made.database.close()


def test_a_silent_gateway(rig: Rig) -> None:
    a, b = (rig.enrol(name) for name in ("gateway-a", "gateway-b"))
    watches = [rig.watch(), rig.watch()]
    for watch in watches:
        watch.look()
    rig.heard(a)
    rig.clock.advance(SECONDS - 20)
    rig.heard(b)
    for watch in watches:
        watch.look()
    assert rig.codes() == []  # a is not silent for long enough, b is heard
    rig.clock.advance(21)
    for watch in watches:
        watch.look()
    assert rig.codes() == [("gateway.silent", "gateway-a")]
    rig.heard(a)
    for watch in watches:
        watch.look()
    assert rig.codes()[1:] == [("gateway.heard", "gateway-a")]
    rig.clock.advance(SECONDS)
    rig.identity.gateways.revoke("gateway-b", why="stolen")  # need not be heard
    watches[0].look()
    assert rig.codes()[2:] == [("gateway.silent", "gateway-a")]
    rig.identity.gateways.revoke("gateway-a", why="stolen")
    watches[0].look()
    assert len(rig.codes()) == 3  # it is not heard again: nothing is said


def test_a_server_that_was_down_is_told_and_gateways_get_their_time(rig: Rig) -> None:
    gateway = rig.enrol("gateway-a")
    first = rig.watch()
    first.look()
    rig.heard(gateway)
    rig.clock.advance(DOWN_AFTER.total_seconds() - 1)
    rig.watch().look()
    assert rig.codes() == []  # a restart
    rig.clock.advance(3600)
    again = rig.watch()
    again.look()
    again.look()
    assert rig.codes() == [("server.was-down", "")]
    [event] = rig.events.after(Search(), 0, limit=1)
    assert "1:00:00" in event.text
    rig.heard(gateway)  # its first heartbeat after the server is back
    rig.clock.advance(SECONDS - 2)
    rig.heard(gateway)
    again.look()
    assert len(rig.codes()) == 1


def test_two_servers_that_notice_at_the_same_moment(rig: Rig) -> None:
    who = rig.enrol("gateway-a")
    watches = [rig.watch(), rig.watch()]
    since = rig.clock.utc()
    for watch in watches:  # each has read that nobody told of it yet
        watch._say(rig.identity.gateways.get("gateway-a"), since)
    assert rig.codes() == [("gateway.silent", "gateway-a")]
    rig.heard(who)
    for watch in watches:
        watch._say(rig.identity.gateways.get("gateway-a"), None)
    assert rig.codes()[1:] == [("gateway.heard", "gateway-a")]
