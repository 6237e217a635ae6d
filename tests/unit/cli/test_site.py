"""``secondsite site`` against a real server that reads an imaginary site through a real gateway's uplink."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from support.databases import Databases
from support.enrolled import Place, enrolled_place
from support.server import owner


@pytest.fixture
def place(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with databases.ready("sqlite") as url, enrolled_place(url, tmp_path) as made:
        assert made.server.address is not None
        login = Login(
            server=f"https://127.0.0.1:{made.server.address[1]}",
            token=owner(made.services),
            authority=(tmp_path / "server" / "authority.crt").read_text(),
        )
        save_login(login, tmp_path / "client.json")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        yield made


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["site", *words]) == Outcome.OK, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_site_is_read_and_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "never read" in run(capsys, "show", "North", "gateway-a")
    assert run(capsys, "machines") == "Nothing was found.\n"
    place.fabric.add_machine("shop", {"vda": 1 << 30, "vdb": 1 << 30})
    place.fabric.add_machine("tpm", {"vda": 1 << 20}, unprotectable=["it has a TPM"])
    with place.uplink():
        assert "new, 0 changed, 0 gone" in run(capsys, "read", "North", "gateway-a")
        assert json.loads(run(capsys, "read", "North", "gateway-a", "--json"))["appeared"] == 0
    table = run(capsys, "machines")
    [shop] = [line.split() for line in table.splitlines() if "shop" in line]
    assert shop[0] == "shop"
    assert {"gateway-a", "2.0"} <= set(shop)
    assert "no: it has a TPM" in table
    assert "shop" not in run(capsys, "machines", "--name", "TP")
    assert run(capsys, "machines", "--of", "another") == "Nothing was found.\n"
    [only] = json.loads(run(capsys, "machines", "--name", "shop", "--json"))
    assert only["properties"]["name"] == "shop"
    assert "default" in run(capsys, "networks")
    for kind in ("hosts", "storage"):
        assert run(capsys, kind)
    shown = json.loads(run(capsys, "show", "North", "gateway-a", "--json"))
    assert shown["readAt"] is not None
    assert shown["problem"] is None


def test_a_silent_gateway_is_told_with_cause_and_action(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.server.inventory.reader.ANSWER_SECONDS_MAX", 0.3)
    assert main(["site", "read", "North", "gateway-a"]) == Outcome.UNAVAILABLE
    assert "did not answer within" in capsys.readouterr().err
    assert "Look at `secondsite gateway list`" in run(capsys, "show", "North", "gateway-a")
