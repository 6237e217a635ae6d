"""A machine that was taken over is moved to another point three times and then kept: each reads as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secondsite.base.errors import RemoteError
from secondsite.gateway.messages.failover import ChangePoint, CommitFailover
from secondsite.model.failover import FailoverState
from support.two_sites import KEPT, LOST, OPERATION, Two, two_sites


@pytest.fixture
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def test_three_points_are_tried_and_the_fourth_is_kept(two: Two) -> None:
    words = [b"first", b"other", b"third", b"final"]
    points = {word: two.take_point(word * 1000) for word in words}
    two.start(point=str(points[b"final"]))
    two.ended(FailoverState.COMPLETED)
    order = [b"first", b"third", b"other"]
    with two.at_b() as client:
        for word in order:
            request = ChangePoint(point=str(points[word]), confirm=LOST)
            client.change_point(OPERATION, request)
            client.change_point(OPERATION, request)  # an answer that was lost
            assert two.ended(FailoverState.COMPLETED).point == points[word]
            assert two.read("vda", 64 * 1024, 5) == word
            assert len(two.b_fabric.recovered()) == 1, "the machine of the former point is gone"
            assert len(client.exports("shop")) == 1
        status = client.failover(OPERATION)
        assert status.points_tried == (points[b"final"], points[b"first"], points[b"third"])
        assert two.journal.head().epoch == 2, "whose the machine is did not change"
        client.commit_failover(OPERATION, CommitFailover(confirm=KEPT))
        assert two.ended(FailoverState.COMMITTED).point == points[b"other"]
        with pytest.raises(RemoteError, match=r"has no recovery point|is not possible now"):
            client.change_point(OPERATION, ChangePoint(point=str(points[b"final"]), confirm=LOST))
    assert two.b_fabric.runs(two.machine)
    assert two.journal.state().pins == ()
