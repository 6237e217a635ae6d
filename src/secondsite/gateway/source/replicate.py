"""The loop of one protected machine: find out where it stands, copy it, then cycle for ever.

Two threads. The capturing one is the only one that talks to the source, and asks `plan.next_step` what to do
whenever it does not know; the committing one waits for the target, in the order of capture, and after each
commit folds the side logs. Captures go on while earlier ones are still being sent: what bounds them is the
cache. A commit that fails for good abandons everything captured after it and makes the loop plan again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.errors import HypervisorUnreachable, SourceGone, SourceOff, TrackingLost
from secondsite.gateway.messages.gateway import PointTaken
from secondsite.gateway.source import plan
from secondsite.gateway.source.authority import claim_machine, exchange_keys
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.committing import Committing, Hooks
from secondsite.gateway.source.copying import Copier
from secondsite.gateway.source.cycle import Bench, Captured, DisksAppeared, TooMuchUntracked
from secondsite.gateway.source.cycling import Cycles
from secondsite.gateway.source.facts import drop_copy, drop_sealed, gather
from secondsite.gateway.source.healing import ClockWatch, Healing
from secondsite.gateway.source.orders import CaptureRests, Orders
from secondsite.gateway.source.pace import Pace, Policy
from secondsite.gateway.source.resync import come_to_terms
from secondsite.gateway.source.seedexport import SeedExport
from secondsite.gateway.source.status import Board
from secondsite.gateway.source.wishes import PointNotTaken, Wishes
from secondsite.model.failover import NOT_COPIED
from secondsite.model.ids import KeyId
from secondsite.model.machines import PowerState
from secondsite.model.states import ItemEvent, ItemState
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.protocols import CommittedPoint, Link, TargetHead, error_code
from secondsite.transfer.shipping import Shipment

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 30.0
# While a machine is off: soon enough to see what is done to its images, and a look costs a millisecond.
OFF_SECONDS = 1.0
# While it rests: how often it is looked at whether the newest point has become too old.
REST_SECONDS = 1.0


class Replication:
    """One machine. `start` once, `stop` keeps everything for the next process, `unprotect` removes it."""

    def __init__(
        self,
        bench: Bench,
        *,
        us: str,
        link: Link,
        policy: Policy,
        wrapped_keys: Mapping[KeyId, bytes],
        board: Board,
        stagger_seconds: float = 0.0,
        clock_watch: ClockWatch | None = None,
        media: SeedExport | None = None,
        orders: Orders | None = None,
    ) -> None:
        self._bench = bench
        self._us = us
        self._link = link
        self._orders = orders or Orders()
        self._wrapped_keys = dict(wrapped_keys)
        self.board = board
        board.paused_by = self._orders.paused_by
        self._stagger_seconds = stagger_seconds
        self._clock = bench.clock
        self._pace = Pace(policy, bench.clock)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._wishes = Wishes()
        self._line = Committing(bench, board, self._wishes, self._changed, self._stop)
        self._hooks = Hooks(self._on_committed, self._on_given_up)
        self._planned = False
        self._held = False
        self._capturing = False  # a cycle is, until it is on its way
        self._off = False  # the machine is switched off, and looked at until it is not
        self._checkpoints = Checkpoints(bench.source)
        self._healing = Healing(bench, self._checkpoints)
        self._copier = Copier(bench, link, board, self._checkpoints, self._orders, self._pace, self._stop)
        self._clock_watch = clock_watch or ClockWatch(bench.clock, bench.events)
        self._media = media
        if media is not None:
            media.attach(bench, self._checkpoints, self._wrapped_keys, board, self._stop)
        self._cycles = Cycles(
            bench,
            board,
            self._line,
            pace=self._pace,
            orders=self._orders,
            wishes=self._wishes,
            healing=self._healing,
            checkpoints=self._checkpoints,
            changed=self._changed,
            stop=self._stop,
        )
        self._threads = [
            threading.Thread(target=self._capture_root, name=f"capture {bench.name}", daemon=True),
            threading.Thread(target=self._commit_root, name=f"commit {bench.name}", daemon=True),
        ]

    # -- from outside ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._pace.begin(self._stagger_seconds)
        for thread in self._threads:
            thread.start()

    def set_policy(self, policy: Policy) -> None:
        """Cycle by another policy from the next cycle on."""
        with self._changed:
            self._pace.change(policy)
            self._bench.level = policy.level
            self.board.frequency_seconds = policy.copy_frequency_seconds
            self.board.rpo_threshold_seconds = policy.rpo_threshold_seconds
            self._changed.notify_all()

    def set_orders(self, *, paused_by: str, resync: int) -> None:
        """Rest or go on, compare everything or not, from now on. A slice that is being read ends first."""
        with self._changed:
            resumed = self._orders.paused_by and not paused_by
            self._orders.paused_by, self._orders.resync = paused_by, resync
            self.board.paused_by = paused_by
            if resumed:
                self._planned = False  # what it came to before may have been to rest
                self._pace.hurry()
            self._changed.notify_all()

    def hurry(self) -> None:
        """Run the next cycle now."""
        with self._changed:
            self._pace.hurry()
            self._changed.notify_all()

    def drain(self) -> bool:
        """Begin no cycle any more; True once all that was captured is committed, or given up."""
        with self._changed:
            self._orders.ending = True
            self._changed.notify_all()
            return not self._capturing and not self._line.pending

    def stop(self) -> None:
        """End the threads; sealed instants stay in the cache, tables are closed in order."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for table in self._bench.tables.values():
            table.close()

    def unprotect(self) -> None:
        """End it and remove everything of ours here, at the source and in the cache. Repeatable."""
        self.board.move(ItemEvent.DISABLED)
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for shipment in self._bench.shipper.shipments(self._bench.machine):
            shipment.discard()
        for table in self._bench.tables.values():
            table.remove()
        self._bench.source.release()

    def take_point(self, *, seconds_max: float) -> PointTaken:
        """Make an application-consistent point now and wait for its commit. Raises PointNotTaken."""
        with self._changed:
            if by := self._orders.paused_by:
                raise PointNotTaken(machine=self._bench.name, seconds=0, why=f"it was paused by {by}")
            wish = self._wishes.add()
            self._changed.notify_all()
        self._clock.wait(wish.done, seconds_max)
        if wish.taken is None:
            with self._changed:
                self._wishes.withdraw(wish)
            why = f"it is {self.board.state.value}"
            raise PointNotTaken(machine=self._bench.name, seconds=seconds_max, why=why)
        return wish.taken

    # -- capturing ------------------------------------------------------------------------------

    def _capture_root(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._step()
                failures = 0
            except TransferCancelled:
                if not self._stop.is_set():
                    self._replan()
            except (DisksAppeared, TooMuchUntracked) as error:
                self._healing.learn(error)
                self._replan()
            except CaptureRests:
                self._replan()
            except SecondsiteError as error:
                failures += 1
                self._failed(error, failures)
            except Exception as error:  # a thread's root: told, and tried again from the facts
                failures += 1
                log.exception("replication of %s failed", self._bench.name)
                text = f"replication of {self._bench.name} failed: {type(error).__name__}: {error}"
                self.board.warn("replicate.internal-error", text, critical=True)
                self._replan()
                self._pause_for(min(RETRY_SECONDS_MAX, RETRY_SECONDS * 2**failures))

    def _step(self) -> None:
        self._clock_watch.look()
        if self._orders.rests:
            self._rest()
        elif self._off:
            self._off = self._bench.source.power() is PowerState.OFF
            self._pause_for(OFF_SECONDS * self._off)
        elif not self._planned:
            self._settle()
        elif self._held:
            self._pause_for(RETRY_SECONDS_MAX)
            self._replan()
        else:
            self._cycle_when_due()

    def _rest(self) -> None:
        """Nothing is captured, by order; what was captured goes on its way, to its commit."""
        if self._orders.paused_by:
            self.board.move_if(ItemEvent.PAUSED, unless=(ItemState.PAUSED,))
        if not self._planned:
            self._settle()
        self._cycles.tidy()
        with self._changed:
            if self._orders.rests and not self._stop.is_set() and self._planned and not self._cycles.tidy_due:
                self._clock.wait_on(self._changed, REST_SECONDS)
        self.board.watch_rpo()

    def _failed(self, error: SecondsiteError, failures: int) -> None:
        retry = error.retryable or (failures < 8 and error_code(error) == "link.peer-not-allowed")  # yet
        self.board.trouble(error, critical=not retry)
        away = isinstance(error, SourceGone | HypervisorUnreachable) or error_code(error) == "link.down"
        if away and not self._line.pending:
            self.board.move_if(ItemEvent.PAUSED, unless=(ItemState.ENABLING, ItemState.PAUSED))
        if isinstance(error, TrackingLost):
            self._healing.tracking_lost(error)
        # a cycle that failed leaves nothing: it is tried again as it is, also with the link cut
        if not retry or isinstance(error, TrackingLost):
            self._replan()
        if isinstance(error, SourceOff):
            self._off = True
            return
        wait = RETRY_SECONDS * 2 ** (min(failures - 1, 5) if retry else 5)
        self._pause_for(min(wait, RETRY_SECONDS_MAX))

    def _replan(self) -> None:
        """Ask the facts again; what is already captured stays on its way."""
        with self._changed:
            self._planned = False

    def _settle(self) -> None:
        """From the facts to a tip to cycle from: the steps of the plan, until one of them is `Cycle`."""
        self._wrapped_keys.update(self._healing.take_in())
        while not self._stop.is_set():
            with self._changed:
                if self._line.pending:  # captured by this process: they have their own thread and order
                    self._changed.wait(0.5)
                    self.board.watch_rpo()
                    continue
            head = self._link.head(self._bench.machine)  # only now: before their commits it is an older one
            sealed = [s for s in self._bench.shipper.shipments(self._bench.machine) if s.proposal is not None]
            facts = gather(
                self._us,
                self._bench,
                head,
                sealed,
                healing=self._healing,
                known=self._checkpoints,
                ordered=self._orders.why_compare,
            )
            if self._take(plan.next_step(facts), head, sealed):
                return

    def _take(self, step: plan.Step, head: TargetHead, sealed: list[Shipment]) -> bool:
        """Do one step of the plan; True when it is complete."""
        # held, the newest point is not ours, or is of a time that is over: its age is no RPO of this copy
        self.board.known(None if isinstance(step, plan.Hold) else head.point, head.epoch)
        self._bench.mending.asked(head.point)
        if isinstance(step, plan.Copy | plan.Adopt) and self._rests():
            return True
        if self._media is not None and self._media.takes(step, head):
            return True
        match step:
            case plan.Hold(claimant, epoch):
                self._hold(claimant, epoch)
                return True
            case plan.Claim():
                claim_machine(self._link, self._bench, head, step)
            case plan.Settle():
                sealed[0].discard()
                self._bench.void_tables("a point was committed whose acknowledgement was lost")
            case plan.Drop(count, why):
                drop_sealed(self._bench, sealed[-count:], why)
            case plan.DropSeeding(why):
                drop_copy(self._bench, why)
            case plan.Adopt(adoption):
                exchange_keys(self._link, self._bench, self._wrapped_keys, None)
                return come_to_terms(self._bench, self._link, self.board, adoption, self._stop)
            case plan.Copy():
                exchange_keys(self._link, self._bench, self._wrapped_keys, None if sealed else head.point)
                self._copy(step, head)
                return True
            case plan.Cycle():
                exchange_keys(self._link, self._bench, self._wrapped_keys, None if sealed else head.point)
                self._go_on(step, head, sealed)
                return True
        return False

    def _rests(self) -> bool:
        with self._changed:
            if self._orders.rests:
                self._planned = True  # as far as it goes; resuming plans again
            return self._orders.rests

    def _hold(self, claimant: str, epoch: int) -> None:
        text = f"{self._bench.name} is held: {claimant} is its writer since epoch {epoch}; a person decides"
        self.board.warn(NOT_COPIED, text, critical=True)
        self.board.move_if(ItemEvent.PAUSED, unless=(ItemState.PAUSED,))
        with self._changed:
            self._held = self._planned = True

    def _go_on(self, step: plan.Cycle, head: TargetHead, sealed: list[Shipment]) -> None:
        """Cycle from the target's newest point, or from what an earlier process had sealed after it."""
        point = head.point
        newest = sealed[-1].proposal if sealed else None
        disks = newest.disks if newest is not None else point.disks if point is not None else ()
        if sealed:
            # their side logs went with the process that captured them
            self._bench.void_tables("instants are on their way that an earlier process captured")
        elif point is not None and self._cycles.committed != point:
            self._bench.expect_tables(point)
        with self._changed:
            self._held, self._planned = False, True
            self._cycles.stand_at(step.parent, disks, point)
            for shipment in sealed:
                assert shipment.proposal is not None
                self._line.pending.append(Captured(shipment, shipment.proposal, None))
            self._changed.notify_all()
        if point is not None and not self._orders.paused_by:
            self.board.move_if(ItemEvent.CYCLE_BEGUN, unless=(ItemState.PROTECTED,))
        elif point is None:
            # an earlier process sealed the first point: the copy ends with its commit, which comes by itself
            self.board.move_if(ItemEvent.FIRST_COPY_BEGUN, only=(ItemState.ENABLING,))
        self.board.well()

    def _copy(self, step: plan.Copy, head: TargetHead) -> None:
        """First copy or resynchronisation; returns once its point is committed."""
        self._held = False
        captured, order = self._copier.run(step, head, self._cycles.committed)
        self._cycles.sealed(captured, self._line.generation)
        with self._changed:
            while self._line.pending and not self._stop.is_set():
                self._changed.wait(0.5)
            done = (
                self._cycles.committed is not None
                and self._cycles.committed.checkpoint == captured.proposal.checkpoint
            )
            self._planned = done
            self._cycles.tidy_due = True
        self.board.progress = None
        if done:
            self._healing.copied()
            self._orders.copied(order)
            self.board.well()

    def _cycle_when_due(self) -> None:
        """Wait for the next cycle's time (or a wish), tidy up meanwhile, then run it."""
        with self._changed:
            if not self._something_to_do():
                # once: whatever wakes it (also a new policy) is looked at by the next round
                self._clock.wait_on(self._changed, self._pace.seconds_left())
            if self._stop.is_set() or not self._planned or self._orders.rests:
                return
            wishes = list(self._wishes.open)
            due = self._pace.is_due()
            self._capturing = True
        try:
            self.board.watch_rpo()
            self._cycles.tidy()
            compare = bool(self._orders.why_compare)
            if compare or ((wishes or due) and not self._cycles.run(wishes)):
                self._replan()
        finally:
            self._capturing = False

    def _something_to_do(self) -> bool:
        ordered = self._orders.rests or self._orders.why_compare
        return bool(
            self._stop.is_set() or self._wishes.open or self._cycles.tidy_due or not self._planned or ordered
        )

    # -- committing -----------------------------------------------------------------------------

    def _commit_root(self) -> None:
        self._line.run(self._hooks)

    def _on_committed(self, _captured: Captured, point: CommittedPoint) -> None:
        self.board.move_if(ItemEvent.POINT_COMMITTED, unless=(ItemState.ENABLING, ItemState.DISABLING))
        with self._changed:
            self._cycles.committed = point
            self._cycles.tidy_due = True

    def _on_given_up(self) -> None:
        self._planned = False

    # -- small things ---------------------------------------------------------------------------

    def _pause_for(self, seconds: float) -> None:
        self.board.watch_rpo()
        self._clock.wait(self._stop, seconds)
