"""The source side end to end in one process: memory fabric, real segments, real journal, real views."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency, PointProposal
from secondsite.model.states import ItemState
from secondsite.transfer.protocols import CommittedPoint, TargetHead
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


def test_planning_again_while_an_instant_is_committed_keeps_the_table(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head must not be one from before the commit: the next cycle would follow an older point."""
    replication = rig.open(frequency_seconds=3600)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    committing = threading.Event()
    head, commit = rig.memory_link.head, rig.memory_link.commit

    def slow_commit(proposal: PointProposal) -> CommittedPoint:
        replication._replan()
        committing.wait(2)
        return commit(proposal)

    def head_before_a_commit(machine: MachineId) -> TargetHead:
        found = head(machine)
        committing.set()
        rig.until(lambda: not replication._line.pending, "the commit")
        return found

    monkeypatch.setattr(rig.memory_link, "commit", slow_commit)
    monkeypatch.setattr(rig.memory_link, "head", head_before_a_commit)
    known = rig.codes()
    for _ in range(2):
        rig.scribble()
        replication.take_point(seconds_max=30)
        rig.until(lambda: replication._planned, "a plan")
    assert "replicate.abandoned" not in rig.codes(), rig.texts()
    assert rig.codes().count("capture.table-void") == known.count("capture.table-void"), rig.texts()
