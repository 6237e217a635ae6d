"""Gateways once they are there: heard of, renamed, refreshed, revoked, unregistered, removed."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.errors import DatabaseUnavailable
from secondsite.server.identity import errors
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.identity.heartbeats import SILENT_AFTER, Contact, Heartbeats
from secondsite.server.identity.service import Identity
from secondsite.server.identity.states import TABLE, GatewayEvent, GatewayState, after
from secondsite.transfer.registration import RegistrationKey
from support.identity import URL, NewGateway, der, heartbeat, open_identity, serials

WAIT_SECONDS_MAX = 20.0


def enrolled(identity: Identity, key: RegistrationKey, clock: FakeClock, name: str = "gateway-a") -> bytes:
    return der(NewGateway(identity, name).enrol(key, clock).certificate)


def known(identity: Identity, certificate: bytes) -> GatewayIdentity:
    found = identity.identify(certificate)
    assert found is not None
    return found


def test_what_is_possible_in_each_state() -> None:
    for state, event in itertools.product(GatewayState, GatewayEvent):
        if event in TABLE[state]:
            assert after("gateway-a", state, event) is TABLE[state][event]
            continue
        with pytest.raises(errors.GatewayTransition) as refused:
            after("gateway-a", state, event)
        said = " ".join(refused.value.sentences())
        assert f"cannot be {event.value} while it is {state.value}" in said
        for possible in TABLE[state]:
            assert possible.value in said


def test_a_heartbeat_is_seen_at_once_and_written_within_a_second(
    identity: Identity, key: RegistrationKey, clock: FakeClock, database: Database, tmp_path: Path
) -> None:
    who = known(identity, enrolled(identity, key, clock))
    clock.advance(90)
    said = heartbeat(clock, protected=3, points=700, health="Warning", url="https://a.example:9443")
    answer = identity.heartbeat(who, said, address="192.0.2.7")
    assert (answer.refresh, answer.revocation_number) == (0, 1)
    contact = identity.gateways.get("gateway-a").contact
    assert contact is not None
    assert (contact.at, contact.address, contact.points) == (clock.utc(), "192.0.2.7", 700)
    assert contact.url == "https://a.example:9443"
    assert contact.connected(clock.utc() + SILENT_AFTER)
    assert not contact.connected(clock.utc() + SILENT_AFTER + timedelta(seconds=1))
    other = open_identity(database, tmp_path, clock)
    assert other.gateways.get("gateway-a").contact is None
    assert identity.heartbeats.flush() == 1
    assert other.gateways.get("gateway-a").contact == contact
    assert identity.heartbeats.flush() == 0


def test_the_newest_word_wins_whichever_server_writes_last(
    identity: Identity, key: RegistrationKey, clock: FakeClock, database: Database, tmp_path: Path
) -> None:
    who = known(identity, enrolled(identity, key, clock))
    other = open_identity(database, tmp_path, clock)
    identity.heartbeat(who, heartbeat(clock, points=1), address="192.0.2.1")
    clock.advance(1)
    other.heartbeat(who, heartbeat(clock, points=2), address="192.0.2.2")
    other.heartbeats.flush()
    identity.heartbeats.flush()
    contact = identity.gateways.get("gateway-a").contact
    assert contact is not None
    assert contact.points == 2


def test_heartbeats_of_removed_gateways_hold_nobody_up(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    gone = known(identity, enrolled(identity, key, clock))
    stays = known(identity, enrolled(identity, key, clock, "gateway-b"))
    identity.gateways.revoke("gateway-a", why="test")
    identity.gateways.remove("gateway-a")
    for who in (gone, stays):
        identity.heartbeat(who, heartbeat(clock), address="192.0.2.1")
    assert identity.heartbeats.flush() == 2
    assert identity.gateways.get("gateway-b").contact is not None


def test_the_writer_writes_by_itself_and_waits_for_a_lost_database(
    identity: Identity, key: RegistrationKey, clock: FakeClock, database: Database
) -> None:
    who = known(identity, enrolled(identity, key, clock))
    refusals = [DatabaseUnavailable(where="there", why="stopped")] * 2
    written = threading.Event()

    class Flaky(Heartbeats):
        def flush(self) -> int:
            if refusals:
                raise refusals.pop()
            count = super().flush()
            if count:
                written.set()
            return count

    beats = Flaky(database, SystemClock())
    beats.start()
    try:
        beats.heard(who.id, Contact(clock.utc(), "192.0.2.1", "0.1.0", 0.0, 0, 1, 2, "Normal"))
        assert written.wait(WAIT_SECONDS_MAX)
    finally:
        beats.close()
    assert not refusals
    contact = identity.gateways.get("gateway-a").contact
    assert contact is not None
    assert contact.points == 2


def test_what_is_left_is_written_at_the_end(
    identity: Identity, key: RegistrationKey, clock: FakeClock, database: Database
) -> None:
    who = known(identity, enrolled(identity, key, clock))
    beats = Heartbeats(database, SystemClock())
    beats.start()
    beats.heard(who.id, Contact(clock.utc(), "192.0.2.1", "0.1.0", 0.0, 0, 1, 2, "Normal"))
    beats.close()
    assert identity.gateways.get("gateway-a").contact is not None


def test_a_refresh_reaches_the_gateway_with_its_next_heartbeat(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    certificate = enrolled(identity, key, clock)
    assert identity.gateways.refresh("gateway-a").refresh_number == 1
    answer = identity.heartbeat(known(identity, certificate), heartbeat(clock), address="192.0.2.1")
    assert answer.refresh == 1
    with pytest.raises(errors.GatewayUnknown):
        identity.gateways.refresh("gateway-b")


def test_a_friendly_name_changes_and_the_name_does_not(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    certificate = enrolled(identity, key, clock)
    assert identity.gateways.rename("gateway-a", "Gateway Süd").friendly_name == "Gateway Süd"
    answer = identity.heartbeat(known(identity, certificate), heartbeat(clock), address="192.0.2.1")
    assert answer.friendly_name == "Gateway Süd"
    assert known(identity, certificate).name == "gateway-a"
    with pytest.raises(InvalidInput):
        identity.gateways.rename("gateway-a", "\n")
    with pytest.raises(errors.GatewayUnknown):
        identity.gateways.rename("gateway-b", "b")


def test_a_revoked_certificate_is_refused_at_the_next_request_and_listed(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    certificate = enrolled(identity, key, clock)
    other = enrolled(identity, key, clock, "gateway-b")
    before = identity.revocations()
    assert serials(before.pem) == set()
    who = known(identity, certificate)
    identity.gateways.revoke("gateway-a", why="its disk was stolen")
    with pytest.raises(errors.GatewayRevoked, match="its disk was stolen"):
        identity.identify(certificate)
    after_it = identity.revocations()
    assert after_it.number == before.number + 1
    assert serials(after_it.pem) == {int(who.serial, 16)}
    # others learn that there is a newer list with their next heartbeat
    answer = identity.heartbeat(known(identity, other), heartbeat(clock), address="192.0.2.1")
    assert answer.revocation_number == after_it.number
    # again is fine, and lists nothing twice
    assert identity.gateways.revoke("gateway-a", why="again").state_reason == "its disk was stolen"
    assert identity.revocations().number == after_it.number


def test_an_unregistered_gateway_is_told_so_and_may_come_back(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    certificate = enrolled(identity, key, clock)
    identity.gateways.unregister("gateway-a", why="moved to another server")
    with pytest.raises(errors.GatewayUnregistered, match="moved to another server"):
        identity.identify(certificate)
    assert identity.gateways.get("gateway-a").state is GatewayState.UNREGISTERED
    with pytest.raises(errors.GatewayTransition):
        identity.gateways.revoke("gateway-a", why="x")
    with pytest.raises(errors.GatewayNameTaken):
        NewGateway(identity).enrol(key, clock)
    again, _ = identity.keys.create("North", url=URL, by="maria", for_gateway="gateway-a")
    fresh = der(NewGateway(identity).enrol(again, clock).certificate)
    assert known(identity, fresh).name == "gateway-a"
    with pytest.raises(errors.GatewayRevoked):
        identity.identify(certificate)


def test_a_gateway_that_is_needed_leaves_only_when_told(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    certificate = enrolled(identity, key, clock)
    identity.gateways.watch(lambda _connection, name: f"{name} protects 2 machines")
    with pytest.raises(errors.GatewayInUse, match="gateway-a protects 2 machines"):
        identity.gateways.unregister("gateway-a", why="x")
    assert known(identity, certificate).name == "gateway-a"
    identity.gateways.unregister("gateway-a", why="x", in_use=True)
    with pytest.raises(errors.GatewayUnregistered):
        identity.identify(certificate)


def test_a_removed_gateway_leaves_nothing_but_its_revocation(
    identity: Identity, key: RegistrationKey, clock: FakeClock, database: Database
) -> None:
    certificate = enrolled(identity, key, clock)
    who = known(identity, certificate)
    identity.heartbeat(who, heartbeat(clock), address="192.0.2.99")
    identity.heartbeats.flush()
    with pytest.raises(errors.GatewayStillRegistered):
        identity.gateways.remove("gateway-a")
    identity.gateways.unregister("gateway-a", why="gone")
    identity.gateways.remove("gateway-a")
    with pytest.raises(errors.GatewayUnknown):
        identity.gateways.get("gateway-a")
    with pytest.raises(errors.GatewayRemoved):
        identity.identify(certificate)
    assert serials(identity.revocations().pem) == {int(who.serial, 16)}
    # the name is free for another machine, whose certificate is not the old one
    fresh = enrolled(identity, key, clock)
    assert known(identity, fresh).id != who.id
    with pytest.raises(errors.GatewayRevoked):
        identity.identify(certificate)


def test_the_list_forgets_what_ended_by_itself(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    enrolled(identity, key, clock)
    identity.gateways.revoke("gateway-a", why="x")
    assert len(serials(identity.revocations().pem)) == 1
    clock.advance(31 * 86400 + 1)
    key, _ = identity.keys.create("North", url=URL, by="maria")
    enrolled(identity, key, clock, "gateway-b")
    identity.gateways.revoke("gateway-b", why="x")
    assert len(serials(identity.revocations().pem)) == 1


def test_a_certificate_the_server_never_issued_is_refused(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    """Of our own authority, as after a restore of the server from an old backup: not trusted for its name."""
    enrolled(identity, key, clock)
    gateway = NewGateway(identity)
    made = identity.authority.certificate_for_gateway("gateway-a", gateway.key.public_key())
    from cryptography.hazmat.primitives import serialization

    with pytest.raises(errors.GatewayRevoked, match="no record"):
        identity.identify(made.public_bytes(serialization.Encoding.DER))


def test_a_servers_own_certificate_is_no_gateways(identity: Identity) -> None:
    leaf = identity.authority.server_leaf("server", ["server.example", "192.0.2.1", "gateway-a"])
    assert identity.identify(der(leaf.certificate_pem.decode())) is None


def test_pages_follow_each_other(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    names = [f"gateway-{number:02d}" for number in range(7)]
    for name in names:
        enrolled(identity, key, clock, name)
    seen: list[str] = []
    while page := identity.gateways.page(after=seen[-1] if seen else "", limit=3):
        seen += [found.name for found in page]
    assert seen == names
    north, south = identity.vaults.get("North").id, identity.vaults.create("South").id
    assert identity.gateways.page(vault_ids={north, south}, limit=2)[0].name == names[0]
    assert identity.gateways.page(vault_ids={south}) == []
    assert identity.gateways.page(vault_ids=()) == []


def test_every_refusal_is_a_whole_sentence() -> None:
    """Errors of this area name what to type next, where there is something to type."""
    codes = [code for code, cls in SecondsiteError.registry.items() if cls.__module__ == errors.__name__]
    assert len(codes) > 15
