"""docs/mappings.md typed as it stands, against a server and two gateways; its picture is the code's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import COMMANDS, main
from secondsite.client.login import Login, save_login
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Disk, Machine, Nic, PowerState
from support.databases import Databases
from support.server import owner
from support.twosites import TwoSites, two_sites

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "mappings.md"
SHOP = Machine(
    id=MachineId("6f1f7c9e-52c7-4f0e-9a53-0c4a3a1f0001"),
    name="shop",
    host="host-a",
    power=PowerState.RUNNING,
    disks=(Disk(id=DiskId("vda"), size_bytes=1 << 30, format="raw", location="/i/shop", pool="images"),),
    nics=(Nic(mac="52:54:00:00:00:01", network="lan"),),
)


@pytest.fixture
def sites(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoSites]:
    with databases.ready("sqlite") as url, two_sites(url, tmp_path) as made:
        for name, site in (("gateway-a", "Site A"), ("gateway-b", "Site B")):
            made.add(name, site)
        made.gateways["gateway-a"].fabric.listed.append(SHOP)
        made.read(made.gateways["gateway-a"])
        login = Login(
            server=made.url,
            token=owner(made.services),
            authority=(tmp_path / "server" / "authority.crt").read_text(),
        )
        save_login(login, tmp_path / "client.json")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        monkeypatch.setattr("secondsite.cli.server.jobs.FOLLOW_SECONDS", 0.05)
        yield made


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```shell\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == Outcome.OK, (words, capsys.readouterr().err)
    return capsys.readouterr().out


def test_every_command_of_the_document(sites: TwoSites, capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCUMENT.read_text()
    typed = commands(text)
    said: dict[str, str] = {}
    for line in typed:
        said[line] = run(capsys, *shlex.split(line)[1:])
        if " publish " in line:
            sites.read(sites.gateways["gateway-a"])  # as the server does by itself within seconds
    assert "shop" in said["secondsite cloud machines north gateway-a"]
    assert "its cloud gateway-a is not paired" in said["secondsite cloud machines north gateway-a"]
    assert "gateway-a to gateway-b" in said["secondsite pair show north gateway-a"]
    assert "nothing" in said["secondsite mapping network set north gateway-a lan=lan --preview"]
    [drawn] = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert drawn == said["secondsite pair picture north"], "put this into docs/mappings.md"
    used = {tuple(line.split()[1:3]) for line in typed}
    for group in ("cloud", "pair", "mapping"):
        words = COMMANDS[group]
        assert isinstance(words, dict)
        missing = {word for word in words if word and (group, word) not in used}
        assert not missing, f"docs/mappings.md does not show {group} {missing}"


def test_listings_as_json_and_refusals(sites: TwoSites, capsys: pytest.CaptureFixture[str]) -> None:
    [cloud, _] = json.loads(run(capsys, "cloud", "list", "north", "--json"))
    assert (cloud["name"], cloud["pairingStatus"], cloud["hosts"][0]["name"]) == (
        "gateway-a",
        "NotPaired",
        "host-a",
    )
    assert json.loads(run(capsys, "pair", "list", "north", "--json")) == []
    [machine] = json.loads(run(capsys, "cloud", "machines", "north", "--json"))
    assert (machine["provider"], machine["protectable"]) == ("gateway-a", False)
    run(capsys, "pair", "create", "north", "gateway-a", "gateway-b")
    assert main(["pair", "create", "north", "gateway-b", "gateway-a"]) == Outcome.REFUSED
    assert "delete that pair" in capsys.readouterr().err
    assert main(["mapping", "network", "set", "north", "gateway-a", "lan=nowhere"]) == Outcome.REFUSED
    assert "gateway-b has no network 'nowhere'" in capsys.readouterr().err
    assert main(["mapping", "network", "set", "north", "gateway-a"]) == Outcome.USAGE
    assert main(["mapping", "network", "set", "north", "gateway-a", "lan"]) == Outcome.USAGE
    capsys.readouterr()
    # saved already: nothing is asked of anybody
    run(capsys, "mapping", "network", "set", "north", "gateway-a", "lan=lan", "--yes")
    assert "nothing would change" in run(capsys, "mapping", "network", "set", "north", "gateway-a", "lan=lan")
