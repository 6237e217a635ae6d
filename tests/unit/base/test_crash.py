"""A crash point kills by SIGKILL, at the pass asked for, and only when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

CODE = """
from secondsite.base.crash import crash_point, mark
HERE = mark("test.here")
for number in range(3):
    crash_point(HERE)
    print(number, flush=True)
"""


def _run(at: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "SECONDSITE_CRASH_AT"}
    if at:
        environment["SECONDSITE_CRASH_AT"] = at
    return subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )


def test_nothing_happens_unless_asked() -> None:
    assert _run(None).stdout.split() == ["0", "1", "2"]
    assert _run("test.there").returncode == 0


def test_dies_at_the_first_and_at_the_third_pass() -> None:
    first, third = _run("test.here"), _run("test.here:3")
    assert first.returncode == third.returncode == -signal.SIGKILL
    assert first.stdout.split() == []
    assert third.stdout.split() == ["0", "1"]
