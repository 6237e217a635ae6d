"""What is told at once, what is counted, and when it is told that something is over."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secondsite.server.alerts.groups import ENDS, Group, Kind, Tell, happened, over, quiet_ended

QUIET = timedelta(minutes=15)
START = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = Tell(Kind.FIRST)
SOURCE = Path(__file__).resolve().parents[4] / "src" / "secondsite"


def run(line: str, *, lasts: bool = True) -> list[tuple[float, str]]:
    """A life of one subject: `x` it happens, `o` it is over, a number waits minutes. What is told, when."""
    group: Group | None = None
    now, told = START, []
    for word in line.split():
        tell: Tell | None = None
        if word == "x":
            group, tell = happened(group, 1, lasts=lasts, quiet=QUIET, now=now)
        elif word == "o" and group is not None:
            group, tell = over(group, quiet=QUIET, now=now)
        elif word.isdigit():
            end = now + timedelta(minutes=int(word))
            while group is not None and group.quiet_until is not None and group.quiet_until <= end:
                now = group.quiet_until
                group, tell = quiet_ended(group, quiet=QUIET, now=now)
                told += _shown(tell, now)
            now, tell = end, None
        told += _shown(tell, now)
    return told


def _shown(tell: Tell | None, now: datetime) -> list[tuple[float, str]]:
    if tell is None:
        return []
    words = [tell.kind.value, *([str(tell.more)] if tell.more else []), *(["wrong"] if tell.wrong else [])]
    return [((now - START).total_seconds() / 60, " ".join(words))]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x", [(0, "First wrong")]),
        ("x x x 14", [(0, "First wrong")]),
        ("x x x 16", [(0, "First wrong"), (15, "More 2 wrong")]),
        ("x 5 x 11 x 20", [(0, "First wrong"), (15, "More 1 wrong"), (30, "More 1 wrong")]),
        ("x 3 o", [(0, "First wrong"), (3, "Over")]),
        ("x 600 o", [(0, "First wrong"), (600, "Over")]),
        ("x 600 o 1 x", [(0, "First wrong"), (600, "Over")]),  # comes again within the quiet time: counted
        ("x 3 o 1 x 1 o 1 x 1 o 20", [(0, "First wrong"), (3, "Over"), (15, "More 2")]),  # it comes and goes
        ("x 3 o 1 x 20", [(0, "First wrong"), (3, "Over"), (15, "More 1 wrong")]),
        ("x x 3 o 20", [(0, "First wrong"), (3, "Over 1")]),
        ("x 3 o 20 x", [(0, "First wrong"), (3, "Over"), (23, "First wrong")]),
        ("o x o o", [(0, "First wrong"), (0, "Over")]),
    ],
)
def test_lives(line: str, told: list[tuple[float, str]]) -> None:
    assert run(line) == told


def test_what_has_no_end_is_told_anew_after_the_quiet_time() -> None:
    assert run("x 16 x", lasts=False) == [(0, "First wrong"), (16, "First wrong")]
    assert run("x 16 o", lasts=False) == [(0, "First wrong")]


def test_a_thousand_a_minute_are_one_message_each_quiet_time() -> None:
    assert len(run(" ".join("x " * 100 + "1" for _ in range(60)))) <= 6


def test_every_code_that_ends_or_is_ended_is_said_somewhere() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "groups.py")
    for code in {*ENDS, *(code for codes in ENDS.values() for code in codes)}:
        assert re.search(rf'"{re.escape(code)}"', text), code
