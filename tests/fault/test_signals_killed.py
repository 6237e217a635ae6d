"""A target killed while it holds the last clean point, keeps an alert, or takes a dismissal in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base import crash
from secondsite.gateway.target import signals
from secondsite.gateway.target.signals import doubts_of, hold_of
from secondsite.journal.episodes import KeptEpisode, read_episodes
from support.signals_process import SUSPICIOUS, Target

pytestmark = pytest.mark.fault

ALERT_MARKS = [signals.AFTER_HOLD, signals.AFTER_EPISODE]
DISMISS_MARKS = [signals.AFTER_DISMISSAL]
POINTS = SUSPICIOUS + 6


def run(root: Path, *what: str, crash_at: str = "") -> tuple[int, list[str]]:
    """Its end, and the codes of its events."""
    environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "support.signals_process", str(root), *what]
    done = subprocess.run(
        command, env=environment, timeout=60, check=False, stdout=subprocess.PIPE, text=True
    )
    return done.returncode, done.stdout.split()


def pins(root: Path) -> dict[str, int]:
    return {pin.holder: pin.number for pin in Target(root).journal.state().pins}


def episodes(root: Path) -> list[KeptEpisode]:
    return read_episodes(Target(root).journal)


def test_every_mark_is_in_a_list() -> None:
    ours = {mark for mark in crash.MARKS if mark.startswith("signals.")}
    assert ours == {*ALERT_MARKS, *DISMISS_MARKS}


@pytest.mark.parametrize("mark", ["", *ALERT_MARKS])
def test_a_killed_alert_is_whole_after_the_next_point(tmp_path: Path, mark: str) -> None:
    ended, told = run(tmp_path, "commit", str(POINTS), crash_at=mark)
    assert ended == (-signal.SIGKILL if mark else 0)
    assert told == ([] if mark else ["signals.suspicious"])
    journal = Target(tmp_path).journal
    count = len(journal.points())
    if mark:
        ended, told = run(tmp_path, "commit", str(count + 1))
        assert (ended, told) == (0, ["signals.suspicious"])
    [episode] = episodes(tmp_path)
    clean = episode.found.clean
    assert clean == episode.found.first - 1
    assert pins(tmp_path) == {hold_of(episode.found.first): clean}
    points = journal.points()
    assert doubts_of(journal, points).clean == clean


def test_a_restart_long_after_tells_nothing_again(tmp_path: Path) -> None:
    assert run(tmp_path, "commit", str(POINTS)) == (0, ["signals.suspicious"])
    ended, told = run(tmp_path, "commit", str(POINTS + 200))
    assert ended == 0
    assert told.count("signals.suspicious") <= 1, "told again by the first point after the start at most"
    assert len(pins(tmp_path)) == len(episodes(tmp_path)) == 1
    assert run(tmp_path, "commit", str(POINTS + 201)) == (0, [])


@pytest.mark.parametrize("mark", DISMISS_MARKS)
def test_a_killed_dismissal_lets_go_of_its_hold(tmp_path: Path, mark: str) -> None:
    run(tmp_path, "commit", str(POINTS))
    count = len(Target(tmp_path).journal.points())
    ended, _ = run(tmp_path, "dismiss", crash_at=mark)
    assert ended == -signal.SIGKILL
    [episode] = episodes(tmp_path)
    assert episode.dismissed is not None
    assert pins(tmp_path), "the process ended before it let go"
    assert run(tmp_path, "commit", str(count + 1)) == (0, [])
    assert pins(tmp_path) == {}
