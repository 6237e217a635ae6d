"""When a first copy begins: at its time, after a restart too, when a person does not wait, from media."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.common.firstcopy import FirstCopy, next_time
from secondsite.gateway.source.pace import Policy
from secondsite.model.policies import FirstCopyStart
from secondsite.model.states import ItemState
from support.source_rig import Rig

BERLIN = ZoneInfo("Europe/Berlin")
AT_TEN = FirstCopyStart(mode="scheduled", at="22:00")
OFFLINE = FirstCopyStart(mode="offline")
NOW = FirstCopyStart()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    ("now", "at", "then"),
    [
        ("2026-01-15T21:59:59+01:00", "22:00", "2026-01-15T22:00:00+01:00"),
        ("2026-01-15T22:00:00+01:00", "22:00", "2026-01-16T22:00:00+01:00"),
        ("2026-12-31T23:30:00+01:00", "00:15", "2027-01-01T00:15:00+01:00"),
        ("2026-03-28T23:00:00+01:00", "02:30", "2026-03-29T03:30:00+02:00"),  # a time that is left out
        ("2026-03-28T23:00:00+01:00", "22:00", "2026-03-29T22:00:00+02:00"),
        ("2026-10-24T22:00:00+02:00", "02:30", "2026-10-25T02:30:00+02:00"),  # the first of two
    ],
)
def test_the_next_time_is_the_walls(now: str, at: str, then: str) -> None:
    assert next_time(moment(now), at, BERLIN) == moment(then)


def test_the_moment_is_kept_and_a_new_one_is_chosen_with_a_new_policy(tmp_path: Path) -> None:
    clock = FakeClock(moment("2026-01-15T12:00:00+01:00"))
    path = tmp_path / "first-copies" / "m.json"

    def opened() -> FirstCopy:
        return FirstCopy(path, "shop", clock, BERLIN)

    waiting = opened().waits(AT_TEN)
    assert waiting is not None
    assert "waits until 2026-01-15 22:00 local time" in waiting.text
    clock.advance(9 * 3600)
    early = FirstCopyStart(mode="scheduled", at="05:00")
    moved = opened().waits(early)
    assert moved is not None
    assert moved.due == moment("2026-01-16T05:00:00+01:00")
    clock.advance(9 * 3600)
    assert opened().waits(early) is None  # at six: reached while the gateway was away
    assert opened().waits(AT_TEN) is None  # what was begun is not put off again
    opened().remove()
    assert opened().waits(OFFLINE) is not None
    opened().begin()
    assert opened().waits(OFFLINE) is None


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'{"due": "soon"}', b'{"at": "22:00", "due": "2026-01-01T00:00:00"}']
)
def test_a_damaged_record_is_as_none(tmp_path: Path, damage: bytes) -> None:
    clock = FakeClock(moment("2026-01-15T12:00:00+01:00"))
    path = tmp_path / "m.json"
    path.write_bytes(damage)
    waiting = FirstCopy(path, "shop", clock, BERLIN).waits(AT_TEN)
    assert waiting is not None
    assert waiting.due == moment("2026-01-15T22:00:00+01:00")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def begun(rig: Rig, clock: FakeClock, start: FirstCopyStart) -> FirstCopy:
    """A source process whose first copy goes by that; its loop runs by the real clock."""
    first_copy = FirstCopy(rig.directory / "first.json", "shop", clock, BERLIN)
    rig.orders.first_copy = first_copy
    replication = rig.open(start=False)
    replication.set_policy(Policy(copy_frequency_seconds=0.05, first_copy=start))
    replication.start()
    return first_copy


def note(rig: Rig) -> str:
    assert rig.replication is not None
    return rig.replication.board.show(spool_bytes=0).note


def test_it_waits_says_so_and_begins_at_its_time_also_after_a_restart(rig: Rig) -> None:
    clock = FakeClock(moment("2026-01-15T12:00:00+01:00"))
    begun(rig, clock, AT_TEN)
    rig.until(lambda: "waits until 2026-01-15 22:00" in note(rig), "it waits")
    assert rig.replication is not None
    board = rig.replication.board
    assert (board.state, board.show(spool_bytes=0).health.value) == (ItemState.ENABLING, "Normal")
    rig.close()
    begun(rig, clock, AT_TEN)
    rig.until(lambda: "waits until 2026-01-15 22:00" in note(rig), "it waits again")
    assert rig.points() == []
    clock.advance(10 * 3600)
    rig.until(lambda: len(rig.points()) > 1, "points")
    assert note(rig) == ""
    assert rig.codes().count("replicate.first-copy-waits") == 2  # once in each process


def test_a_person_or_another_policy_begins_it(rig: Rig) -> None:
    clock = FakeClock(moment("2026-01-15T12:00:00+01:00"))
    first_copy = begun(rig, clock, OFFLINE)
    rig.until(lambda: "waits for media" in note(rig), "it waits")
    assert rig.points() == []
    first_copy.begin()
    rig.until(lambda: len(rig.points()) > 0, "a point")


def test_a_pause_ends_the_waiting_and_a_policy_without_it_the_wait(rig: Rig) -> None:
    clock = FakeClock(moment("2026-01-15T12:00:00+01:00"))
    begun(rig, clock, AT_TEN)
    rig.until(lambda: "waits until" in note(rig), "it waits")
    replication = rig.replication
    assert replication is not None
    replication.set_orders(paused_by="maria", resync=0)
    rig.until(lambda: replication.board.state is ItemState.PAUSED, "Paused")
    replication.set_policy(Policy(copy_frequency_seconds=0.05, first_copy=NOW))
    replication.set_orders(paused_by="", resync=0)
    rig.until(lambda: len(rig.points()) > 0, "a point")
