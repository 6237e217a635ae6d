"""People over the real API: how they come in, what their tokens allow, and that each change is in the log."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from secondsite.base.clock import FakeClock
from secondsite.server.api.errors import Unauthenticated
from secondsite.server.database.engine import Database, open_database
from secondsite.server.people.login import Logins
from secondsite.server.people.passwords import Passwords
from secondsite.server.people.roles import Grant, Role
from support.server import RunningApi, make_services, owner, running_api, user_with

PASSWORD = "correct horse battery"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def api(database_url: str, tmp_path: Path, clock: FakeClock) -> Iterator[RunningApi]:
    database = open_database(database_url, clock)
    with running_api(make_services(database, tmp_path)) as running:
        yield running
    database.close()


def test_the_first_start_makes_an_owner_who_comes_in_once(api: RunningApi) -> None:
    file = api.services.logins.prepare()
    assert file is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text().strip()
    assert api.call.as_(text)("GET", "/api/v1/me").status == 401  # good for nothing else
    made = api.call("POST", "/api/v1/setup", {"setupToken": text, "password": PASSWORD})
    assert made.status == 201
    me = api.call.as_(made.json()["text"])("GET", "/api/v1/me").json()
    assert me["name"] == "owner"
    assert me["roles"] == [{"vault": "*", "role": "owner"}]
    assert not file.exists()
    again = api.call("POST", "/api/v1/setup", {"setupToken": text})
    assert again.status == 401
    assert api.call("POST", "/api/v1/sessions", {"userName": "owner", "password": PASSWORD}).status == 201
    assert api.services.logins.prepare() is None
    assert not file.exists()


def test_who_owns_the_files_gets_in_again(api: RunningApi) -> None:
    first = api.services.logins.prepare()
    assert first is not None
    lost = first.read_text().strip()
    second = api.services.logins.prepare(again=True)
    assert second is not None
    assert api.call("POST", "/api/v1/setup", {"setupToken": lost}).status == 401
    assert api.call("POST", "/api/v1/setup", {"setupToken": second.read_text().strip()}).status == 201


def test_sessions_end_by_themselves_and_by_logging_out(api: RunningApi, clock: FakeClock) -> None:
    user_with(api.services, "maria", password=PASSWORD)

    def session() -> str:
        made = api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD})
        assert made.status == 201, made.data
        return str(made.json()["text"])

    token = session()
    for _ in range(4):  # used now and then: stays
        clock.advance(50 * 60)
        assert api.call.as_(token)("GET", "/api/v1/me").status == 200
    clock.advance(66 * 60)
    assert "idle" in api.call.as_(token)("GET", "/api/v1/me").json()["happened"]
    token = session()
    for _ in range(14):
        clock.advance(55 * 60)
        api.call.as_(token)("GET", "/api/v1/me")
    assert "expired" in api.call.as_(token)("GET", "/api/v1/me").json()["happened"]
    token = session()
    assert api.call.as_(token)("DELETE", "/api/v1/sessions/current").status == 204
    assert api.call.as_(token)("GET", "/api/v1/me").status == 401
    assert api.services.tokens.sweep() > 0


def test_guessing_is_slowed_down_and_tells_nothing(api: RunningApi, clock: FakeClock) -> None:
    user_with(api.services, "maria", password=PASSWORD)
    user_with(api.services, "robot")

    def try_(name: str, password: str) -> tuple[int, str]:
        answer = api.call("POST", "/api/v1/sessions", {"userName": name, "password": password})
        return answer.status, answer.json()["happened"] if answer.status == 401 else answer.json()["code"]

    wrong = try_("maria", "not the password")
    assert wrong[0] == 401
    assert wrong == try_("nobody", "not the password") == try_("robot", "not the password")
    for _ in range(4):
        assert try_("maria", "still wrong")[0] == 401
    limited = api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD})
    assert limited.status == 429
    assert 0 < int(limited.headers["retry-after"]) <= 301
    clock.advance(301)
    assert api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD}).status == 201
    for number in range(40):
        status, _ = try_(f"user{number}", "guess")
    assert status == 429  # many names from one address


def test_tokens_are_shown_once_expire_and_end_at_once(
    api: RunningApi, clock: FakeClock, database_url: str
) -> None:
    call = api.call.as_(owner(api.services))
    made = call("POST", "/api/v1/me/tokens", {"name": "deploy", "days": 2}).json()
    assert made["text"].startswith(f"ssa_{made['id']}_")
    listed = call("GET", "/api/v1/me/tokens").json()["value"]
    assert made["id"] in {token["id"] for token in listed}
    assert all("text" not in token and "digest" not in token for token in listed)
    assert api.call.as_(made["text"])("GET", "/api/v1/me").status == 200
    # one character of the secret, and the prefix of another kind
    assert api.call.as_(made["text"][:-1] + "x")("GET", "/api/v1/me").status == 401
    assert api.call.as_("sss" + made["text"][3:])("GET", "/api/v1/me").status == 401
    clock.advance(2 * 86400 + 1)
    assert "expired" in api.call.as_(made["text"])("GET", "/api/v1/me").json()["happened"]
    call = api.call.as_(owner(api.services, "otto"))
    short = call("POST", "/api/v1/me/tokens", {"name": "x"}).json()
    assert call("DELETE", f"/api/v1/me/tokens/{short['id']}").status == 204
    assert api.call.as_(short["text"])("GET", "/api/v1/me").status == 401
    assert call("DELETE", f"/api/v1/me/tokens/{short['id']}").code == "token.unknown"
    with open_database(database_url, clock).read() as connection:
        kept = str(connection.exec_driver_sql("SELECT * FROM tokens").all())
    assert made["text"][21:] not in kept


def test_a_limited_token_makes_no_unlimited_one(api: RunningApi) -> None:
    call = api.call.as_(owner(api.services))
    limited = call("POST", "/api/v1/me/tokens", {"name": "ci", "role": "reader"}).json()["text"]
    assert api.call.as_(limited)("GET", "/api/v1/users").status == 200
    for method, path, body in (
        ("POST", "/api/v1/users", {"name": "maria"}),
        ("POST", "/api/v1/me/tokens", {"name": "more"}),
        ("PUT", "/api/v1/me/password", {"password": PASSWORD}),
    ):
        assert api.call.as_(limited)(method, path, body).code == "access.forbidden"


def test_a_disabled_user_is_out_at_once_and_a_removed_one_is_gone(api: RunningApi) -> None:
    call = api.call.as_(owner(api.services))
    token = user_with(api.services, "maria", password=PASSWORD)
    assert call("PATCH", "/api/v1/users/maria", {"disabled": True}).json()["disabled"] is True
    assert api.call.as_(token)("GET", "/api/v1/me").status == 401
    assert api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD}).status == 401
    call("PATCH", "/api/v1/users/maria", {"disabled": False})
    assert api.call.as_(token)("GET", "/api/v1/me").status == 200
    assert call("DELETE", "/api/v1/users/maria").status == 204
    assert api.call.as_(token)("GET", "/api/v1/me").status == 401
    assert call("GET", "/api/v1/users/maria").code == "user.unknown"
    assert "maria" in {row["target"] for row in call("GET", "/api/v1/audit").json()["value"]}


def test_an_owner_of_everything_is_always_left(api: RunningApi) -> None:
    call = api.call.as_(owner(api.services))
    user_with(api.services, "vera", Grant("v1", Role.OWNER))
    for method, path, body in (
        ("DELETE", "/api/v1/users/olga", None),
        ("PATCH", "/api/v1/users/olga", {"disabled": True}),
        ("DELETE", "/api/v1/users/olga/roles/*/owner", None),
    ):
        assert call(method, path, body).code == "user.last-owner"
    assert call("GET", "/api/v1/users/olga").json()["roles"] == [{"vault": "*", "role": "owner"}]
    owner(api.services, "otto")
    assert call("DELETE", "/api/v1/users/olga").status == 204


def test_a_password_is_changed_by_its_owner_who_knows_it(api: RunningApi) -> None:
    token = user_with(api.services, "maria", password=PASSWORD)
    session = api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD}).json()["text"]
    call = api.call.as_(token)
    assert call("PUT", "/api/v1/me/password", {"password": PASSWORD + "2"}).code == "login.refused"
    changed = call("PUT", "/api/v1/me/password", {"password": PASSWORD + "2", "before": PASSWORD})
    assert changed.status == 204
    assert api.call.as_(session)("GET", "/api/v1/me").status == 401
    assert api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD}).status == 401
    assert (
        api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": PASSWORD + "2"}).status == 201
    )
    assert call("PUT", "/api/v1/me/password", {"password": "short"}).status == 400


def test_a_vaults_owner_gives_roles_on_that_vault_only(api: RunningApi) -> None:
    owner(api.services)
    call = api.call.as_(user_with(api.services, "vera", Grant("v1", Role.OWNER)))
    user_with(api.services, "maria")
    assert call("PUT", "/api/v1/users/maria/roles/v1/operator").status == 200
    for vault in ("v2", "*"):
        assert call("PUT", f"/api/v1/users/maria/roles/{vault}/operator").code == "access.forbidden"
    assert call("DELETE", "/api/v1/users/maria/roles/v1/operator").json()["roles"] == []


def test_pages_follow_each_other(api: RunningApi) -> None:
    call = api.call.as_(owner(api.services))
    for number in range(7):
        user_with(api.services, f"user{number}")
    names, link = [], "/api/v1/users?limit=3"
    while link:
        page = call("GET", link).json()
        assert len(page["value"]) <= 3
        names += [user["name"] for user in page["value"]]
        link = page["nextLink"]
    assert names == ["olga", *(f"user{number}" for number in range(7))]


def test_two_servers_make_one_owner(database: Database, tmp_path: Path) -> None:
    one = make_services(database, tmp_path / "one")
    two = make_services(database, tmp_path / "two")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert one.logins.prepare() is not None
    assert two.logins.prepare() is None
    assert not (tmp_path / "two" / "setup-token").exists()


class _Together(Passwords):
    """Lets nobody go on before all have come to it."""

    def __init__(self, parties: int) -> None:
        super().__init__(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        self._barrier = threading.Barrier(parties, timeout=20)

    def keep(self, password: str) -> str:
        self._barrier.wait()
        return super().keep(password)


def test_a_set_up_token_used_by_two_at_once_is_good_for_one(database: Database, tmp_path: Path) -> None:
    """Both have seen that it is good before either uses it up."""
    services = make_services(database, tmp_path)
    logins = Logins(
        database, services.audit, services.tokens, _Together(2), setup_file=tmp_path / "setup-token"
    )
    file = logins.prepare()
    assert file is not None
    text = file.read_text().strip()
    ended: list[str] = []

    def use() -> None:
        try:
            logins.set_up(text, password=PASSWORD, address="192.0.2.1", request_id="r")
            ended.append("in")
        except Unauthenticated:
            ended.append("refused")

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["in", "refused"]
