"""The committing half of a replication: captured instants, committed at the target in their order.

An instant that cannot be committed takes all later ones with it: they are counted from it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.source.cycle import Bench, Captured
from secondsite.gateway.source.status import Board
from secondsite.gateway.source.wishes import Wishes
from secondsite.model.events import Severity
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.protocols import CommittedPoint

log = logging.getLogger(__name__)

AFTER_COMMIT = mark("replicate.after-commit")

# Each captured instant waiting to be sent holds its list of segments in memory: about 100 KiB at the worst.
PENDING_MAX = 500


@dataclass(frozen=True)
class Hooks:
    """What the capturing half is told; called without the lock, and with it."""

    committed: Callable[[Captured, CommittedPoint], None]
    given_up: Callable[[], None]  # under the lock: plan again before the next capture


class Committing:
    """Instants on their way, and the thread that commits them. `changed` is the replication's one lock."""

    def __init__(
        self, bench: Bench, board: Board, wishes: Wishes, changed: threading.Condition, stop: threading.Event
    ) -> None:
        self._bench = bench
        self._board = board
        self._wishes = wishes
        self._changed = changed
        self._stop = stop
        self.pending: deque[Captured] = deque(maxlen=PENDING_MAX + 1)
        self.generation = 0  # how often everything was given up; a cycle under way looks at it

    def add(self, captured: Captured, generation: int) -> bool:
        """Take the next instant in; False when what it stands on was given up. The caller holds `changed`."""
        if generation != self.generation:
            self._wishes.given_up(captured.proposal.checkpoint)
            return False
        self.pending.append(captured)
        self._changed.notify_all()
        return True

    def run(self, hooks: Hooks) -> None:
        """The thread."""
        while not self._stop.is_set():
            with self._changed:
                if not self.pending:
                    self._changed.wait(1.0)
                    continue
                captured = self.pending[0]
            try:
                point = captured.shipment.commit(self._stop)
                crash_point(AFTER_COMMIT)
                self._done(captured, point, hooks)
            except TransferCancelled:
                with (
                    self._changed
                ):  # the shipper closes first, the loop a moment later: not to spin till then
                    self._changed.wait(0.1)
            except SecondsiteError as error:
                self._board.trouble(error, critical=not error.retryable)
                self.give_up(str(error), hooks)
            except Exception as error:  # a thread's root: told; what was captured is captured again
                log.exception("committing %s failed", self._bench.name)
                text = f"committing {self._bench.name} failed: {type(error).__name__}: {error}"
                self._board.warn("replicate.internal-error", text, critical=True)
                self.give_up(text, hooks)

    def _done(self, captured: Captured, point: CommittedPoint, hooks: Hooks) -> None:
        if captured.logs is not None:
            captured.logs.fold(epoch=point.epoch, point=point.number)
        if self._bench.fence is not None:
            self._bench.fence.committed(self._bench.machine)
        self._board.committed(point)
        self._bench.mending.committed(point)
        with self._changed:
            self._wishes.committed(captured, point)
        hooks.committed(captured, point)
        if self._bench.beside is not None:
            self._bench.beside.committed(point)
        with self._changed:
            if self.pending and self.pending[0] is captured:
                self.pending.popleft()
            self._changed.notify_all()

    def give_up(self, why: str, hooks: Hooks) -> None:
        """Abandon everything captured and not committed: it counts again from the last committed point."""
        with self._changed:
            given_up = list(self.pending)
            self.pending.clear()
            self.generation += 1
            for captured in reversed(given_up):
                self._wishes.given_up(captured.proposal.checkpoint)
                # tables and their logs are let go of before the capturing thread plans again
                with contextlib.suppress(SecondsiteError):
                    captured.abandon()
            self._bench.mending.given_up()
            hooks.given_up()
            self._changed.notify_all()
        text = f"{len(given_up)} captured instants of {self._bench.name} are given up: {why}"
        self._bench.events.emit("replicate.abandoned", Severity.WARNING, text, machine=self._bench.machine)
