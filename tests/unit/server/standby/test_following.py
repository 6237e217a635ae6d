"""What makes a copy, what a standby answers, who may say hello, and when it is told to be late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import RemoteError
from secondsite.journal.store_local import LocalStore
from secondsite.server.database.changes import OF_THE_MOMENT, counts
from secondsite.server.database.tables import METADATA
from secondsite.server.database.values import moment
from secondsite.server.events.service import Events, Search
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.identity.vaults import Vaults
from secondsite.server.standby.becoming import NotNew, begin_standby
from secondsite.server.standby.errors import HelloRefused
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.greeting import greet
from secondsite.server.standby.process import Standby
from secondsite.server.survival.life import Life
from secondsite.server.survival.standbys import CAUGHT_UP, LATE, Standbys
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.standby import PURPOSE, Hello, ServerRole
from support.lonely import CLOCK, config_of, new_standby, new_state, put_copy
from support.server import owner, tls_caller, trusting
from support.standbys import two_sites
from support.until import until


def test_what_is_of_the_moment_makes_no_copy(tmp_path: Path) -> None:
    assert {table.name for table in METADATA.sorted_tables} >= OF_THE_MOMENT
    assert not counts("UPDATE tokens SET used_at=? WHERE tokens.id = ?")
    assert counts("UPDATE tokens SET revoked_at=? WHERE tokens.id = ?")
    assert not counts("SELECT vaults.id FROM vaults")
    assert counts('\n INSERT INTO "vaults" (id) VALUES (?)')
    database = new_state(tmp_path)
    before = database.changes.count
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    now = moment(CLOCK.utc())
    database.run(
        lambda connection: connection.exec_driver_sql(
            "INSERT INTO gateway_silences (gateway, since) VALUES (?, ?)", ("x", now)
        )
    )
    assert database.changes.count == before
    Vaults(database, CLOCK).create("North")
    assert database.changes.count == before + 1
    database.close()


def test_a_server_at_rest_makes_no_copy(tmp_path: Path) -> None:
    with two_sites(tmp_path) as (a, _):
        server, identity = a.server, a.services.identity
        assert server is not None
        assert server.certificate is not None
        assert identity is not None
        chores: dict[str, Callable[[], object]] = {
            "housekeeping": partial(server.tidy, a.services, server.certificate),
            "jobs": server._worker._tend,
            "a gateway's heartbeat": a.keeper().beat,
            "heartbeats": identity.heartbeats.flush,
            "standbys": a.survival._look,
        }
        for chore in chores.values():  # what was due at the start
            chore()
        server._worker._looked = server._worker._tended = float("-inf")
        changes = a.services.database.changes
        for name, chore in chores.items():
            before = changes.count
            chore()
            assert changes.count == before, name
        owner(a.services)
        assert changes.count > before


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    state = new_state(tmp_path)
    put_copy(tmp_path, state)
    state.close()
    made = Standby(new_standby(tmp_path, "b"))
    made.start()
    try:
        until(lambda: made.address is not None, "it answers")
        yield made
    finally:
        made.stop()


def test_a_standby_says_what_it_is_and_nothing_else(standby: Standby, tmp_path: Path) -> None:
    assert standby.address is not None
    call = tls_caller("127.0.0.1", standby.address[1], trusting(tmp_path / "b" / "authority.crt"))
    health = call("GET", "/api/v1/health")
    assert (health.status, health.json()["status"]) == (200, "standby")
    for method, path in (("GET", "/api/v1/ready"), ("GET", "/api/v1/vaults"), ("POST", "/api/v1/sessions")):
        refused = call(method, path)
        assert (refused.status, refused.code) == (503, "server.standby"), path
        assert "x-secondsite-incarnation" not in refused.headers  # no gateway may take it for a life
    held = standby.follower.held()
    assert held is not None
    url = f"https://127.0.0.1:{standby.address[1]}"
    authority = (tmp_path / "b" / "authority.crt").read_text()
    hello = standby.follower.hello(held)
    assert greet(url, hello, standby.follower.master, authority).role is ServerRole.STANDBY
    with pytest.raises(RemoteError) as wrong:
        greet(url, hello, MasterKey(bytes(32)), authority)
    assert wrong.value.body["code"] == HelloRefused.code


def test_a_copy_that_was_changed_is_told_and_the_one_before_stays(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    first = put_copy(tmp_path, state)
    follower = Follower(new_standby(tmp_path, "b"), CLOCK)
    assert not follower.look().problem
    second = put_copy(tmp_path, state)
    state.close()
    store = LocalStore(tmp_path / "store")
    [key] = [one for one in store.list("server/") if one.endswith(second)]
    data = bytearray(store.get(key, size_bytes_max=1 << 30))
    data[len(data) // 2] ^= 1
    store.delete(key)
    store.put(key, data)
    assert "not whole" in follower.look().problem
    held = follower.held()
    assert held is not None
    assert held.name == first


def test_who_says_hello_proves_it_and_who_falls_behind_is_told_once(tmp_path: Path) -> None:
    clock = FakeClock(CLOCK.utc())
    database = new_state(tmp_path)
    database.clock = clock
    authority = ServerAuthority.open(database, tmp_path / "active" / "master.key", name="a", clock=clock)
    life, events = Life(database, authority, clock), Events(database)
    standbys = Standbys(
        database, life, authority.master, clock, name="a", url="https://a.example", id_="a" * 32
    )
    standbys.events, standbys.current = events, lambda name: name == "newest"
    key = authority.master.derive(PURPOSE)

    def hello(**changed: object) -> Hello:
        said = {
            "id": "b" * 32,
            "server": life.state.server,
            "name": "b",
            "url": "https://b.example",
            "role": ServerRole.STANDBY,
            "sent_at": time_text(clock.utc()),
            "copy_name": "newest",
            "late_seconds": 300,
        }
        return Hello.model_validate(said | changed).proved(key)

    refused = (
        hello().model_copy(update={"url": "https://elsewhere.example"}),
        hello(server="c" * 32),
        hello(sent_at=time_text(clock.utc() - timedelta(hours=1))),
    )
    for said in refused:
        with pytest.raises(HelloRefused):
            standbys.hello(said)
    assert not standbys.any_follows()
    assert standbys.hello(hello()).current
    assert standbys.any_follows()
    standbys.look()
    assert standbys.addresses() == ["https://a.example", "https://b.example"]
    clock.advance(301)
    for _ in range(3):
        standbys.look()
    assert _codes(events) == [LATE]
    standbys.hello(hello())
    for _ in range(3):
        standbys.look()
    assert _codes(events) == [CAUGHT_UP, LATE]
    clock.advance(4 * 24 * 3600)
    assert not standbys.any_follows()
    database.close()


def _codes(events: Events) -> list[str]:
    return [event.code for event in events.newest(Search(), before=None, limit=10)]


def test_a_standby_is_not_begun_on_a_servers_database(tmp_path: Path) -> None:
    new_state(tmp_path).close()
    with pytest.raises(NotNew):
        begin_standby(config_of(tmp_path, "active"))
