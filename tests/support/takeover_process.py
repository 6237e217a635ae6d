"""``python -m support.takeover_process look|take-over|become|hand-over ROOT NAME``, for tests that kill."""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.server.main import Server
from secondsite.server.standby.becoming import become_standby
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.takeover import SENTENCE, Order, take_over
from secondsite.server.survival.handover import HandOverState
from support.lonely import config_of
from support.until import until


def run(what: str, root: Path, name: str) -> None:
    """One of them, on the files that are there."""
    config = config_of(root, name)
    if what == "become":
        become_standby(config)
    elif what == "hand-over":
        _hand_over(Server(config))
    elif what == "look":
        found = Follower(config, SystemClock()).look()
        assert not found.problem, found.problem
    else:
        take_over(Follower(config, SystemClock()), Order(SENTENCE))


def _hand_over(server: Server) -> None:
    server.start()
    try:
        assert server.services is not None
        assert server.services.survival is not None
        handover = server.services.survival.handover
        assert handover is not None
        handover.begin(lambda *_: None)
        until(lambda: handover.status().state is HandOverState.HANDED_OVER, "handed over")
    finally:
        server.stop()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
