"""The cycles of one replication: from the newest captured instant to the next, as far as the cache has room.

Without room capture pauses while the host's own tracking goes on (bitmap mode): nothing is lost, and the
guest notices nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from secondsite.base.units import KIB, format_bytes
from secondsite.fabrics.base import Quiesce
from secondsite.gateway.source import plan
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.committing import PENDING_MAX, Committing
from secondsite.gateway.source.cycle import Bench, Captured, run_cycle
from secondsite.gateway.source.healing import Healing
from secondsite.gateway.source.orders import Orders
from secondsite.gateway.source.pace import Pace
from secondsite.gateway.source.status import BITMAP_MODE, Board
from secondsite.gateway.source.wishes import PointWish, Wishes
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState
from secondsite.model.states import ItemEvent, ItemState
from secondsite.transfer.errors import CacheFull
from secondsite.transfer.protocols import CommittedPoint

RETRY_SECONDS = 1.0
# What a cycle is thought to need in the cache before anything is known.
ROOM_BYTES_MIN = 256 * KIB


class Cycles:
    """Run by the capturing thread alone; `changed`, the replication's one lock, guards where it stands."""

    def __init__(
        self,
        bench: Bench,
        board: Board,
        line: Committing,
        *,
        pace: Pace,
        orders: Orders,
        wishes: Wishes,
        healing: Healing,
        checkpoints: Checkpoints,
        changed: threading.Condition,
        stop: threading.Event,
    ) -> None:
        self._bench = bench
        self._board = board
        self._line = line
        self._pace = pace
        self._orders = orders
        self._wishes = wishes
        self._healing = healing
        self._checkpoints = checkpoints
        self._changed = changed
        self._stop = stop
        self._room_needed = ROOM_BYTES_MIN
        self.tip = ""  # checkpoint of the newest captured instant
        self.sizes: dict[DiskId, int] = {}  # at the tip
        self.committed: CommittedPoint | None = None
        self.tidy_due = False

    def stand_at(self, tip: str, disks: Sequence[DiskState], committed: CommittedPoint | None) -> None:
        """Count from there on; the caller holds `changed`."""
        self.committed = committed
        self.tip = tip
        self.sizes = {disk.id: disk.size_bytes for disk in disks}
        self._healing.expect(disks)
        self.tidy_due = True

    def tidy(self) -> None:
        """Forget checkpoints that nothing counts from any more, when something was committed."""
        with self._changed:
            tidy, self.tidy_due = self.tidy_due, False
            committed = self.committed.checkpoint if self.committed else None
        if tidy:
            self._checkpoints.tidy(committed=committed, newest=self.tip)

    def run(self, wishes: list[PointWish]) -> bool:
        """Run one; False when nothing of the source can be counted from any more, and a plan is due."""
        if not self._has_room():
            self._pause("the cache is full")
            return True
        with self._changed:
            if self._orders.rests:
                return True  # since it was due: checkpoints were tidied up meanwhile
            application, started = self._pace.begun(asked_for=bool(wishes))
        generation = self._line.generation
        since = plan.stand_in(self.tip, self._checkpoints.usable())
        if since is None:
            return False
        name = self._checkpoints.next_name(self._board.epoch)
        try:
            captured = run_cycle(
                self._bench,
                since=since,
                parent=self.tip,
                parent_sizes=self.sizes,
                epoch=self._board.epoch,
                checkpoint=name,
                quiesce=Quiesce.FREEZE if application else Quiesce.NONE,
                # with nothing on its way a cycle larger than the cache has to wait for the link to take it
                wait=not self._line.pending,
                cancel=self._stop,
                on_abandon=self._remember_need,
            )
        except CacheFull:
            self._pause("the cache has no room for what changed")
            self._board.watch_rpo()
            self._bench.clock.wait(self._stop, RETRY_SECONDS)
            return True
        with self._changed:
            if application:
                self._pace.asked_the_guest(started)
            self._wishes.captured(name, wishes)
        self.sealed(captured, generation)
        self._room_needed = max(ROOM_BYTES_MIN, captured.sent_bytes)
        if not self._orders.paused_by:
            self._board.move_if(ItemEvent.CYCLE_BEGUN, only=(ItemState.PAUSED,))
        if self._board.state is ItemState.PROTECTED:
            self._board.well()
        return True

    def sealed(self, captured: Captured, generation: int) -> None:
        """Hand a captured instant to the committing thread, unless what it stands on was given up."""
        proposal = captured.proposal
        with self._changed:
            taken = self._line.add(captured, generation)
            if taken:
                self.tip = proposal.checkpoint
                self.sizes = {disk.id: disk.size_bytes for disk in proposal.disks}
                self.tidy_due = True
        if not taken:
            captured.abandon()
            return
        self._healing.captured(captured)
        self._board.captured(
            proposal.checkpoint,
            changed_bytes=proposal.changed_bytes,
            sent_bytes=captured.sent_bytes,
            seconds=captured.seconds,
        )

    def _has_room(self) -> bool:
        with self._changed:
            if not self._line.pending:
                return True
            return len(self._line.pending) < PENDING_MAX and self._bench.shipper.has_room(self._room_needed)

    def _remember_need(self, encoded_bytes: int) -> None:
        self._room_needed = max(self._room_needed, 2 * encoded_bytes, ROOM_BYTES_MIN)

    def _pause(self, why: str) -> None:
        """Bitmap mode: capture stops while the host's tracking goes on; the guest notices nothing."""
        text = (
            f"Capture of {self._bench.name} pauses, {why} ({format_bytes(self._bench.shipper.queued_bytes)} "
            "wait to be sent); the host goes on tracking changes, and no full copy will be needed."
        )
        self._board.warn(BITMAP_MODE, text)
        self._board.move_if(ItemEvent.PAUSED, unless=(ItemState.PAUSED,))
        while not self._stop.is_set() and not self._orders.rests and not self._has_room():
            with self._changed:
                self._changed.wait(0.2)
            self._board.watch_rpo()
        with self._changed:
            self._pace.hurry()
