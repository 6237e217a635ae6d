"""docs/server-survival.md against the code: its settings load, its commands and options exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from secondsite.cli.document import help_text
from secondsite.cli.main import COMMANDS
from secondsite.server.config import BackupSettings, ServerConfig
from secondsite.server.survival.aftermath import AHEAD

TEXT = (Path(__file__).resolve().parents[4] / "docs" / "server-survival.md").read_text()
COMMAND_LINES = re.findall(r"^    (secondsite .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_and_option_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    group = COMMANDS[words[0]]
    path = words[:2] if isinstance(group, dict) else words[:1]
    assert not isinstance(group, dict) or path[1] in group, line
    known = help_text(path)
    for option in re.findall(r"--[a-z-]+", line):
        assert option in known, f"{option} of {line}"


def test_the_settings_load_and_none_is_missing() -> None:
    text = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert text is not None
    found = tomllib.loads(text[1])
    assert set(found["backup"]) == set(BackupSettings.model_fields)
    loaded = ServerConfig(**found).backup
    default = BackupSettings()
    assert (loaded.every_minutes, loaded.keep, loaded.gateways) == (
        default.every_minutes,
        default.keep,
        default.gateways,
    )


def test_a_million_is_a_million() -> None:
    assert AHEAD == 1_000_000
    assert "a million higher" in TEXT
