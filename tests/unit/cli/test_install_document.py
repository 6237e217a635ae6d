"""docs/install.md against the code: its configurations load, its commands exist, no setting is missing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from secondsite.cli.main import main
from secondsite.gateway.common.config import GatewayConfig, load_config

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "install.md").read_text()
CONFIGURATIONS = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^    (secondsite .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("text", CONFIGURATIONS, ids=["a", "b"])
def test_the_configurations_load(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    assert load_config(path).name in ("gateway-a", "gateway-b")


def test_every_setting_is_shown() -> None:
    for name, field in GatewayConfig.model_fields.items():
        assert re.search(rf"^(\[|# )?{name}\b", TEXT, re.MULTILINE), f"{name} is not in docs/install.md"
        for inner in getattr(field.annotation, "model_fields", {}):
            assert re.search(rf"^(# )?{inner} =", TEXT, re.MULTILINE), f"{name}.{inner} is not in it"


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[1:]
    path: list[str] = []
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]+", word) or len(path) == 2:
            break
        path.append(word)
    assert main([*path, "--help"]) == 0 or main([*path[:1], "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in shown, f"{option} is not an option of {' '.join(path)}"
