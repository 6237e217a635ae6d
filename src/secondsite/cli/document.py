"""Writes docs/commands.md from the commands' own ``--help``: ``python -m secondsite.cli.document FILE``."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondsite.base.files import replace_file
from secondsite.cli.main import COMMANDS, DEFAULT, build_app

if TYPE_CHECKING:
    from cyclopts import App

WIDTH = 96
HEAD = """# Commands

Made from the commands' own `--help` by `python -m secondsite.cli.document docs/commands.md`; a test compares.

Exit codes: 0 done, 1 failed, 2 not understood, 3 not found, 4 refused (nothing was changed),
5 unavailable (the same command may succeed later), 6 damaged (stored bytes are not what was written),
130 ended by Ctrl-C. Every error says what happened, the likely cause, what to do, and a code.
"""


def command_paths(group: Mapping[str, Any] = COMMANDS) -> Iterator[list[str]]:
    """Every command as its words, groups before what is in them."""
    for name, target in group.items():
        if not name or name == DEFAULT:
            continue
        yield [name]
        if isinstance(target, dict):
            for words in command_paths(target):
                yield [name, *words]


def help_text(words: list[str], app: App | None = None) -> str:
    """What ``secondsite WORDS --help`` prints, without frames. app: made once for many."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False)
    (app or build_app(plain=True, eager=True)).help_print(words, console=console)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def commands_markdown() -> str:
    """The whole document."""
    parts, app = [HEAD], build_app(plain=True, eager=True)
    for words in command_paths():
        level = "##" if len(words) == 1 else "###"
        parts.append(f"{level} secondsite {' '.join(words)}\n\n```text\n{help_text(words, app)}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the document to the file named."""
    replace_file(Path(arguments[0]), commands_markdown().encode(), mode=0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
