"""Log-ins at an OIDC provider and sessions, over the real API and with the commands people use."""

from __future__ import annotations

import logging
import threading
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.logs import JsonLines
from secondsite.client import oidc as client
from secondsite.client import sessions as session_client
from secondsite.client.login import load_login
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.server.people.roles import THE_SERVER, Grant, Role
from secondsite.transfer.registration import parse_key
from support.databases import Databases
from support.logins import Rig, login_place, set_up
from support.oidc import CLIENT_ID, CLIENT_SECRET
from support.server import Caller, user_with

CLOCK = SystemClock()
PASSWORD = "correct horse battery"


@pytest.fixture
def rig(databases: Databases, tmp_path: Path) -> Iterator[Rig]:
    with databases.ready("sqlite") as url, login_place(url, tmp_path) as made:
        yield made


@pytest.fixture
def both(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    """On each kind of database: for what writes most of it."""
    with login_place(database_url, tmp_path) as made:
        yield made


def test_a_person_logs_in_with_a_browser(
    both: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in = ["login", "--oidc", "--server", both.url, "--authority", str(both.authority)]
    assert both.run(*log_in, login="maria.json") == 4  # nobody set a provider
    set_up(both)
    assert CLIENT_SECRET not in capsys.readouterr().out
    strays: list[int] = []

    def browse(url: str) -> bool:
        # any page can have a browser ask for the command's address: only the right answer ends its wait
        redirect = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))["redirect_uri"]
        with httpx2.Client(trust_env=False) as stray:
            paths = ("", "?code=x&state=guessed", "?error=access_denied&state=guessed")
            strays.extend(stray.get(redirect + path).status_code for path in paths)
        return both.browse(url)

    monkeypatch.setattr(webbrowser, "open", browse)
    assert both.run(*log_in, login="maria.json") == 0, capsys.readouterr().err
    assert strays == [404, 404, 404]
    assert both.run("whoami", login="maria.json") == 0
    assert "maria: operator" in capsys.readouterr().out
    kept = load_login(both.root / "maria.json")
    assert kept.token.startswith("sss_")
    # who is let in by a provider makes no second way in that it does not know of
    maria = both.call.as_(kept.token)
    refused = maria("PUT", "/api/v1/me/password", {"password": PASSWORD})
    assert refused.code == "user.password-elsewhere"
    rows = both.call("GET", "/api/v1/audit?operation=session.create").json()["value"]
    assert rows[-1]["actor"] == "maria"
    assert rows[-1]["detail"]["subject"] == both.provider.person.subject
    assert both.run("server", "oidc", "unmap", "dr-operators", "operator") == 0
    assert both.run(*log_in, login="maria.json") == 4
    assert "has no role" in capsys.readouterr().err


def test_a_person_says_no_at_the_provider(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(rig)

    def deny(url: str) -> bool:
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
        answer = urllib.parse.urlencode({"error": "access_denied\x1b[31m", "state": asked["state"]})
        with httpx2.Client(trust_env=False) as browser:
            return browser.get(f"{asked['redirect_uri']}?{answer}").status_code == 200

    monkeypatch.setattr(webbrowser, "open", deny)
    log_in = ["login", "--oidc", "--server", rig.url, "--authority", str(rig.authority)]
    assert rig.run(*log_in, login="maria.json") == 4
    said = capsys.readouterr().err
    assert "access_denied" in said
    assert "\x1b[31m" not in said
    assert not (rig.root / "maria.json").exists()


def test_a_machine_without_a_browser(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(rig)
    rig.provider.agreed, rig.provider.interval = True, 1
    log_in = ["login", "--oidc", "--device", "--server", rig.url, "--authority", str(rig.authority)]
    assert rig.run(*log_in, login="maria.json") == 0
    assert "WDJB-MJHT" in capsys.readouterr().err
    assert load_login(rig.root / "maria.json").token.startswith("sss_")


def test_who_may_set_and_see_the_provider(rig: Rig) -> None:
    set_up(rig)
    assert rig.server.services is not None
    reader = rig.call.as_(user_with(rig.server.services, "rita", Grant("*", Role.READER)))
    shown = reader("GET", "/api/v1/oidc").json()
    assert shown["hasSecret"] is True
    assert CLIENT_SECRET not in str(shown)
    contributor = rig.call.as_(user_with(rig.server.services, "carl", Grant("*", Role.CONTRIBUTOR)))
    mapping = {"group": "dr-operators", "role": "owner"}
    assert contributor("POST", "/api/v1/oidc/mappings", mapping).code == "access.forbidden"
    assert contributor("DELETE", "/api/v1/oidc").code == "access.forbidden"
    assert rig.call("DELETE", "/api/v1/oidc").status == 204
    assert rig.call("GET", "/api/v1/oidc").code == "oidc.none"


def _log_in(rig: Rig, name: str) -> Caller:
    made = rig.call("POST", "/api/v1/sessions", {"userName": name, "password": PASSWORD})
    assert made.status == 201
    return rig.call.as_(made.json()["text"])


def _alive(*callers: Caller) -> list[bool]:
    return [caller("GET", "/api/v1/me").status == 200 for caller in callers]


def test_sessions_are_seen_and_ended(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    services = rig.server.services
    assert services is not None
    robot = rig.call.as_(user_with(services, "maria", password=PASSWORD))
    user_with(services, "otto", password=PASSWORD)
    first, second, third, other = (_log_in(rig, name) for name in ("maria", "maria", "maria", "otto"))
    listed = first("GET", "/api/v1/me/sessions").json()["value"]
    assert [one["current"] for one in listed].count(True) == 1
    assert len(listed) == 3
    mine = first("GET", "/api/v1/me").json()["via"].partition(":")[2]
    foreign = other("GET", "/api/v1/me/sessions").json()["value"][0]["id"]
    assert first("DELETE", f"/api/v1/me/sessions/{foreign}").code == "token.unknown"
    assert first("GET", "/api/v1/users/otto/sessions").code == "access.forbidden"
    gone = second("GET", "/api/v1/me").json()["via"].partition(":")[2]
    assert first("DELETE", f"/api/v1/me/sessions/{gone}").status == 204
    assert _alive(first, second, third, other) == [True, False, True, True]
    changed = first("PUT", "/api/v1/me/password", {"password": PASSWORD + "!", "before": PASSWORD})
    assert changed.status == 204
    assert _alive(first, second, third, other, robot) == [True, False, False, True, True]
    assert rig.run("session", "list", "--user", "maria") == 0
    assert mine in capsys.readouterr().out
    assert rig.run("session", "end", "--all", "--user", "maria") == 0
    assert _alive(first, other, robot) == [False, True, True]
    assert rig.run("session", "end", foreign, "--user", "maria") == 3
    assert rig.run("session", "end", foreign, "--user", "otto") == 0
    assert _alive(other) == [False]


def test_one_session_a_user_where_it_is_set_so(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    services = rig.server.services
    assert services is not None
    robot = rig.call.as_(user_with(services, "maria", password=PASSWORD))
    first, second = _log_in(rig, "maria"), _log_in(rig, "maria")
    assert rig.run("session", "rules", "--one") == 0
    assert "one" in capsys.readouterr().out
    assert _alive(first, second) == [True, True]  # until the next one
    third = _log_in(rig, "maria")
    assert _alive(first, second, third, robot) == [False, False, True, True]
    assert rig.run("session", "rules", "--several") == 0
    fourth = _log_in(rig, "maria")
    assert _alive(third, fourth) == [True, True]


def test_two_at_once_are_one_where_it_is_set_so(both: Rig) -> None:
    services = both.server.services
    assert services is not None
    user_with(services, "maria", password=PASSWORD)
    services.sessions.set_one_only(THE_SERVER, one=True)
    made: list[Caller] = []

    def come() -> None:
        made.append(_log_in(both, "maria"))

    _at_once(come, 4)
    assert _alive(*made).count(True) == 1


def _at_once(what: Callable[[], None], number: int) -> None:
    threads = [threading.Thread(target=what) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def _secrets_of(rig: Rig, made: list[str]) -> set[str]:
    """Each whole, and the part of it that is secret where it has others."""
    state = rig.root / "state"
    master = (state / "master.key").read_text().splitlines()[1]
    server_key = "".join((state / "tls" / "server.key").read_text().splitlines()[1:-1])
    texts = [CLIENT_SECRET, PASSWORD, master, server_key, *rig.provider.secrets, *made]
    return {part for text in texts for part in (text, *text.split("_", 2)[2:]) if len(part) > 7}


def test_no_secret_of_a_run_is_in_what_it_logs_and_keeps_for_reading(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All levels of all libraries; also of what is refused; the audit log, the events and metrics, too."""
    caplog.set_level(logging.DEBUG)
    services = rig.server.services
    assert services is not None
    assert services.identity is not None
    setup = services.logins.prepare(again=True)
    assert setup is not None
    made = [rig.call.token, setup.read_text().strip()]
    set_up(rig)
    wrong = {"issuer": rig.provider.issuer, "clientId": CLIENT_ID, "clientSecret": "another " + CLIENT_SECRET}
    assert rig.call("PUT", "/api/v1/oidc", wrong | {"authority": rig.provider.authority}).status == 409
    monkeypatch.setattr(webbrowser, "open", rig.browse)
    log_in = ["login", "--oidc", "--server", rig.url, "--authority", str(rig.authority)]
    assert rig.run(*log_in, login="maria.json") == 0
    made.append(load_login(rig.root / "maria.json").token)
    begun = rig.call.as_("")("POST", "/api/v1/oidc/devices").json()
    made.append(begun["secret"])
    rig.call.as_("")("POST", f"/api/v1/oidc/devices/{begun['id']}", {"secret": begun["secret"] + "x"})
    made.append(
        rig.call("POST", "/api/v1/setup", {"setupToken": made[1], "password": PASSWORD}).json()["text"]
    )
    rig.call("POST", "/api/v1/users", {"name": "otto", "password": PASSWORD, "no": PASSWORD})
    rig.call("POST", "/api/v1/users", {"name": "otto", "password": PASSWORD})
    made.append(
        rig.call("POST", "/api/v1/sessions", {"userName": "otto", "password": PASSWORD}).json()["text"]
    )
    rig.call("POST", "/api/v1/sessions", {"userName": "otto", "password": PASSWORD + "x"})
    made.append(rig.call("POST", "/api/v1/users/otto/tokens", {"name": "ci"}).json()["text"])
    rig.call.as_(made[-1] + "x")("GET", "/api/v1/me")
    rig.call("POST", "/api/v1/vaults", {"friendlyName": "North"})
    key = rig.call("POST", "/api/v1/vaults/North/registrationKeys", {"url": rig.url}).json()["key"]
    enrol(parse_key(key), NewMember("gateway-a", "a", "a"), rig.root / "gw", way=Way(rig.url), clock=CLOCK)
    gateway = "".join((rig.root / "gw" / "gateway-a.key").read_text().splitlines()[1:-1])
    made += [key, key[40:80], gateway]
    rig.call("POST", "/api/v1/me/tokens", {"name": key, "days": "x"})
    told = [JsonLines().format(record) for record in caplog.records]
    assert sum('"text":"request"' in line for line in told) >= 15
    paths = ("/api/v1/audit?limit=1000", "/api/v1/events?limit=1000", "/api/v1/oidc", "/metrics")
    told += [rig.call("GET", path).data.decode() for path in paths]
    everything = "\n".join(told)
    for secret in _secrets_of(rig, made):
        assert secret not in everything, secret


def test_the_clients_words_are_the_descriptions(rig: Rig) -> None:
    schemas = rig.call("GET", "/api/v1/openapi.json").json()["components"]["schemas"]
    for kind, name in (
        (client.BrowserLogin, "BrowserLoginView"),
        (client.DeviceLogin, "DeviceLoginView"),
        (client.DeviceAnswer, "DeviceAnswer"),
        (client.GroupRole, "GroupRoleView"),
        (client.Oidc, "OidcView"),
        (session_client.Session, "SessionView"),
        (session_client.SessionRules, "SessionRulesView"),
    ):
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(
            schemas[name]["properties"]
        ), name
