"""docs/protected-items.md against a real server and two made-up gateways: every command as it stands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from secondsite.journal.keys import VaultKey
from secondsite.model.policies import ReplicationPolicy
from support.databases import Databases
from support.items import ServedItems, served_items
from support.server import owner

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "protected-items.md").read_text()
COMMANDS = re.findall(r"^    (secondsite (?:item|gateway) .*)$", TEXT, re.MULTILINE)


@pytest.fixture
def place(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedItems]:
    with databases.ready("sqlite") as url, served_items(tmp_path / "server", url) as made:
        login = Login(
            server=made.served.url,
            token=owner(made.services),
            authority=(tmp_path / "server" / "authority.crt").read_text(),
        )
        save_login(login, tmp_path / "client.json")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("secondsite.cli.server.jobs.FOLLOW_SECONDS", 0.05)
        yield made


def run(capsys: pytest.CaptureFixture[str], *words: str, code: Outcome = Outcome.OK) -> str:
    assert main(words) == code, capsys.readouterr()
    shown = capsys.readouterr()
    return shown.err if code is not Outcome.OK and not shown.out else shown.out


def test_the_document_and_what_is_shown(
    place: ServedItems, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VaultKey.create().save(tmp_path / "vault.key")
    place.gateways["gateway-a"].proved = False
    place.parts.policies.create("North", "Gold", ReplicationPolicy(copy_frequency_seconds=30), by="ann")
    unproved = run(capsys, "item", "protect", "North", "shop", "--to", "gateway-b", code=Outcome.REFUSED)
    assert "secondsite gateway prove-key gateway-a" in unproved
    assert len(COMMANDS) >= 20
    shown: dict[str, str] = {}
    for line in COMMANDS:
        # finalised already by the protection itself: refused with what is possible
        code = Outcome.REFUSED if " finalise " in line else Outcome.OK
        shown[line] = run(capsys, *shlex.split(line)[1:], code=code)
    assert "pause, resync, changePolicy" in shown["secondsite item finalise North shop"]
    [listed] = [line for line in shown["secondsite item list North"].splitlines() if "gateway-b" in line]
    assert listed.split()[:3] == ["shop", "Protected", "Normal"]
    with_test = shown["secondsite item show North shop"]
    assert "test       shop-test at gateway-b: Completed" in with_test
    assert "testFailoverCleanup" in with_test
    assert "possible   pause, resync" in with_test
    points = [line.split()[0] for line in shown["secondsite item points North shop"].splitlines()]
    assert points == ["POINT", *"7654321"]
    [test] = place.gateways["gateway-b"].tests.known.values()
    assert (test["state"], test["notes"]) == ("CleanupCompleted", "it boots, and the shop answers")
    assert "Nothing is protected" in shown["secondsite item list --health Critical --health Warning"]
    assert "0 protected of 0 items" in shown["secondsite item counts North"]
    assert place.gateways["gateway-a"].proved
    assert not place.gateways["gateway-a"].replicas
    kept = place.gateways["gateway-b"].replicas
    assert [one.name for one in kept.values()] == ["shop"], "that of büro went with it"
    ended = json.loads(run(capsys, "item", "list", "North", "--state", "Unprotected", "--json"))
    assert [(one["name"], one["protectedDays"]) for one in ended] == [("büro", 0), ("shop", 0)]
    assert "There is no protected item mail" in run(
        capsys, "item", "show", "North", "mail", code=Outcome.NOT_FOUND
    )
