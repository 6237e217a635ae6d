"""docs/retention.md against the code: its configuration loads, its commands and options exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from secondsite.cli.main import main
from secondsite.gateway.common.config import RetentionSettings
from secondsite.model.retention import RetentionPolicy

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "retention.md").read_text()


def test_the_configuration_loads_and_the_first_line_is_the_default() -> None:
    [block] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    settings = RetentionSettings(**tomllib.loads(block)["retention"])
    policies = settings.policies()
    assert policies.default == RetentionPolicy.default() == RetentionSettings().policies().default
    [other] = policies.machines.values()
    assert other == RetentionPolicy.additional_points(4)


@pytest.mark.parametrize("line", re.findall(r"^    (secondsite .*)$", TEXT, re.MULTILINE))
def test_every_command_and_option_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[1:]
    assert main([*words[:2], "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown
    if "--policy" in words:
        RetentionPolicy.parse(words[words.index("--policy") + 1])
