"""The source side end to end in one process: memory fabric, real segments, real journal, real views."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.points import Consistency
from secondsite.model.states import ItemState
from support.source_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_first_copy_becomes_the_first_point(rig: Rig) -> None:
    rig.scribble(50)
    expected = rig.content()
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: bool(rig.points()), "the first point")
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    assert rig.view(rig.points()[0].number) == expected


def test_ten_points_in_a_row_equal_the_source_at_their_instant(rig: Rig) -> None:
    rig.scribble(50)
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    expected: dict[int, dict[str, bytes]] = {}
    for _ in range(10):
        rig.scribble(30)
        content = rig.content()
        taken = replication.take_point(seconds_max=30)
        assert taken.consistency is Consistency.APPLICATION
        expected[taken.number] = content
    assert len(expected) == 10
    for number, content in expected.items():
        assert rig.view(number) == content
