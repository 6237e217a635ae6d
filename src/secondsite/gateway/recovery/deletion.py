"""Deleting a machine's replica: points, segments, bases, keys and records, for good.

    STATE/deletions/MACHINE.json
        {"version": 1, "machine", "name", "by", "askedAt", "bases": [paths], "epoch"}

The file is written first: from then on the machine is not listed and nobody may write it, whatever dies. Then
the log goes, its newest record first, so that whoever looks into the store meanwhile finds points that are
whole or none; then what the points were made of, the images, and the machine's state, which knows where the
images lie. It is begun again from the file at every start, until nothing is left; then the file goes.

One record is put in the place of all that: a claim by nobody, above every epoch the machine had here. Whoever
writes the machine again claims above that, so a late upload of an earlier time is refused, as it was before.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.wanted import SERVER
from secondsite.gateway.messages.items import Deletion
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.bases import remove_images
from secondsite.gateway.target.signals import CLEAN_PREFIX
from secondsite.journal.names import log_pages_prefix, log_prefix, machine_prefix, pages_prefix, state_prefix
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import DELETED, MOVED, NOBODY, REVERSE
from secondsite.model.ids import MachineId, machine_id
from secondsite.model.points import Claim

log = logging.getLogger(__name__)

AFTER_ASKED = mark("deletion.after-asked")
AFTER_LOG_RECORD = mark("deletion.after-log-record")
AFTER_LOG = mark("deletion.after-log")
AFTER_OBJECTS = mark("deletion.after-objects")
AFTER_BASES = mark("deletion.after-bases")
AFTER_STATE = mark("deletion.after-state")
AFTER_TOMBSTONE = mark("deletion.after-tombstone")

VERSION = 1
RECORD_BYTES_MAX = 1024 * 1024
# How often a wish of the server, and what failed, is looked at.
LOOK_SECONDS = 5.0
BATCH = 1000
# A source is taken to write still when its newest point came within that time.
QUIET_SECONDS = 120.0
_HELD = ("hold:", "export:")
Forget = Callable[[MachineId], None]


class ReplicaInUse(SecondsiteError):
    """Somebody needs it."""

    code = "replica.in-use"
    outcome = Outcome.REFUSED
    happened = "The replica of {machine} was not deleted: {why}."
    cause = "What is read, tested, held or written is needed by somebody."
    action = (
        "End what is named (unprotect it at its source, clean tests up, release holds), then try again; the "
        "server's own wish goes on by itself."
    )


class DeletionNotConfirmed(SecondsiteError):
    """Danger is spelled out."""

    code = "replica.not-confirmed"
    outcome = Outcome.USAGE
    happened = "The replica of {machine} was not deleted: the name to confirm it with is {given!r}."
    cause = "All its recovery points would be gone, here and for good."
    action = "Give the machine's name, {machine}, with --confirm if you mean it."


class _Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    version: int
    machine: MachineId
    name: str
    by: str
    asked_at: str
    bases: tuple[str, ...] = ()
    epoch: int = 0  # the highest the machine had here
    authority: str = ""  # whose the machine is, where its claim here said so


class Deletions:
    """Of one gateway with a store. Thread-safe. `start` once, `close` at the end."""

    def __init__(
        self,
        store: ObjectStore,
        recovery: Recovery,
        directory: Path,
        *,
        base_dir: Path | None,
        desired: DesiredState,
        clock: Clock,
        events: EventSink,
    ) -> None:
        """base_dir: images below it are ours to delete; others are left where they are, and told."""
        self._store = store
        self._recovery = recovery
        self._directory = directory
        self._base_dir = base_dir
        self._desired = desired
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._records = self._load()
        self._progress: dict[MachineId, tuple[int, str]] = {}
        self._refused: dict[MachineId, str] = {}  # wishes of the server, with what is in their way
        # told once nothing is left, before the machine may be written again: what they know is of what was
        self.forgotten_by: list[Forget] = [recovery.forget]
        self.on_deleted: Callable[[], None] = lambda: None  # a replica is gone now
        # whether what a claim took over here is not here any more: whoever is left may be the machine again
        self.is_gone: Callable[[Claim], bool] = lambda _: False
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._root, name="deletion", daemon=True)

    def start(self) -> None:
        """Go on with what is under way, and follow the server's wishes."""
        self._thread.start()

    def close(self) -> None:
        """Stop; it goes on at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def all(self) -> list[Deletion]:
        """What is under way."""
        with self._lock:
            return [
                Deletion(
                    machine=r.machine,
                    name=r.name,
                    by=r.by,
                    asked_at=r.asked_at,
                    deleted=self._progress.get(r.machine, (0, ""))[0],
                    error=self._progress.get(r.machine, (0, ""))[1],
                )
                for r in self._records.values()
            ]

    def under_way(self, machine: MachineId) -> bool:
        """Whether a machine's replica is being deleted: it is not listed any more."""
        return machine in self._records

    def why_closed(self, machine: MachineId) -> str:
        """Why nobody may write a machine here now; empty: it may be written."""
        if machine in self._records:
            return "its replica is being deleted"
        wanted = self._desired.replica(machine)
        if wanted is not None and not wanted.enabled:
            return "the server ended its protection"
        return ""

    def why_not(self, machine: MachineId) -> str:
        """What stands in the way of a server's wish to delete a replica; empty: nothing."""
        return self._refused.get(machine, "")

    def begin(self, machine: MachineId, *, confirm: str, by: str) -> Deletion:
        """Delete a replica for good; goes on in the background. Raises DeletionNotConfirmed, ReplicaInUse."""
        name = next((name for known, name in self._recovery.machines() if known == machine), "") or machine
        if confirm not in {name, machine}:
            raise DeletionNotConfirmed(machine=name, given=confirm)
        wanted = self._desired.replica(machine)
        if wanted is not None and wanted.enabled:
            raise ReplicaInUse(machine=name, why=f"it is the replica of the item {wanted.item} of the server")
        self._require_unused(machine, name, quiet=wanted is None)
        return self._begin(machine, name, by)

    def _begin(self, machine: MachineId, name: str, by: str) -> Deletion:
        bases = tuple(base.locator for base in self._recovery.journal(machine).state().bases)
        at = self._clock.utc().isoformat(timespec="seconds")
        epoch = self._epoch_of(machine)
        record = _Record(
            version=VERSION,
            machine=machine,
            name=name,
            by=by,
            asked_at=at,
            bases=bases,
            epoch=epoch,
            authority=self._authority_of(machine),
        )
        with self._lock:
            known = self._records.get(machine)
            if known is None:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                replace_file(self._path(machine), msgspec.json.encode(record))
                self._records[machine] = record
        crash_point(AFTER_ASKED)
        record = self._records[machine]
        text = f"the replica of {name} is being deleted, asked by {by}: its recovery points are gone for good"
        text += _no_longer_said(record)
        self._events.emit("replica.deleting", Severity.WARNING, text, machine=machine)
        self._wake.set()
        return next(found for found in self.all() if found.machine == machine)

    def _require_unused(self, machine: MachineId, name: str, *, quiet: bool) -> None:
        """quiet: nobody else says whether its source writes still."""
        reasons = [f"point {export.point} is served" for export in self._recovery.exports(machine)]
        standing = [test for test in self._recovery.replicas() if test.machine == machine]
        tests = [replica.test_failover for replica in standing if replica.test_failover is not None]
        reasons += [f"the test failover {test.name} stands" for test in tests]
        journal = self._recovery.journal(machine)
        now = self._clock.utc()
        pins = [p for p in journal.state().pins_at(now.isoformat()) if p.holder.startswith(_HELD)]
        reasons += [f"point {pin.number} is held ({pin.reason}){_way_out(pin.holder, name)}" for pin in pins]
        claim = journal.head().claim
        if claim is not None and claim.reason in MOVED and not self.is_gone(claim):
            # without it the source that was left behind would be the machine's writer again, beside what was
            # taken over; once nothing of that is left, a person decides what is the machine
            reasons.append(f"it was taken over by {claim.claimant}, which only its replica says")
        points = journal.points()
        if quiet and points:
            age = (now - parse_time(points[-1].committed_at)).total_seconds()
            if age < QUIET_SECONDS:
                reasons.append(
                    f"its source writes still: a point came {age:.0f} s ago (less than {QUIET_SECONDS:.0f} s)"
                )
        if reasons:
            raise ReplicaInUse(machine=name, why="; ".join(dict.fromkeys(reasons)))

    # -- working --------------------------------------------------------------------------------

    def _root(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow_server()
                self.work()
            except Exception as error:  # a thread's root: told, and tried again
                log.exception("deleting replicas failed")
                text = f"deleting replicas failed: {type(error).__name__}: {error}"
                self._events.emit("gateway.internal-error", Severity.CRITICAL, text)
            self._clock.wait(self._wake, LOOK_SECONDS)
            self._wake.clear()

    def _follow_server(self) -> None:
        wishes = [r for r in self._desired.everything().replicas.values() if r.delete and not r.enabled]
        if not wishes:
            self._refused.clear()
            return
        known = dict(self._recovery.machines())
        for wish in wishes:
            machine = machine_id(wish.machine)
            if machine not in known or machine in self._records:
                continue
            try:
                self._require_unused(machine, wish.name, quiet=False)
                self._begin(machine, wish.name, SERVER)
                self._refused.pop(machine, None)
            except SecondsiteError as error:
                why = " ".join(error.sentences())
                if self._refused.get(machine) != why:
                    self._refused[machine] = why
                    self._events.emit("replica.not-deleted", Severity.WARNING, why, machine=machine)

    def work(self) -> None:
        """Delete what is to be deleted, as far as it goes now."""
        for record in list(self._records.values()):
            if self._stop.is_set():
                return
            try:
                self._delete(record)
            except (SecondsiteError, OSError) as error:
                done, told = self._progress.get(record.machine, (0, ""))
                self._progress[record.machine] = (done, str(error))
                if told != str(error):
                    text = f"the deletion of the replica of {record.name} waits and is tried again: {error}"
                    self._events.emit(
                        "replica.deletion-failed", Severity.WARNING, text, machine=record.machine
                    )

    def _delete(self, record: _Record) -> None:
        machine = record.machine
        self._progress[machine] = (self._progress.get(machine, (0, ""))[0], "")
        state = state_prefix(machine)
        for cache in (log_pages_prefix(machine), pages_prefix(machine)):
            self._delete_all(machine, self._store.list(cache))
        for name in reversed(list(self._store.list(log_prefix(machine)))):
            self._delete_all(machine, iter([name]))
            crash_point(AFTER_LOG_RECORD)
        crash_point(AFTER_LOG)
        rest = (name for name in self._store.list(machine_prefix(machine)) if not name.startswith(state))
        self._delete_all(machine, rest)
        crash_point(AFTER_OBJECTS)
        bases = [Path(path) for path in record.bases]
        left = [str(path) for path in remove_images(self._base_dir, machine, bases, alone=True)]
        crash_point(AFTER_BASES)
        for name in reversed(list(self._store.list(state))):
            self._delete_all(machine, iter([name]))
        crash_point(AFTER_STATE)
        if self._stop.is_set() or next(iter(self._store.list(machine_prefix(machine))), None) is not None:
            return  # a merge that was under way wrote something: once more
        for forget in self.forgotten_by:
            forget(machine)
        self._leave_tombstone(record)
        remove_file(self._path(machine))
        with self._lock:
            self._records.pop(machine, None)
            done, _ = self._progress.pop(machine, (0, ""))
        kept = f"; images that are not ours stay: {', '.join(left)}" if left else ""
        text = f"the replica of {record.name} is deleted, asked by {record.by}: {done} objects{kept}"
        text += _no_longer_said(record)
        self._events.emit("replica.deleted", Severity.WARNING, text, machine=machine, objects=done)
        self.on_deleted()

    def _epoch_of(self, machine: MachineId) -> int:
        """The highest in force here, also where the log is damaged: objects are named by their epochs."""
        with contextlib.suppress(SecondsiteError):
            return self._recovery.journal(machine).head().epoch
        epochs = [0]
        for kind in ("segments", "writers"):
            prefix = f"{machine_prefix(machine)}{kind}/"
            names = (name.removeprefix(prefix)[:8] for name in self._store.list(prefix))
            epochs += [int(text) for text in names if len(text) == 8 and text.isdigit()]
        return max(epochs)

    def _authority_of(self, machine: MachineId) -> str:
        """Whose the machine is by a failover or a reversal in force here; empty: none is, as far as known."""
        with contextlib.suppress(SecondsiteError):
            claim = self._recovery.journal(machine).head().claim
            if claim is not None and claim.reason in MOVED | {REVERSE}:
                return claim.claimant
        return ""

    def _leave_tombstone(self, record: _Record) -> None:
        if not record.epoch:
            return
        journal = self._recovery.journal(record.machine)
        journal.claim(
            name=record.name,
            claimant=NOBODY,
            reason=DELETED,
            clock=self._clock,
            expected=journal.head(),
            above=record.epoch,
        )
        crash_point(AFTER_TOMBSTONE)

    def _delete_all(self, machine: MachineId, names: Iterator[str]) -> None:
        while batch := list(itertools.islice(names, BATCH)):
            for name in batch:
                if self._stop.is_set():
                    return
                self._store.delete(name)
            with self._lock:
                self._progress[machine] = (self._progress.get(machine, (0, ""))[0] + len(batch), "")

    # -- the records ----------------------------------------------------------------------------

    def _path(self, machine: MachineId) -> Path:
        return self._directory / f"{machine}.json"

    def _load(self) -> dict[MachineId, _Record]:
        """One that is damaged cannot be obeyed: it is told, and left for a person."""
        found: dict[MachineId, _Record] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                data = read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
                record = msgspec.json.decode(data, type=_Record)
                found[machine_id(record.machine)] = record
            except (SecondsiteError, *JSON_ERRORS) as error:
                text = f"the record {path} of a deletion cannot be read, nothing is deleted: {error}"
                self._events.emit("replica.deletion-damaged", Severity.CRITICAL, text)
        return found


def _no_longer_said(record: _Record) -> str:
    """Who loses the record that holds its sources of before; nobody is the writer here from then on."""
    if not record.authority:
        return ""
    return (
        f"; {record.authority} has {record.name} by the claim of epoch {record.epoch}, which perhaps only "
        f"this store said: a source of before that returns is not held by it any more"
    )


def _way_out(holder: str, name: str) -> str:
    """What lets an alert's hold go, which only its own gateway knows."""
    if not holder.startswith(CLEAN_PREFIX):
        return ""
    return (
        f"; once somebody has looked at them (`secondsite points list`), at this gateway: `secondsite points "
        f"dismiss {shlex.quote(name)} --note WHY`"
    )
