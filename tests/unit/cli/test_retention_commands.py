"""Holds and the retention's report as commands, over a real socket and store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.model.retention import RetentionPolicy
from support.machines import SHOP
from support.target import Target, running_target


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with running_target(tmp_path, points=6) as made:
        yield made


def _until(condition: Callable[[], bool], what: str) -> None:
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + 30
    while not condition():
        assert clock.monotonic() < end, f"{what} did not happen"
        clock.wait(never, 0.02)


def _numbers(target: Target) -> list[int]:
    return [point.number for point in target.replica.journal.points()]


def test_a_point_is_held_listed_and_released_and_the_retention_looks_at_once(target: Target) -> None:
    ran = target.run(
        "points", "hold", "shop", "3", "--reason", "before the upgrade", "--until", "30d", "--name", "upgrade"
    )
    assert ran.code == 0, ran.err
    end = SystemClock().utc() + timedelta(days=30)
    assert f"point 3 of shop (2026-05-04 12:00:05Z) is held until {end:%Y-%m-%d %H:}" in ran.out
    assert "`secondsite points release shop upgrade`" in ran.out
    shown = target.run("points", "list", "shop")
    assert "HELD BY" in shown.out
    line = next(line for line in shown.out.splitlines() if line.strip().startswith("3 "))
    assert f"upgrade until {end:%Y-%m-%d %H:}" in line
    assert line.endswith("before the upgrade")
    (held,) = [point for point in target.run("points", "list", "shop", "--json").json if point["heldBy"]]
    assert (held["number"], held["heldBy"][0]["holder"]) == (3, "hold:upgrade")
    target.retention.policies.machines[SHOP] = RetentionPolicy.parse("latest")
    assert "only the latest point" in target.run("status").out
    target.retention.start()
    _until(lambda: _numbers(target) == [3, 7], "all but the held and the latest point to go")
    wrong = target.run("points", "release", "shop", "upgrad")
    assert wrong.code == 3
    assert "shop has no hold upgrad; there are upgrade (point 3)." in wrong.err
    # a pass comes once a minute: only being told makes it look now
    ran = target.run("points", "release", "shop", "upgrade", "--json")
    assert [one["number"] for one in ran.json] == [3]
    _until(lambda: _numbers(target) == [7], "the released point to go")
    assert {"point.held", "point.released", "retention.waiting"} <= set(target.events.codes())


def test_a_hold_without_an_end_or_with_a_wrong_one_is_refused(target: Target) -> None:
    ran = target.run("points", "hold", "shop", "3", "--reason", "forever")
    assert ran.code == 2
    assert "--until" in ran.err
    ran = target.run("points", "hold", "shop", "3", "--reason", "late", "--until", "2020-01-01")
    assert ran.code == 2
    assert "it is past: here it is" in ran.err
    ran = target.run("points", "hold", "shop", "99", "--reason", "none", "--until", "1h")
    assert ran.code == 3
    assert target.replica.journal.state().pins == ()


def test_the_report_shows_what_stays_and_what_it_costs(target: Target) -> None:
    shown = target.run("retention", "show")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    kept = "every point for 2 h, one every 1 h for 1 d, one every 2 h for 7 d"
    assert lines[0] == f"shop: {kept} (by this gateway's configuration)"
    assert lines[1] == "  points     6 listed, 2026-05-04 12:00:00Z to 2026-05-04 12:00:25Z"
    assert lines[2].endswith(", no bases")
    assert lines[3] == "  next pass  nothing to do"
    assert "a point every 5.0 s, over 25.0 s" in lines[4]
    assert "one every 1 h: 100 % of what arrives stays (assumed" in lines[6]
    other = target.run("retention", "show", "shop", "--policy", "latest", "--json").json
    (report,) = other
    stored = [point["sentBytes"] for point in target.run("points", "list", "shop", "--json").json]
    assert report["trial"]
    assert report["journalBytes"] == sum(stored)
    assert report["storedBytesPerDay"] == pytest.approx(sum(stored[1:]) / 25 * 86400)
    assert report["nextPass"] == {"merged": 0, "into": 0, "leaving": 5, "held": 0, "settling": False}
    assert _numbers(target) == [2, 3, 4, 5, 6, 7], "nothing was changed"
    wrong = target.run("retention", "show", "shop", "--policy", "all:2x")
    assert wrong.code == 2
    assert "it is not a number with s, min, h or d" in wrong.err


def test_after_a_merge_the_report_knows_what_it_left(target: Target) -> None:
    before = target.run("retention", "show", "shop", "--json").json[0]
    target.retention.policies.machines[SHOP] = RetentionPolicy.parse("all:5s,10s:1d")
    target.retention.start()
    _until(lambda: len(_numbers(target)) < 6, "a merge")
    journal, policy = target.replica.journal, target.retention.policies.of(SHOP)
    _until(lambda: not target.retention.next_pass(journal, policy).groups, "the end of the pass")
    after = target.run("retention", "show", "shop", "--json").json[0]
    assert after["storedBytesPerDay"] == pytest.approx(before["storedBytesPerDay"], rel=0.3)
    (share,) = after["cost"]["shares"]
    assert share["measuredSeconds"] == pytest.approx(10)
    # what stays is what the segments of the merged points come to, of what had arrived
    assert 0.3 < share["share"] <= 1.0
