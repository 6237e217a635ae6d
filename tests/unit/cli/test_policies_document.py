"""docs/policies.md against a real server: every command as it stands; and how a window is written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import InvalidInput, Outcome
from secondsite.cli.main import main
from secondsite.cli.server.policies import estimate_lines, parse_window
from secondsite.client.login import Login, save_login
from secondsite.client.policies import Estimate, Measured, WindowKept
from support.databases import Databases
from support.enrolled import Place, enrolled_place
from support.server import owner

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "policies.md").read_text()
COMMANDS = re.findall(r"^    (secondsite policy .*)$", TEXT, re.MULTILINE)
NOT_THERE = "gateway-b"  # the place has no such gateway: told, and understood up to there


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


def run(capsys: pytest.CaptureFixture[str], *words: str, code: Outcome = Outcome.OK) -> str:
    assert main(["policy", *words]) == code, capsys.readouterr().err
    shown = capsys.readouterr()
    return shown.out if code is Outcome.OK else shown.err


@pytest.mark.usefixtures("place")
def test_the_document_and_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There are no policies" in run(capsys, "list")
    assert len(COMMANDS) >= 10
    shown: dict[str, str] = {}
    for line in COMMANDS:
        words = shlex.split(line)[2:]
        code = Outcome.NOT_FOUND if NOT_THERE in words else Outcome.OK
        shown[line] = run(capsys, *words, code=code)
    assert "5min" in shown["secondsite policy presets"]
    listed = shown["secondsite policy list North"]
    assert "Gold (failback)" in listed
    gold = shown["secondsite policy show North Gold"]
    assert "app-consistent  1 h" in gold
    assert "! Performance:" in gold
    assert "encryption      always" in gold
    revisions = shown["secondsite policy show North Gold --revisions"]
    assert "revision 3," in revisions
    assert "08:00-18:00 2.4 MiB/s, 18:00-08:00 unlimited" in revisions
    assert "every point, back to 4 h" in shown["secondsite policy estimate North Gold"]

    made = json.loads(run(capsys, "create", "North", "Lead", "--compression", "off", "--first-copy", "22:00",
                          "--delete-replica", "--json"))  # fmt: skip
    settings = made["settings"]
    assert (settings["compressionLevel"], settings["deleteReplicaOnDisable"]) == (None, True)
    assert settings["firstCopy"] == {"mode": "scheduled", "at": "22:00"}
    assert settings["copyFrequencySeconds"] == 5  # of the preset
    again = [
        "change",
        "North",
        "lead",
        "--app-consistent",
        "never",
        "--first-copy",
        "now",
        "--rename",
        "Zinc",
    ]
    run(capsys, *again, "--no-delete-replica", "--compression", "-3")
    [zinc] = [one for one in json.loads(run(capsys, "list", "--json")) if one["friendlyName"] == "Zinc"]
    assert (zinc["revision"], zinc["settings"]["compressionLevel"]) == (2, -3)
    stale = run(capsys, "change", "North", "Zinc", "--revision", "1", code=Outcome.REFUSED)
    assert "policy.changed-meanwhile" in stale
    fixed = run(capsys, "change", "North", "Zinc (failback)", "--copy-every", "1m", code=Outcome.REFUSED)
    assert "copy or delete 'Zinc'" in fixed


@pytest.mark.parametrize(
    ("text", "rate"),
    [("20Mbit", 2_500_000), ("5MB", 5_000_000), ("800000", 800_000), ("1.5Gbit", 187_500_000)],
)
def test_a_window_is_written_as_people_do(text: str, rate: float) -> None:
    wanted = {"from": "22:00", "until": "06:00", "bytesPerSecond": rate}
    assert parse_window(f"22:00-06:00={text}") == wanted
    assert parse_window("22:00-06:00=unlimited") == wanted | {"bytesPerSecond": None}


@pytest.mark.parametrize("text", ["22:00=1M", "22:00-06:00", "22:00-06:00=fast", "22:00-06:00=-1M", "none"])
def test_a_window_that_is_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="FROM-UNTIL=RATE"):
        parse_window(text)


def test_what_was_measured_is_shown() -> None:
    window = WindowKept(every_seconds=3600, reach_seconds=86400, recovery_points=25, point_bytes=5 << 20)
    found = Estimate(
        retention="1h:1d", retention_text="one every 1 h for 1 d", recovery_points=26, windows=[window]
    )
    assert "one every 1 h, back to 1 d: 25" in estimate_lines(found)[2]
    assert "not measured" in estimate_lines(found)[-1]
    measured = Measured(
        provider="gateway-b",
        machine="1",
        machine_name="shop",
        seconds=7200,
        stored_bytes_per_day=10 << 30,
        recovery_points=3,
        stored_bytes=1 << 20,
        stored_bytes_at_most=2 << 30,
    )
    said = "\n".join(
        estimate_lines(
            Estimate(retention="", retention_text="", recovery_points=26, windows=[window], measured=measured)
        )
    )
    assert "about 5.0 MiB each" in said
    assert "2.0 GiB at most for shop" in said
    assert "10.0 GiB a day arrived at gateway-b, over 2 h" in said
