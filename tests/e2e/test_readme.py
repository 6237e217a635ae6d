"""The README's walk through a lab, run line by line as it stands there, in a lab of its own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.lab import commands
from secondsite.lab.guest import build_boot_files
from secondsite.lab.roots import fresh_root

ROOT = Path(__file__).resolve().parents[2]
MARKER = "<!-- tests/e2e/test_readme.py runs these lines -->"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def walk_lines() -> list[str]:
    """The indented lines of the README's section with the marker."""
    section = (ROOT / "README.md").read_text().split(MARKER)[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_every_secondsite_command_of_the_readme_is_in_the_walk() -> None:
    text = (ROOT / "README.md").read_text()
    shown = {line.strip() for line in re.findall(r"^    (\./run secondsite .*)$", text, re.MULTILINE)}
    assert shown <= set(walk_lines())


def placed(line: str, root: Path) -> str:
    """The line for a lab at `root`."""
    for word, meant in (
        ("/var/tmp/secondsite-lab", str(root)),
        ("RECOVERY_KEY", str(root / "safe" / "vault.key")),
        ("STORE", f"file://{root}/B/gateway/store"),
        ("lab up", f"lab up --root {root}"),
        ("lab run", f"lab run --root {root}"),
        ("lab down", f"lab down --root {root}"),
    ):
        line = line.replace(word, meant)
    return line


@pytest.fixture
def lab_root() -> Iterator[Path]:
    build_boot_files()
    root = fresh_root()
    yield root
    commands.down(root)


def test_the_walk(lab_root: Path) -> None:
    """Only the lab's place differs, so that a lab the user has up is left alone."""
    environment = dict(os.environ)
    outputs: dict[str, str] = {}
    for shown in walk_lines():
        line = placed(shown, lab_root)
        if line.startswith("export "):
            name, value = line.removeprefix("export ").split("=", 1)
            environment[name] = value
            continue
        done = subprocess.run(
            ["/bin/sh", "-euc", line],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        outputs[shown.split("secondsite ", 1)[1].split(" --")[0]] = done.stdout
    assert "gateway-b" in outputs["lab run gateway list"]
    assert "shop" in outputs["lab run site machines"]
    assert "Protected" in outputs["lab run item show North shop"]
    assert "Succeeded" in outputs["lab run job list"]
    assert "Protected" in outputs["status"]
    assert "ApplicationConsistent" in outputs["points list shop"]
    assert "shop-test" in outputs["test-failover list"]
    assert not lab_root.exists()
