"""``secondsite gateway check`` through a real server and an enrolled gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from secondsite.model.readiness import Check
from support.databases import Databases
from support.server import owner
from support.twosites import TwoSites, two_sites

HERE = Check(code="gateway.state", title="the gateway's state can be written", ok=True)
GONE = Check(
    code="libvirt.define",
    title="machines may be defined and removed",
    ok=False,
    why="operation virDomainDefineXML forbidden for read only access",
    fix="Give the gateway's user that right and restart the gateway.",
    ask="write access to libvirt, of the host's administrator",
)


@pytest.fixture
def sites(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoSites]:
    with databases.ready("sqlite") as url, two_sites(url, tmp_path) as made:
        made.add("gateway-a", "Site A")
        authority = (tmp_path / "server" / "authority.crt").read_text()
        login = Login(server=made.url, token=owner(made.services), authority=authority)
        save_login(login, tmp_path / "client.json")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        yield made


def test_a_missing_right_is_named_with_the_fix_and_whom_to_ask(
    sites: TwoSites, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = sites.gateways["gateway-a"]
    gateway.checks = (HERE, GONE)
    assert main(["gateway", "check", "gateway-a"]) == Outcome.REFUSED
    said = capsys.readouterr().out
    assert "1 missing" in said
    assert "libvirt.define: operation virDomainDefineXML forbidden for read only access" in said
    assert "ask for: write access to libvirt, of the host's administrator" in said
    gateway.checks = (HERE,)
    assert main(["gateway", "check", "gateway-a", "--json"]) == Outcome.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], [check["code"] for check in told["checks"]]) == (True, ["gateway.state"])
    assert main(["gateway", "check", "gateway-z"]) == Outcome.NOT_FOUND
