"""How results and errors look: tables for people, JSON for programs, sentences for errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "unknown"


def console() -> Console:
    """Standard output for people. Without a terminal no line is cut short: it goes to a file or a program."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(width=width, highlight=False)


def print_json(value: object) -> None:
    """One JSON document, indented."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or the sentence `empty` when there are no rows. Columns ending in ``>`` align right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold"
        )
    count = 0
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
        count += 1
    if count:
        console().print(table)
    else:
        print(empty)


def error_text(error: SecondsiteError) -> str:
    """What happened, why, what to do, and the code to look it up by."""
    happened, cause, action = error.sentences()
    code = str(error.body.get("code", "")) if isinstance(error, RemoteError) else error.code
    return f"error: {happened}\n  cause:  {cause}\n  action: {action}\n  code:   {code}"


def print_error(error: SecondsiteError) -> None:
    """On standard error."""
    print(error_text(error), file=sys.stderr)


def exit_code(error: SecondsiteError) -> int:
    """By the error's outcome, also one the gateway reported."""
    outcome = error.remote_outcome if isinstance(error, RemoteError) else error.outcome
    return int(outcome) or int(Outcome.FAILED)


def short_time(text: str | None) -> str:
    """``2026-01-02T03:04:05.678901+00:00`` as ``2026-01-02 03:04:05Z``."""
    if not text:
        return UNKNOWN
    seconds = text[:19].replace("T", " ")
    return f"{seconds}Z" if text.endswith(("+00:00", "Z")) else text
