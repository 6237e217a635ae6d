"""docs/server.md against a real server: the commands about people, log-ins, approvals and the audit log."""

from __future__ import annotations

import re
import shlex
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.server.operations.approvals import CHANGE_APPROVALS, ChangeApprovals
from support.databases import Databases
from support.logins import Rig, login_place
from support.until import until

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "server.md").read_text()


def commands(section: str) -> list[str]:
    """What a section has people type."""
    part = re.split(r"^## ", TEXT.split(f"\n## {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^    (secondsite .*)$", part, re.MULTILINE)


@pytest.fixture
def rig(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with databases.ready("sqlite") as url, login_place(url, tmp_path) as made:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "boss.json"))
        monkeypatch.setattr(webbrowser, "open", made.browse)
        made.provider.agreed, made.provider.interval = True, 1
        made.call("POST", "/api/v1/vaults", {"friendlyName": "North"})
        (tmp_path / "password").write_text("correct horse battery\n")
        yield made


def run(rig: Rig, line: str, **instead: str) -> int:
    """A line of the document, with this machine's addresses and files in it."""
    line = line.replace("https://id.example/realms/main", rig.provider.issuer)
    line = line.replace("https://server.example", rig.url)
    for word, other in instead.items():
        line = line.replace(word, other)
    words = shlex.split(line)[1:]
    if words[:3] == ["server", "oidc", "set"]:
        words += ["--authority", "provider.pem"]
    if words[0] == "login":
        # kept apart, so that the owner's log-in stays for the others
        words += ["--authority", str(rig.authority), "--login", str(rig.root / "maria.json")]
    if "--password" in words:
        words += ["--password-file", "password"]
    return main(words)


def test_people_and_log_ins(rig: Rig) -> None:
    assert main(["user", "create", "prometheus"]) == 0
    for section, least in (
        ("People and programs", 4),
        ("Logging in at an OIDC provider", 5),
        ("Sessions", 4),
    ):
        found = commands(section)
        assert len(found) >= least, section
        for line in found:
            assert run(rig, line) == 0, line


def test_the_audit_log(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands("The audit log")
    assert len(found) >= 5
    main(["audit", "verify"])
    anchor = capsys.readouterr().out.split("anchor: ")[1].strip()
    for line in found:
        assert run(rig, line.replace("1718:9f2c...", anchor)) == 0, line


def test_four_eyes(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    services = rig.server.services
    assert services is not None
    assert services.jobs is not None
    assert services.approvals is not None
    *first, listing, approve, reject = commands("Four eyes")
    for line in first:
        assert run(rig, line) == 0, line
    vault = rig.call("GET", "/api/v1/vaults/North").json()["id"]

    def ask() -> str:
        """Another person wants the demand gone."""
        given = ChangeApprovals(vault=vault, vault_name="North", wanted={}, actor="otto")
        assert services.jobs is not None
        with services.database.write() as connection:
            job = services.jobs.start(connection, CHANGE_APPROVALS, given, "otto")
        services.nudge_jobs()
        until(lambda: _state(rig, job) == "Suspended", "it asks")
        return job

    job = ask()
    capsys.readouterr()
    assert run(rig, listing) == 0
    assert job in capsys.readouterr().out
    assert run(rig, reject, ID=job) == Outcome.REFUSED  # followed: it failed, as it was told to
    assert "not on a Friday" in capsys.readouterr().out
    assert run(rig, approve, ID=ask()) == 0
    assert rig.call("GET", "/api/v1/vaults/North/approvals").json()["demands"] == []


def _state(rig: Rig, job: str) -> str:
    return str(rig.call("GET", f"/api/v1/jobs/{job}").json()["state"])
