"""One first copy or resynchronisation, from what it is compared with to the sealed instant it ends in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from secondsite.gateway.source import plan
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.cycle import Bench, Captured
from secondsite.gateway.source.firstcopying import Progress, Seed, read_note
from secondsite.gateway.source.orders import CaptureRests, Orders
from secondsite.gateway.source.pace import Pace
from secondsite.gateway.source.resync import look_for_adoption, open_compared, tell_compared
from secondsite.gateway.source.status import Board
from secondsite.model.states import ItemEvent
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.protocols import CommittedPoint, Link, TargetHead

# How often a first copy that waits looks whether it may begin.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Copier:
    """What copies of one machine are made with."""

    bench: Bench
    link: Link
    board: Board
    checkpoints: Checkpoints
    orders: Orders
    pace: Pace
    cancel: threading.Event

    def run(
        self, step: plan.Copy, head: TargetHead, committed: CommittedPoint | None
    ) -> tuple[Captured, int]:
        """The sealed instant, and the newest wish for a comparison when the copy began.

        committed: the point the tables speak of, if known. Raises what source, link and shipper raise;
        CaptureRests between slices while it is paused. What was copied so far is gone on with later.
        """
        bench, orders = self.bench, self.orders
        if head.point is None and not step.resume:
            self._wait_for_its_time()
        self.board.move(ItemEvent.RESYNC_BEGUN if step.resync else ItemEvent.FIRST_COPY_BEGUN)
        progress = Progress(bench.clock)
        self.board.progress = progress
        shipments = bench.shipper.shipments(bench.machine) if step.resume else []
        shipment = next((s for s in shipments if read_note(s) is not None), None)
        note = read_note(shipment) if shipment is not None else None
        order = note.order if note is not None else orders.resync
        if orders.why_compare and not step.resume:
            bench.void_tables(orders.why_compare)  # what they say is to be compared as well
            committed = None
        compared = open_compared(
            bench, self.link, self.board, head, step, committed=committed, cancel=self.cancel
        )
        if not step.resume:
            self.checkpoints.drop_all()
        seed = Seed(
            bench,
            epoch=head.epoch,
            fresh=head.point is None,
            name_checkpoint=lambda: self.checkpoints.next_name(head.epoch),
            progress=progress,
            cancel=self.cancel,
            on_wait=self._waiting_for_room,
            compared=compared,
            before_slice=self._before_slice(head),
            order=order,
        )
        captured = seed.run(shipment)
        tell_compared(bench, progress, captured, compared)
        return captured, order

    def _wait_for_its_time(self) -> None:
        """Raises CaptureRests once it did wait: what is to be done may be something else by then."""
        waited, start = False, self.orders.first_copy
        while start is not None and (waiting := start.waits(self.pace.policy.first_copy)) is not None:
            waited = True
            self.board.waits(waiting.text)
            self.orders.require_capture(self.bench.name)
            if self.bench.clock.wait(self.cancel, LOOK_SECONDS):
                raise TransferCancelled(what=f"the first copy of {self.bench.name}")
        self.board.waits("")
        if waited:
            raise CaptureRests(machine=self.bench.name, by="the policy, until the time it names")

    def _before_slice(self, head: TargetHead) -> Callable[[], None]:
        look = look_for_adoption(self.bench, self.link, head)

        def before() -> None:
            self.orders.require_capture(self.bench.name)
            look()

        return before

    def _waiting_for_room(self, waiting: bool) -> None:
        if waiting:
            self.board.warn("replicate.cache-full", "The copy waits for room in the cache: the link is slow.")
        else:
            self.board.well()
