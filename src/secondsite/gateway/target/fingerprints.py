"""Fingerprints of arriving points, counted on from the point before by digest tables.

A point's fingerprint is known before its manifest is written, from the digests sealed inside its segments'
indexes: old digests of what it overwrites are taken away, new ones added. A small point is folded into the
table after its commit; a large one (a first copy) before, with the table marked, so that memory stays
bounded. What goes wrong costs the fingerprint of some points, with an event, and never the points: the table
is made again from the store in the background.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.source.tables import DigestTable
from secondsite.gateway.target.machinetables import MachineTables
from secondsite.journal.chain import Head, Journal
from secondsite.journal.digests import (
    fingerprint_text,
)
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.view import BaseOf, open_view
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import DiskState, Point, PointProposal
from secondsite.transfer.errors import DigestsNotReady
from secondsite.transfer.protocols import DigestAnswer, DigestQuery

# It reads the whole disk: where that fails (a full cache volume), it is not tried with every point.
REBUILD_PAUSE_SECONDS = 600.0
# Of the pin while tables are made again. It has no end by the clock, which may jump while it is read on.
HOLDER = "fingerprints"


class Fingerprints:
    """For all machines of a store. `of` and `committed` fit `receive.GatewayReceiver`. Thread-safe.

    directory: on the cache volume. bases_of: opens a machine's bases, for making a table again.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vault: VaultKey,
        bases_of: Callable[[Journal], BaseOf],
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._directory = directory
        self._vault = vault
        self._bases_of = bases_of
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._machines: dict[MachineId, MachineTables] = {}
        self._closing = threading.Event()
        self._wanted: dict[MachineId, Journal] = {}  # to make again; bounded by the number of machines
        self._not_before: dict[MachineId, float] = {}  # a machine's next attempt, after one that failed
        self._wake = threading.Event()
        self._worker: threading.Thread | None = None

    def let_go(self, journals: Iterable[Journal]) -> None:
        """At the start: take away pins of an earlier process that was killed while it made tables."""
        for journal in journals:
            with contextlib.suppress(SecondsiteError):  # a damaged journal's upkeep says so
                journal.unpin(HOLDER)

    def of(self, journal: Journal) -> Callable[[PointProposal, Head], dict[DiskId, str | None]]:
        """What the journal's `commit` asks for the fingerprints of a proposal."""

        def fingerprints(proposal: PointProposal, head: Head) -> dict[DiskId, str | None]:
            tables = self._tables(journal)
            known, lost = tables.propose(proposal, head)
            for disk, why in lost.items():
                text = f"the fingerprint of disk {disk} of {proposal.machine_name} is not known: {why}"
                self._events.emit("fingerprint.unknown", Severity.WARNING, text, machine=journal.machine)
            if lost:
                self.rebuild(journal)
            return known

        return fingerprints

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted: a table would speak of other points of the same numbers."""
        with self._lock:
            found = self._machines.pop(machine, None)
            self._wanted.pop(machine, None)
        if found is not None:
            found.close()
        shutil.rmtree(self._directory / machine, ignore_errors=True)

    def committed(self, journal: Journal, point: Point) -> None:
        """Fold a committed point in. Called again for a repeated commit: then there is nothing to do."""
        self._tables(journal).fold(point)

    def digests(self, journal: Journal, query: DigestQuery) -> DigestAnswer:
        """What a disk's table holds of the newest point, for hash compare.

        Raises DigestsRefused, and DigestsNotReady when the table has to be made again, which is begun.
        """
        try:
            return self._tables(journal).answer(query)
        except DigestsNotReady:
            self.rebuild(journal)
            raise

    def rebuild(self, journal: Journal) -> None:
        """Make a machine's tables again, in the background."""
        with self._lock:
            if self._clock.monotonic() < self._not_before.get(journal.machine, 0.0):
                return
            self._wanted.setdefault(journal.machine, journal)
            if self._worker is None and not self._closing.is_set():
                self._worker = threading.Thread(target=self._work, name="fingerprints", daemon=True)
                self._worker.start()
        self._wake.set()

    def close(self) -> None:
        """Stop; tables are synced, so that they are good after a restart of the machine."""
        self._closing.set()
        self._wake.set()
        if self._worker is not None:
            self._worker.join()
        for tables in self._machines.values():
            tables.close()

    def _tables(self, journal: Journal) -> MachineTables:
        with self._lock:
            found = self._machines.get(journal.machine)
            if found is None:
                keys = KeyRing(journal.store, journal.machine, self._vault)
                found = MachineTables(self._directory / journal.machine, journal, keys)
                self._machines[journal.machine] = found
            return found

    def _work(self) -> None:
        """The worker's thread."""
        while not self._closing.is_set():
            with self._lock:
                journal = self._wanted.pop(next(iter(self._wanted))) if self._wanted else None
            if journal is None:
                self._wake.wait()
                self._wake.clear()
                continue
            with self._lock:
                later = self._clock.monotonic() + REBUILD_PAUSE_SECONDS
                self._not_before[journal.machine] = later
            try:
                self._rebuild(journal)
                with self._lock:
                    del self._not_before[journal.machine]
            except SecondsiteError as error:
                text = f"the digest tables could not be made again: {error}"
                self._events.emit(
                    "fingerprint.rebuild-failed", Severity.WARNING, text, machine=journal.machine
                )
            except Exception as error:  # noqa: BLE001 - the thread's root: fingerprints are never worth a crash
                text = f"making digest tables again failed: {type(error).__name__}: {error}"
                self._events.emit(
                    "fingerprint.internal-error", Severity.CRITICAL, text, machine=journal.machine
                )

    def _rebuild(self, journal: Journal) -> None:
        point = journal.head().point
        if point is None:
            return
        tables = self._tables(journal)
        journal.pin(point.number, HOLDER, "digest tables are being made again")
        try:
            view = open_view(journal, point.number, tables.keys, bases=self._bases_of(journal))
            with contextlib.closing(view):
                for disk in point.disks:
                    made = tables.fill(disk, view.disks[disk.id], point.number, self._closing)
                    if made is None:
                        return
                    self._compare(journal, disk, made)
                    tables.install(disk.id, made)
        finally:
            journal.unpin(HOLDER)
        text = f"the digest tables hold point {point.number} again"
        self._events.emit("fingerprint.rebuilt", Severity.INFORMATION, text, machine=journal.machine)

    def _compare(self, journal: Journal, disk: DiskState, made: DigestTable) -> None:
        found = fingerprint_text(made.stamp.lanes)
        if disk.fingerprint is not None and disk.fingerprint != found:
            text = f"disk {disk.id} at point {made.stamp.number} reads as {found}, not as {disk.fingerprint}"
            self._events.emit("fingerprint.mismatch", Severity.CRITICAL, text, machine=journal.machine)
