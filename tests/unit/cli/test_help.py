"""The command's own words: help with examples everywhere, current documents, completion, fast start."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

from secondsite.cli.document import command_paths, commands_markdown, help_text
from secondsite.cli.main import build_app, move_options
from support.control import run_command

ROOT = Path(__file__).resolve().parents[3]
PATHS = list(command_paths())
LEAVES = [words for words in PATHS if not any(words == longer[: len(words)] != longer for longer in PATHS)]


@functools.cache
def whole() -> App:
    """All commands; made once, as for the document of them."""
    return build_app(plain=True, eager=True)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_shows_an_example_of_itself(words: list[str]) -> None:
    text = help_text(words, whole())
    assert "For example:" in text
    example = " ".join(text.split("For example:")[1].split())
    # options of a group may stand before its word
    assert f"secondsite {words[0]}" in example
    assert words[-1] in example


def test_the_document_of_commands_is_what_help_says() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == commands_markdown(), (
        "run: python -m secondsite.cli.document docs/commands.md"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_its_shell_accepts(shell: str, tmp_path: Path) -> None:
    ran = run_command("completion", shell)
    assert ran.code == 0, ran.err
    assert "test-failover" in ran.out
    assert "secondsite" in ran.out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here; its words were checked, not its syntax")
    script = tmp_path / "script"
    script.write_text(ran.out)
    check = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run_command("completion", "bash").out)
    program = (
        f"source {script}; complete -p secondsite | grep -o -- '-F [^ ]*' | cut -c4- > {tmp_path}/name; "
        f"COMP_WORDS=(secondsite test-f); COMP_CWORD=1; $(cat {tmp_path}/name); echo ${{COMPREPLY[@]}}"
    )
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["test-failover"], ran.stderr


def test_version_needs_none_of_the_heavy_libraries() -> None:
    """Start-up is fast by what is not imported; a limit in milliseconds would fail on busy machines."""
    heavy = ("numpy", "httpx", "libvirt", "pydantic", "starlette", "uvicorn", "cryptography", "zstandard")
    program = (
        "import sys; from secondsite.cli.main import main; main(['--version']); main(['status']); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # the client's messages need the model, and no more
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ("rescue --store U --key-file F list", "rescue list --store U --key-file F"),
        ("rescue --store=U --key-file F boot shop", "rescue boot --store=U --key-file F shop"),
        ("rescue --store list --key-file F list", "rescue list --store list --key-file F"),
        ("rescue list --store U", "rescue list --store U"),
        ("rescue --help", "rescue --help"),
        ("rescue --store U", "rescue --store U"),
        ("status --watch", "status --watch"),
        ("", ""),
    ],
)
def test_options_may_stand_before_the_word_of_a_group(given: str, moved: str) -> None:
    assert move_options(given.split()) == moved.split()


def test_what_is_not_understood_is_told_in_three_sentences() -> None:
    ran = run_command("points", "export", "shop")
    assert ran.code == 2
    assert ran.out == ""
    happened, cause, action, code = ran.err.splitlines()
    assert happened.startswith("error: The command was not understood: ")
    assert cause.startswith("  cause:  ")
    assert action == "  action: See `secondsite points export --help`; nothing was done."
    assert code == "  code:   cli.usage"


def test_an_unknown_command_is_told() -> None:
    ran = run_command("protekt")
    assert ran.code == 2
    assert "protekt" in ran.err


def test_a_gateway_that_is_not_there_is_told_with_its_socket(tmp_path: Path) -> None:
    ran = run_command("status", "--gateway", tmp_path / "none.sock")
    assert ran.code == 5
    assert f"No gateway answers at {tmp_path}/none.sock: No such file or directory." in ran.err
    assert "secondsite gateway --config FILE" in ran.err
