"""The upkeep of every journal of a store, beside replication and never before it.

One thread for all machines, a step a machine in turn: it is bulk work on the target's disk and must not crowd
out the segments that arrive. What is cut off goes on at the next start; nothing waits for it but room.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.target.upkeep import Upkeep, decide_now
from secondsite.journal.chain import Journal, machines
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.merge import Cancelled
from secondsite.journal.promote import OpenBase
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.points import Point
from secondsite.model.retention import Decision, Policies, RetentionPolicy
from secondsite.transfer.bandwidth import TokenBucket
from secondsite.transfer.errors import TransferCancelled

log = logging.getLogger(__name__)

# How often a machine is looked at; what its policy drops may stay that much longer.
PASS_SECONDS = 60.0
# After a failure (a full volume, say) the work is tried again this much later.
RETRY_SECONDS = 60.0
TELL_AGAIN_SECONDS = 3600.0


def none_verified(_machine: MachineId) -> Collection[int]:
    """Where nothing is scrubbed."""
    return ()


class Retention:
    """Promotes, merges and deletes, as the policies say. `start` once, `close` at the end.

    `committed` fits `receive.GatewayReceiver(on_commit=…)`.
    open_base: gives a journal's opener of bases; None: no bases, all stays in the journals.
    verified: points that a scrub proved. bytes_per_second: of guest data merged; None: as fast as it goes.
    """

    def __init__(
        self,
        store: ObjectStore,
        policies: Policies,
        *,
        vault: VaultKey,
        open_base: Callable[[Journal], OpenBase] | None,
        clock: Clock,
        events: EventSink,
        verified: Callable[[MachineId], Collection[int]] = none_verified,
        bytes_per_second: float | None = None,
    ) -> None:
        self._store = store
        self.policies = policies
        self._vault = vault
        self._open_base = open_base
        self._clock = clock
        self._events = events
        self._verified = verified
        self._bucket = TokenBucket(bytes_per_second, clock)
        self._lock = threading.Lock()
        self._machines: dict[MachineId, Upkeep] = {}
        self._not_before: dict[MachineId, float] = {}  # after a failure
        self._told: dict[MachineId, tuple[str, float]] = {}  # the failure told last, and when
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="retention", daemon=True)

    def start(self) -> None:
        """Take up what an earlier process left, then look at each machine once a minute."""
        for machine in machines(self._store):
            self._add(Journal(self._store, machine, self._vault))
        self._thread.start()

    def close(self) -> None:
        """Finish the step at hand, or give it up where it can be repeated, then stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def committed(self, journal: Journal, point: Point) -> None:
        """A point was committed; costs a look at it."""
        if journal.machine not in self._machines:
            self._add(journal)
        if point.parent_checkpoint is None:
            self._wake.set()  # a first copy goes into its base at once

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted."""
        with self._lock:
            self._machines.pop(machine, None)
            self._not_before.pop(machine, None)

    def look_now(self) -> None:
        """Look at every machine now, e.g. because a hold ended."""
        self._wake.set()

    @property
    def has_bases(self) -> bool:
        """Whether what leaves goes into bases; else the oldest point carries it."""
        return self._open_base is not None

    def next_pass(self, journal: Journal, policy: RetentionPolicy) -> Decision:
        """What the next pass would do by a policy; changes nothing."""
        return decide_now(
            journal.points(),
            journal.state(),
            policy,
            preferred=self._verified(journal.machine),
            clock=self._clock,
        )

    def _add(self, journal: Journal) -> None:
        machine = journal.machine
        upkeep = Upkeep(
            journal=journal,
            keys=KeyRing(self._store, machine, self._vault),
            policy=lambda: self.policies.of(machine),
            open_base=self._open_base(journal) if self._open_base is not None else None,
            verified=lambda: self._verified(machine),
            clock=self._clock,
            events=self._events,
            cancel=self._stop,
            pace=self._pace,
        )
        with self._lock:
            self._machines.setdefault(machine, upkeep)

    def _pace(self, count: int) -> None:
        with contextlib.suppress(TransferCancelled):  # the merge looks at `cancel` itself
            self._bucket.take(count, self._stop)

    def _root(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            with self._lock:
                left = list(self._machines.values())
            while left and not self._stop.is_set():
                # a step each: a machine with much to do does not keep the others waiting
                left = [upkeep for upkeep in left if not self._stop.is_set() and self._try(upkeep)]
            self._clock.wait(self._wake, PASS_SECONDS)

    def _try(self, upkeep: Upkeep) -> bool:
        """Whether the machine has more to do now."""
        machine = upkeep.journal.machine
        if self._clock.monotonic() < self._not_before.get(machine, 0.0):
            return False
        try:
            return upkeep.step()
        except Cancelled:
            return False
        except SecondsiteError as error:
            self._tell_failed(machine, f"the journal's upkeep could not go on: {error}")
        except Exception as error:  # a thread's root: told, and tried again
            log.exception("the upkeep of a journal failed")
            text = f"the journal's upkeep failed: {type(error).__name__}: {error}"
            self._events.emit("retention.internal-error", Severity.CRITICAL, text, machine=machine)
        self._not_before[machine] = self._clock.monotonic() + RETRY_SECONDS
        return False

    def _tell_failed(self, machine: MachineId, text: str) -> None:
        """The same trouble once an hour, though it is tried again each minute."""
        now = self._clock.monotonic()
        told, at = self._told.get(machine, ("", 0.0))
        if text != told or now - at >= TELL_AGAIN_SECONDS:
            self._told[machine] = (text, now)
            self._events.emit("retention.failed", Severity.WARNING, text, machine=machine)
