"""The API and the commands of alerts: from a file with an address to a message that arrived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.cli.main import main
from secondsite.model.events import Severity
from secondsite.server.people.roles import Grant, Role
from support.enrolled import Place, enrolled_place
from support.receivers import Hooks, web_hook
from support.server import owner, user_with
from support.until import until


@pytest.fixture
def place(databases_sqlite: str, tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(databases_sqlite, tmp_path) as made:
        yield made


@pytest.fixture
def databases_sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'server.db'}"


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    with web_hook() as made:
        yield made


def test_from_an_address_to_a_message(
    place: Place,
    hooks: Hooks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = owner(place.services)
    assert place.server.address is not None
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
    url, authority = f"https://127.0.0.1:{place.server.address[1]}", tmp_path / "server" / "authority.crt"
    log_in = ["login", "--server", url, "--authority", str(authority), "--token-file", str(file)]
    assert main(log_in) == 0, capsys.readouterr().err
    address = tmp_path / "address"
    address.write_text(hooks.address() + "\n")

    def told(*words: object) -> str:
        code, (out, err) = main([str(word) for word in words]), capsys.readouterr()
        assert code == 0, err
        assert "T0kenInThePath" not in out + err
        return out

    assert "sends by JSON" in told("alert", "channel", "add", "ops", "--address-file", address)
    assert "JSON" in told("alert", "channel", "list")
    told("alert", "channel", "test", "ops")
    assert hooks.titles == ["Test"]
    told("alert", "rule", "add", "links", "ops", "--code", "ship.*", "--vault", "North", "--quiet", "1h")
    assert "60 min" in told("alert", "rule", "list")
    vault = place.identity.vaults.get("North").id
    place.services.database.run(
        lambda connection: place.services.events.emit(
            connection, vault, Severity.WARNING, "ship.link-trouble", "the link is cut", gateway="gateway-a"
        )
    )
    until(lambda: len(hooks.taken) == 2, "no alert arrives")
    assert hooks.titles[1] == "Warning: ship.link-trouble (gateway-a, vault North)"
    assert "ship.link-trouble" in told("alert", "list")
    assert "the link is cut" in told("event", "list", "--since", "1h", "--severity", "Warning")
    told("alert", "rule", "rest", "links")
    assert "rests" in told("alert", "rule", "list")
    told("alert", "rule", "remove", "links")
    told("alert", "channel", "remove", "ops")
    assert main(["alert", "channel", "remove", "ops"]) == 3
    capsys.readouterr()
    audit = told("audit", "list", "--json")
    assert "alert.channel-add" in audit
    # a channel leads out of the server: nobody limited to a vault makes one
    limited = user_with(place.services, "nora", Grant(vault, Role.OWNER))
    assert place.call(limited)("GET", "/api/v1/alerts/channels").status == 403
