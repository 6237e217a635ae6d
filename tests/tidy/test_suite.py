"""What the suite needs of the place it runs in, whoever starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def test_a_failed_comparison_of_contents_is_told_in_a_few_lines() -> None:
    """With CI set pytest explains megabytes line by line, for hours: the suite once ended in that."""
    assert "CI" not in os.environ


def test_commands_started_by_tests_can_be_interrupted() -> None:
    shown = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    made = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
