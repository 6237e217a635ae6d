"""docs/monitoring.md: its commands are run as they stand, in their order; there is no item to ask for."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.cli.main import main
from secondsite.cli.server import events as eventlist
from secondsite.model.events import Severity
from support.enrolled import Place, enrolled_place
from support.receivers import web_hook
from support.server import owner

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "monitoring.md"
LINES = re.findall(r"^    (secondsite .*)$", DOCUMENT.read_text(), re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with enrolled_place(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as made:
        token = tmp_path / "token"
        token.write_text(owner(made.services))
        assert made.server.address is not None
        url = f"https://127.0.0.1:{made.server.address[1]}"
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        authority = str(tmp_path / "server" / "authority.crt")
        assert main(["login", "--server", url, "--authority", authority, "--token-file", str(token)]) == 0
        yield made


def test_its_commands(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(LINES) > 12
    monkeypatch.chdir(tmp_path)
    events = place.services.events
    place.services.database.run(
        lambda connection: events.emit(
            connection, "", Severity.WARNING, "ship.link-trouble", "it is cut", gateway="gateway-a"
        )
    )
    with web_hook() as hooks:
        Path("on-call.address").write_text(hooks.address())
        for line in LINES:
            code, (out, err) = main(shlex.split(line)[1:]), capsys.readouterr()
            assert code == (3 if line.startswith("secondsite item") else 0), f"{line}\n{err}"
            if line.endswith("--limit 500"):
                assert "it is cut" in out
        assert hooks.titles == ["Test"]


def test_codes_it_names_exist() -> None:
    source = "".join(path.read_text() for path in (DOCUMENT.parents[1] / "src").rglob("*.py"))
    rows = re.findall(r"^\| (`[a-z]+\.[a-z-]+`.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    codes = [code for row in rows for code in re.findall(r"`([a-z]+\.[a-z-]+)`", row)]
    assert len(codes) >= 6
    for code in codes:
        assert f'"{code}"' in source, code


def test_metrics_it_names_exist() -> None:
    text = DOCUMENT.read_text()
    source = "".join(path.read_text() for path in (DOCUMENT.parents[1] / "src").rglob("*.py"))
    names = set(re.findall(r"secondsite_[a-z_]+", text)) - {"secondsite_protection_", "secondsite_replica_"}
    assert len(names) > 20
    for name in names:
        short = (
            re.sub(r"_total$", "", name)
            .removeprefix("secondsite_protection_")
            .removeprefix("secondsite_replica_")
            .removeprefix("secondsite_standby_")
            .removeprefix("secondsite_upload_")
        )
        assert f'"{short}"' in source or f'"{re.sub("_total$", "", name)}"' in source, name


def test_following_outlives_a_server_that_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = place.services.events
    looks: list[str] = []

    def say(text: str) -> None:
        place.services.database.run(
            lambda connection: events.emit(connection, "", Severity.WARNING, "a.b", text)
        )

    class Clock(SystemClock):
        """Each wait is a step of the story; in the end somebody presses Ctrl-C."""

        def wait(self, event: threading.Event, seconds: float) -> bool:
            looks.append("")
            if len(looks) == 1:
                say("the second")
            elif len(looks) == 2:
                place.server.stop()
            elif len(looks) == 4:
                raise KeyboardInterrupt
            return False

    say("the first")
    monkeypatch.setattr(eventlist, "SystemClock", Clock)
    with pytest.raises(SystemExit) as ended:
        main(["event", "list", "--follow", "--code", "a.b"])
    assert ended.value.code == 130
    shown = capsys.readouterr()
    assert [line.split(": ")[1] for line in shown.out.splitlines()] == ["the first", "the second"]
    assert shown.err.count("error:") == 1
