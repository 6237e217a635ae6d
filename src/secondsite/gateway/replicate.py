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
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, format_bytes
from secondsite.fabrics.base import Quiesce
from secondsite.fabrics.errors import HypervisorUnreachable, SourceGone, SourceOff, TrackingLost
from secondsite.gateway import plan
from secondsite.gateway.authority import claim_machine, exchange_keys
from secondsite.gateway.checkpoints import Checkpoints
from secondsite.gateway.committing import PENDING_MAX, Committing, Hooks
from secondsite.gateway.cycle import Bench, Captured, DisksAppeared, TooMuchUntracked, run_cycle
from secondsite.gateway.facts import drop_copy, drop_sealed, gather
from secondsite.gateway.healing import ClockWatch, Healing
from secondsite.gateway.messages import PointTaken
from secondsite.gateway.resync import come_to_terms, look_for_adoption, open_compared, tell_compared
from secondsite.gateway.seed import Progress, Seed, read_note
from secondsite.gateway.seedexport import SeedExport
from secondsite.gateway.status import Board
from secondsite.gateway.wishes import PointNotTaken, PointWish, Wishes
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.machines import PowerState
from secondsite.model.states import ItemEvent, ItemState
from secondsite.transfer.errors import CacheFull, TransferCancelled
from secondsite.transfer.protocols import CommittedPoint, Link, TargetHead, error_code
from secondsite.transfer.shipping import Shipment

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 30.0
# What a cycle is thought to need in the cache before anything is known.
ROOM_BYTES_MIN = 256 * KIB
# While a machine is off: soon enough to see what is done to its images, and a look costs a millisecond.
OFF_SECONDS = 1.0


@dataclass(frozen=True)
class Policy:
    """How often a machine is copied."""

    copy_frequency_seconds: float = 5.0
    application_consistent_frequency_seconds: float | None = None


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
    ) -> None:
        self._bench = bench
        self._us = us
        self._link = link
        self._policy = policy
        self._wrapped_keys = dict(wrapped_keys)
        self.board = board
        self._stagger_seconds = stagger_seconds
        self._clock: Clock = bench.clock
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._wishes = Wishes()
        self._line = Committing(bench, board, self._wishes, self._changed, self._stop)
        self._hooks = Hooks(self._on_committed, self._on_given_up)
        self._planned = False
        self._held = False
        self._off = False  # the machine is switched off, and looked at until it is not
        self._tip = ""  # checkpoint of the newest captured instant
        self._sizes: dict[DiskId, int] = {}  # at the tip
        self._checkpoints = Checkpoints(bench.source)
        self._healing = Healing(bench, self._checkpoints)
        self._clock_watch = clock_watch or ClockWatch(bench.clock, bench.events)
        self._media = media
        if media is not None:
            media.attach(bench, self._checkpoints, self._wrapped_keys, board, self._stop)
        self._committed: CommittedPoint | None = None
        self._tidy_due = False
        self._room_needed = ROOM_BYTES_MIN
        self._due = 0.0
        self._application_due = 0.0
        self._threads = [
            threading.Thread(target=self._capture_root, name=f"capture {bench.name}", daemon=True),
            threading.Thread(target=self._commit_root, name=f"commit {bench.name}", daemon=True),
        ]

    # -- from outside ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._due = self._clock.monotonic() + self._stagger_seconds
        every = self._policy.application_consistent_frequency_seconds
        self._application_due = self._clock.monotonic() + (every or 0.0)
        for thread in self._threads:
            thread.start()

    def set_policy(self, policy: Policy) -> None:
        """Cycle by another policy from the next cycle on."""
        with self._changed:
            self._policy = policy
            self.board.frequency_seconds = policy.copy_frequency_seconds
            self._due = min(self._due, self._clock.monotonic() + policy.copy_frequency_seconds)
            self._changed.notify_all()

    def hurry(self) -> None:
        """Run the next cycle now."""
        with self._changed:
            self._due = self._clock.monotonic()
            self._changed.notify_all()

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
                self._learn(error)
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
        if self._off:
            self._off = self._bench.source.power() is PowerState.OFF
            self._pause_for(OFF_SECONDS * self._off)
        elif not self._planned:
            self._settle()
        elif self._held:
            self._pause_for(RETRY_SECONDS_MAX)
            self._replan()
        else:
            self._cycle_when_due()

    def _failed(self, error: SecondsiteError, failures: int) -> None:
        retry = error.retryable
        self.board.trouble(error, critical=not retry)
        away = isinstance(error, SourceGone | HypervisorUnreachable) or error_code(error) == "link.down"
        if away and not self._line.pending:
            self._move_if(ItemEvent.PAUSED, unless=(ItemState.ENABLING, ItemState.PAUSED))
        if isinstance(error, TrackingLost):
            self._healing.tracking_lost(error)
        # a cycle that failed leaves nothing: it is tried again as it is, also with the link cut
        if not retry or isinstance(error, TrackingLost):
            self._replan()
        if isinstance(error, SourceOff):
            self._off = True
            return
        wait = RETRY_SECONDS * 2 ** min(failures - 1, 5)
        self._pause_for(min(wait, RETRY_SECONDS_MAX) if retry else RETRY_SECONDS_MAX)

    def _learn(self, error: DisksAppeared | TooMuchUntracked) -> None:
        """A capture showed what the plan has to see to before it is repeated."""
        if isinstance(error, DisksAppeared):
            self._healing.appeared = error.disks
        else:
            self._healing.needs_slices(error.sizes)
        self._replan()

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
            sealed = [s for s in self._shipments() if s.proposal is not None]
            facts = gather(
                self._us, self._bench, head, sealed, healing=self._healing, known=self._checkpoints
            )
            if self._take(plan.next_step(facts), head, sealed):
                return

    def _take(self, step: plan.Step, head: TargetHead, sealed: list[Shipment]) -> bool:
        """Do one step of the plan; True when it is complete."""
        self.board.known(head.point, head.epoch)
        self._bench.mending.asked(head.point)
        if self._media is not None and self._media.takes(step, head):
            return True
        match step:
            case plan.Hold(claimant, epoch):
                self._hold(claimant, epoch)
                return True
            case plan.Claim(reason):
                claim_machine(self._link, self._bench, head, reason)
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

    def _hold(self, claimant: str, epoch: int) -> None:
        text = f"{self._bench.name} is held: {claimant} is its writer since epoch {epoch}; a person decides"
        self.board.warn("replicate.held", text, critical=True)
        self._move_if(ItemEvent.PAUSED, unless=(ItemState.PAUSED,))
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
        elif point is not None and self._committed != point:
            self._bench.expect_tables(point)
        with self._changed:
            self._held, self._planned = False, True
            self._committed = point
            self._tip = step.parent
            self._sizes = {disk.id: disk.size_bytes for disk in disks}
            self._healing.expect(disks)
            self._tidy_due = True
            for shipment in sealed:
                assert shipment.proposal is not None
                self._line.pending.append(Captured(shipment, shipment.proposal, None))
            self._changed.notify_all()
        if point is not None:
            self._move_if(ItemEvent.CYCLE_BEGUN, unless=(ItemState.PROTECTED,))
        self.board.well()

    def _copy(self, step: plan.Copy, head: TargetHead) -> None:
        """First copy or resynchronisation; returns once its point is committed."""
        self.board.move(ItemEvent.RESYNC_BEGUN if step.resync else ItemEvent.FIRST_COPY_BEGUN)
        self._held = False
        progress = Progress(self._clock)
        self.board.progress = progress
        shipment = next((s for s in self._shipments() if read_note(s) is not None), None)
        compared = open_compared(
            self._bench, self._link, self.board, head, step, committed=self._committed, cancel=self._stop
        )
        if not step.resume:
            self._checkpoints.drop_all()
        seed = Seed(
            self._bench,
            epoch=head.epoch,
            fresh=head.point is None,
            name_checkpoint=lambda: self._checkpoints.next_name(head.epoch),
            progress=progress,
            cancel=self._stop,
            on_wait=self._waiting_for_room,
            compared=compared,
            before_slice=look_for_adoption(self._bench, self._link, head),
        )
        captured = seed.run(shipment if step.resume else None)
        tell_compared(self._bench, progress, captured, compared)
        self._sealed(captured, self._line.generation)
        with self._changed:
            while self._line.pending and not self._stop.is_set():
                self._changed.wait(0.5)
            done = self._committed is not None and self._committed.checkpoint == captured.proposal.checkpoint
            self._planned = done
            self._tidy_due = True
        self.board.progress = None
        if done:
            self._healing.copied()
            self.board.well()

    def _waiting_for_room(self, waiting: bool) -> None:
        if waiting:
            self.board.warn("replicate.cache-full", "The copy waits for room in the cache: the link is slow.")
        else:
            self.board.well()

    def _cycle_when_due(self) -> None:
        """Wait for the next cycle's time (or a wish), tidy up meanwhile, then run it."""
        with self._changed:
            if not self._something_to_do():
                # once: whatever wakes it (also a new policy) is looked at by the next round
                self._changed.wait(max(0.0, self._due - self._clock.monotonic()))
            if self._stop.is_set() or not self._planned:
                return
            tidy, self._tidy_due = self._tidy_due, False
            wishes = list(self._wishes.open)
            due = self._clock.monotonic() >= self._due
        self.board.watch_rpo()
        if tidy:
            committed = self._committed.checkpoint if self._committed else None
            self._checkpoints.tidy(committed=committed, newest=self._tip)
        if wishes or due:
            self._cycle(wishes)

    def _something_to_do(self) -> bool:
        return bool(self._stop.is_set() or self._wishes.open or self._tidy_due or not self._planned)

    def _cycle(self, wishes: list[PointWish]) -> None:
        if not self._has_room():
            self._pause("the cache is full")
            return
        policy = self._policy
        started = self._clock.monotonic()
        every = policy.application_consistent_frequency_seconds
        application = bool(wishes) or (every is not None and started >= self._application_due)
        self._due = started + policy.copy_frequency_seconds
        generation = self._line.generation
        since = plan.stand_in(self._tip, self._checkpoints.usable())
        if since is None:
            self._replan()
            return
        name = self._checkpoints.next_name(self.board.epoch)
        try:
            captured = run_cycle(
                self._bench,
                since=since,
                parent=self._tip,
                parent_sizes=self._sizes,
                epoch=self.board.epoch,
                checkpoint=name,
                quiesce=Quiesce.FREEZE if application else Quiesce.NONE,
                # with nothing on its way a cycle larger than the cache has to wait for the link to take it
                wait=not self._line.pending,
                cancel=self._stop,
                on_abandon=self._remember_need,
            )
        except CacheFull:
            self._pause("the cache has no room for what changed")
            self._pause_for(RETRY_SECONDS)
            return
        if application:
            self._application_due = started + (every or 0.0)
        with self._changed:
            self._wishes.captured(name, wishes)
        self._sealed(captured, generation)
        self._room_needed = max(ROOM_BYTES_MIN, captured.sent_bytes)
        self._move_if(ItemEvent.CYCLE_BEGUN, only=(ItemState.PAUSED,))
        if self.board.state is ItemState.PROTECTED:
            self.board.well()

    def _sealed(self, captured: Captured, generation: int) -> None:
        """Hand a captured instant to the committing thread, unless what it stands on was given up."""
        proposal = captured.proposal
        with self._changed:
            taken = self._line.add(captured, generation)
            if taken:
                self._tip = proposal.checkpoint
                self._sizes = {disk.id: disk.size_bytes for disk in proposal.disks}
                self._tidy_due = True
        if not taken:
            captured.abandon()
            return
        self._healing.captured(captured)
        self.board.captured(
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
        self.board.warn("replicate.bitmap-mode", text)
        self._move_if(ItemEvent.PAUSED, unless=(ItemState.PAUSED,))
        while not self._stop.is_set() and not self._has_room():
            with self._changed:
                self._changed.wait(0.2)
            self.board.watch_rpo()
        self._due = self._clock.monotonic()

    # -- committing -----------------------------------------------------------------------------

    def _commit_root(self) -> None:
        self._line.run(self._hooks)

    def _on_committed(self, _captured: Captured, point: CommittedPoint) -> None:
        self._move_if(ItemEvent.POINT_COMMITTED, unless=(ItemState.ENABLING, ItemState.DISABLING))
        with self._changed:
            self._committed = point
            self._tidy_due = True

    def _on_given_up(self) -> None:
        self._planned = False

    # -- small things ---------------------------------------------------------------------------

    def _shipments(self) -> list[Shipment]:
        return self._bench.shipper.shipments(self._bench.machine)

    def _move_if(
        self, event: ItemEvent, *, unless: tuple[ItemState, ...] = (), only: tuple[ItemState, ...] = ()
    ) -> None:
        state = self.board.state
        if state is ItemState.DISABLING or state in unless or (only and state not in only):
            return
        self.board.move(event)

    def _pause_for(self, seconds: float) -> None:
        self.board.watch_rpo()
        self._clock.wait(self._stop, seconds)
