"""Ships segments over a link: from memory while the link keeps up, through the cache when it does not.

See `shipping` for the promises. A few workers (one a connection) take segments in the order of adding. A
failure that may pass stops all of them for a while, since it is the link's; one that will not pass ends the
shipment it belongs to. Memory is bounded by `memory_bytes_max` whatever the link does.
"""

from __future__ import annotations

import random
import threading
from collections import deque

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.base.uploads import Uploads
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.points import PointProposal, SegmentRef
from secondsite.transfer.bandwidth import MachineLimits
from secondsite.transfer.errors import CacheFull, HashMismatch, PayloadLost, ShipmentLost, TransferCancelled
from secondsite.transfer.protocols import CommittedPoint, Link, Payload, error_code
from secondsite.transfer.retry import RetryPolicy, retry
from secondsite.transfer.shipping import Shipment
from secondsite.transfer.spool import Batch, Spool
from secondsite.transfer.turns import LOOK_SECONDS, Item, Totals, Turns

# Two segments for each of four connections, and some: enough that no connection waits for the encoder.
MEMORY_BYTES_MAX = 64 * MIB
# How long `add` and `seal` wait for a living link to make room before they write to the cache. A link of
# 1 Gbit/s moves a whole window in half that time, and then nothing is written at all.
SPILL_SECONDS = 1.0
# A segment that arrives damaged that often is damaged where it is read from.
MISMATCHES_MAX = 5


class LinkShipper:
    """A `shipping.Shipper` over `link`, keeping in `spool` what cannot leave at once. Thread-safe."""

    def __init__(
        self,
        link: Link,
        spool: Spool,
        *,
        clock: Clock,
        chance: random.Random,
        events: EventSink,
        limits: MachineLimits | None = None,
        connections: int = 3,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        spill_seconds: float = SPILL_SECONDS,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._link = link
        self._spool = spool
        self._clock = clock
        self._chance = chance
        self._events = events
        self._turns = Turns(limits, connections)
        self._memory_bytes_max = memory_bytes_max
        self._spill_seconds = spill_seconds
        self._policy = policy or RetryPolicy()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._totals = Totals()
        self.uploads = Uploads()
        self._shipments = [_Shipment(self, batch) for batch in spool.batches()]
        for shipment in self._shipments:
            shipment.requeue()
        self._workers = [
            threading.Thread(target=self._work, name=f"ship-{i}", daemon=True) for i in range(connections)
        ]
        for worker in self._workers:
            worker.start()

    def begin(self, machine: MachineId, epoch: int) -> Shipment:
        """See `shipping.Shipper`."""
        if not self._spool.has_room(1):
            raise self._spool.full(1, None)
        shipment = _Shipment(self, self._spool.begin(machine, epoch))
        with self._changed:
            self._shipments.append(shipment)
        return shipment

    def shipments(self, machine: MachineId) -> list[Shipment]:
        """See `shipping.Shipper`."""
        with self._changed:
            return [s for s in self._shipments if s.machine == machine]

    def reopen(self, shipment: Shipment) -> Shipment:
        """See `shipping.Shipper`."""
        assert isinstance(shipment, _Shipment), "a shipment of this shipper"
        shipment.cancel.set()
        with self._changed:
            self._forget_waiting(shipment)
        shipment.batch.rewind()
        with self._changed:
            again = _Shipment(self, shipment.batch, first_order=shipment.next_order)
            self._shipments[self._shipments.index(shipment)] = again
        again.requeue()
        return again

    def has_room(self, size_bytes: int) -> bool:
        """See `shipping.Shipper`."""
        return self._spool.has_room(size_bytes)

    @property
    def queued_bytes(self) -> int:
        """See `shipping.Shipper`."""
        return self._totals.queued_bytes

    @property
    def sent_bytes(self) -> int:
        """See `shipping.Shipper`."""
        return self._totals.sent_bytes

    @property
    def link_is_up(self) -> bool:
        """Whether the last attempt to use the link worked."""
        return self._totals.failures == 0

    def close(self) -> None:
        """See `shipping.Shipper`."""
        self._closing.set()
        with self._changed:
            for shipment in self._shipments:
                shipment.cancel.set()
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    # -- what shipments call --------------------------------------------------------------------

    @property
    def changed(self) -> threading.Condition:
        """Guards everything that moves; notified whenever something did."""
        return self._changed

    @property
    def link(self) -> Link:
        """Where to."""
        return self._link

    def take_into_memory(self, item: Item, cancel: threading.Event | None) -> bool:
        """Queue a segment in memory when there is room for it soon; False: the cache must take it."""
        size_bytes = item.ref.stored_bytes
        with self._changed:
            end = self._clock.monotonic() + self._spill_seconds
            self.check(item.shipment, cancel)
            while not self._fits(size_bytes):
                left = end - self._clock.monotonic()
                if left <= 0 or self._totals.failures or self._totals.slow:
                    self._totals.slow = True
                    return False
                self._changed.wait(min(left, 0.1))
                self.check(item.shipment, cancel)
            self._totals.memory_bytes += size_bytes
            self.enqueue(item)
        return True

    def enqueue(self, item: Item) -> None:
        """Queue a segment; the caller holds `changed`."""
        self._totals.queue.append(item)
        self._totals.queued_bytes += item.ref.stored_bytes
        item.shipment.waiting[item.order] = item
        self._changed.notify_all()

    def check(self, shipment: _Shipment, cancel: threading.Event | None) -> None:
        """Raise the shipment's error, or TransferCancelled when somebody asked to stop."""
        if shipment.error is not None:
            raise shipment.error
        if self._closing.is_set() or shipment.cancel.is_set() or (cancel is not None and cancel.is_set()):
            raise TransferCancelled(what=f"changes of machine {shipment.machine}")

    def wait_for_room(self, shipment: _Shipment, cancel: threading.Event | None) -> None:
        """Wait until something was acknowledged (or a moment passed: other processes may free room too)."""
        with self._changed:
            self.check(shipment, cancel)
            self._changed.wait(0.5)
            self.check(shipment, cancel)

    def wait_for_link(self, shipment: _Shipment) -> None:
        """Give a living link a moment to take what is in memory, before the cache must."""
        end = self._clock.monotonic() + self._spill_seconds
        with self._changed:
            while shipment.waiting and not self._totals.failures and shipment.error is None:
                left = end - self._clock.monotonic()
                if left <= 0 or self._closing.is_set():
                    return
                self._changed.wait(min(left, 0.1))

    def spilled(self, item: Item) -> None:
        """The cache has it now: its memory is free."""
        with self._changed:
            if item.data is not None:
                item.data = None
                self._totals.memory_bytes -= item.ref.stored_bytes
                self._changed.notify_all()

    def drop(self, shipment: _Shipment) -> None:
        """Take a shipment out: nothing more of it is sent."""
        shipment.cancel.set()
        with self._changed:
            self._forget_waiting(shipment)
            if shipment in self._shipments:
                self._shipments.remove(shipment)
        shipment.batch.remove()
        with self._changed:
            self._changed.notify_all()

    def _forget_waiting(self, shipment: _Shipment) -> None:
        """Nothing more of it is sent; the caller holds `changed`."""
        for item in list(shipment.waiting.values()):
            if not item.busy:
                self._finish(item)
        self._totals.queue = deque(i for i in self._totals.queue if i.shipment is not shipment)

    def patiently(
        self, shipment: _Shipment, proposal: PointProposal, cancel: threading.Event
    ) -> CommittedPoint:
        """Commit, trying again for as long as it can help."""

        def on_error(error: SecondsiteError) -> None:
            self.check(shipment, cancel)
            if error_code(error) == "journal.segments-missing":
                shipment.resend()
                shipment.wait_sent(cancel)
            else:
                self._report(error)

        return retry(
            lambda: self._link.commit(proposal),
            policy=self._policy,
            clock=self._clock,
            chance=self._chance,
            cancel=cancel,
            on_error=on_error,
            what=f"the point of {proposal.machine_name}",
        )

    # -- workers --------------------------------------------------------------------------------

    def _fits(self, size_bytes: int) -> bool:
        held = self._totals.memory_bytes
        return not held or held + size_bytes <= self._memory_bytes_max

    def _work(self) -> None:
        """A worker's thread."""
        while (item := self._next()) is not None:
            try:
                self._send(item)
            except SecondsiteError as error:
                self._failed(item, error)
            except Exception as error:  # noqa: BLE001 - the thread's root: the shipment fails, the worker lives
                text = f"sending {item.ref.id} failed: {type(error).__name__}: {error}"
                self._events.emit(
                    "ship.internal-error", Severity.CRITICAL, text, machine=item.shipment.machine
                )
                lost = ShipmentLost(machine=item.shipment.machine, what=item.ref.id, why=str(error))
                self._failed(item, lost)

    def _next(self) -> Item | None:
        with self._changed:
            while not self._closing.is_set():
                item = self._turns.next(self._totals.queue)
                if item is None:
                    self._changed.wait(LOOK_SECONDS if self._totals.queue else 1.0)
                    continue
                if item.shipment.error is None:
                    self._turns.begin(item)
                    item.failures_before = self._totals.failures
                    return item
                self._finish(item)  # of a shipment that failed for good
        return None

    def _send(self, item: Item) -> None:
        payload: Payload | None = item.data
        if payload is None:
            payload = item.shipment.batch.payload(item.ref)
        self.uploads.tried(again=item.tries > 0)
        item.tries += 1
        try:
            self._link.send_segment(item.shipment.machine, item.ref, payload, cancel=item.shipment.cancel)
        except BaseException:
            self.uploads.failed()
            raise
        self.uploads.arrived(item.ref.stored_bytes)
        item.shipment.batch.acknowledge(item.order, item.ref)
        with self._changed:
            recovered, self._totals.failures = self._totals.failures > 0, 0
            self._totals.sent_bytes += item.ref.stored_bytes
            self._finish(item)
        if recovered:
            self._events.emit("ship.link-back", Severity.INFORMATION, "segments reach the other site again")

    def _failed(self, item: Item, error: SecondsiteError) -> None:
        if error_code(error) == HashMismatch.code:
            item.mismatches += 1
            if item.mismatches >= MISMATCHES_MAX:
                error = ShipmentLost(machine=item.shipment.machine, what=item.ref.id, why=str(error))
        if not error.retryable or item.shipment.cancel.is_set():
            if isinstance(error, PayloadLost):
                error = ShipmentLost(machine=item.shipment.machine, what=item.ref.id, why=str(error))
            with self._changed:
                if item.shipment.error is None:
                    item.shipment.error = error
                self._finish(item)
            return
        with self._changed:
            self._turns.end(item)
            self._totals.queue.appendleft(item)
            # workers that were under way together count as one failure
            attempt = self._totals.failures = max(self._totals.failures, item.failures_before + 1)
            first = attempt == 1 and item.failures_before == 0
            self._changed.notify_all()
        self._report(error, first=first)
        # each worker waits for itself; the first that gets through clears the count for all
        self._clock.wait(self._closing, self._policy.seconds(attempt, self._chance))

    def _report(self, error: SecondsiteError, *, first: bool = True) -> None:
        if first:
            self._events.emit("ship.link-trouble", Severity.WARNING, str(error))

    def _finish(self, item: Item) -> None:
        """The caller holds `changed`."""
        self._turns.end(item)
        if item.data is not None:
            item.data = None
            self._totals.memory_bytes -= item.ref.stored_bytes
        if item.shipment.waiting.pop(item.order, None) is not None:
            self._totals.queued_bytes -= item.ref.stored_bytes
        if self._totals.memory_bytes <= self._memory_bytes_max // 2:
            self._totals.slow = False
        self._changed.notify_all()


class _Shipment:
    """A `shipping.Shipment`; its own lock only orders `add`s, everything else is under the shipper's."""

    def __init__(self, shipper: LinkShipper, batch: Batch, *, first_order: int = 0) -> None:
        """first_order: at least so high are the orders it gives to segments."""
        self._shipper = shipper
        self.batch = batch
        self.cancel = threading.Event()
        self.error: SecondsiteError | None = None
        self.waiting: dict[int, Item] = {}  # by order: added, and not at the target yet
        self._refs: dict[int, SegmentRef] = batch.entries()
        self.next_order = max(first_order, *(order + 1 for order in self._refs), 0)

    @property
    def machine(self) -> MachineId:
        """See `shipping.Shipment`."""
        return self.batch.machine

    @property
    def epoch(self) -> int:
        """See `shipping.Shipment`."""
        return self.batch.epoch

    @property
    def number(self) -> int:
        """See `shipping.Shipment`."""
        return self.batch.number

    @property
    def proposal(self) -> PointProposal | None:
        """See `shipping.Shipment`."""
        return self.batch.proposal

    @property
    def refs(self) -> tuple[SegmentRef, ...]:
        """See `shipping.Shipment`."""
        with self._shipper.changed:
            return tuple(self._refs[order] for order in sorted(self._refs))

    @property
    def note(self) -> bytes:
        """See `shipping.Shipment`."""
        return self.batch.note

    def set_note(self, note: bytes, *, wait: bool = False, cancel: threading.Event | None = None) -> None:
        """See `shipping.Shipment`."""
        self._settle(wait=wait, cancel=cancel)
        self.batch.set_note(note)

    def add(
        self,
        ref: SegmentRef,
        data: bytes | bytearray | memoryview,
        *,
        wait: bool = False,
        cancel: threading.Event | None = None,
    ) -> None:
        """See `shipping.Shipment`."""
        assert self.proposal is None, "a sealed shipment takes no more segments"
        with self._shipper.changed:
            item = Item(self, self.next_order, ref, data)
            self.next_order += 1
            self._refs[item.order] = ref
        try:
            while not self._shipper.take_into_memory(item, cancel):
                try:
                    self.batch.keep(item.order, item.ref, data)
                except CacheFull:
                    if not wait:
                        raise
                    self._shipper.wait_for_room(self, cancel)
                else:
                    item.data = None
                    with self._shipper.changed:
                        self._shipper.enqueue(item)
                    return
        except BaseException:
            with self._shipper.changed:
                self._refs.pop(item.order, None)
            raise

    def seal(
        self, proposal: PointProposal, *, wait: bool = False, cancel: threading.Event | None = None
    ) -> None:
        """See `shipping.Shipment`."""
        self._settle(wait=wait, cancel=cancel)
        self.batch.seal(proposal)

    def commit(self, cancel: threading.Event | None = None) -> CommittedPoint:
        """See `shipping.Shipment`."""
        proposal = self.proposal
        assert proposal is not None, "seal before commit"
        stop = cancel or self.cancel
        self.wait_sent(stop)
        point = self._shipper.patiently(self, proposal, stop)
        self._shipper.drop(self)
        return point

    def discard(self) -> None:
        """See `shipping.Shipment`."""
        self._shipper.drop(self)

    # -- inside the package ---------------------------------------------------------------------

    def requeue(self) -> None:
        """After a restart: queue what the target does not have."""
        with self._shipper.changed:
            for order, ref in self.batch.pending():
                self._shipper.enqueue(Item(self, order, ref, None))

    def resend(self) -> None:
        """The target misses segments it had acknowledged: send all again. Raises ShipmentLost."""
        for order, ref in sorted(self._refs.items()):
            if not self.batch.unacknowledge(ref):
                what = self.proposal.checkpoint if self.proposal else "now"
                why = f"the target misses segments, and {ref.id} is not in the cache any more"
                raise ShipmentLost(machine=self.machine, what=what, why=why)
            with self._shipper.changed:
                self._shipper.enqueue(Item(self, order, ref, None))

    def wait_sent(self, cancel: threading.Event) -> None:
        """Wait until the target has everything."""
        with self._shipper.changed:
            while self.waiting or self.error is not None:
                self._shipper.check(self, cancel)
                self._shipper.changed.wait(0.5)

    def _settle(self, *, wait: bool, cancel: threading.Event | None) -> None:
        """Everything added is at the target or in the cache."""
        self._shipper.wait_for_link(self)
        with self._shipper.changed:
            self._shipper.check(self, None)
            in_memory = [item for item in self.waiting.values() if item.data is not None]
        for item in in_memory:
            # a worker may finish it meanwhile; written in vain then, and marked as sent
            while (data := item.data) is not None:
                try:
                    self.batch.keep(item.order, item.ref, data)
                except CacheFull:
                    if not wait:
                        raise
                    self._shipper.wait_for_room(self, cancel)
                else:
                    self._shipper.spilled(item)
                    break
        with self._shipper.changed:
            # one that was refused for good meanwhile is neither kept nor sent
            self._shipper.check(self, None)
