"""Verification at a target: on a schedule and on demand, one machine at a time, its results kept.

Kept in the state directory, never in the store: what was seen of a log last time (so that whoever can change
the store cannot shorten it unnoticed), the last report, and the newest point a scrub proved. Losing them
costs a scrub, not a point.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB, format_bytes
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.messages.gateway import VerificationSummary
from secondsite.gateway.messages.verdicts import (
    VerificationReport,
    VerificationState,
    VerificationStatus,
    VerifyRequest,
    spans_text,
)
from secondsite.gateway.target.bases import base_opener
from secondsite.gateway.target.verdict_of import report_of
from secondsite.journal.chain import Journal, machines
from secondsite.journal.episodes import found_in
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.scrub import Position, ScrubCancelled, ScrubReport, Trusted, scrub
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId, machine_id

log = logging.getLogger(__name__)

BEFORE_RESULT = mark("scrub.before-result")
AFTER_RESULT = mark("scrub.after-result")

RESULT_BYTES_MAX = 64 * MIB
# How often the schedule is looked at: a scrub is due by the hour, and each look lists the store's machines.
TICK_SECONDS = 300.0
# A scrub that could not run (the store was away) is tried again.
RETRY_SECONDS = 3600.0

_T = TypeVar("_T")
OnReport = Callable[[Journal, ScrubReport], None]


class VerificationRunning(SecondsiteError):
    """One is under way."""

    code = "verify.running"
    outcome = Outcome.REFUSED
    happened = "A verification of {machine} is under way already, asked for by {who}."
    cause = "It was started by the schedule or by another command."
    action = "Wait for it (`secondsite verify {machine}` shows its progress), or stop it with --cancel."


class NoVerification(SecondsiteError):
    """There was none."""

    code = "verify.none"
    outcome = Outcome.NOT_FOUND
    happened = "The replica of {machine} was never verified here."
    cause = "No scheduled verification was due yet, and none was asked for."
    action = "Verify it with `secondsite verify {machine}`."


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of the last scrub of a machine."""

    ended_at: str  # RFC 3339 UTC
    status: VerificationStatus | None = None  # None: it was only seen then
    number: int = 0  # the newest record then, to be trusted
    hash: str = ""
    generation: int = 0
    version: int = 1

    @property
    def trusted(self) -> Trusted | None:
        """For the next one."""
        return Trusted(self.number, self.hash, self.generation) if self.hash else None


class _Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The newest point a scrub proved."""

    number: int
    at: str
    version: int = 1


class _Records(Generic[_T]):
    """One small JSON file a machine; a damaged one counts as none."""

    def __init__(self, directory: Path, kind: type[_T]) -> None:
        self._directory, self._decoder = directory, msgspec.json.Decoder(kind)

    def get(self, machine: MachineId) -> _T | None:
        """What is kept."""
        with contextlib.suppress(FileNotFoundError, OSError, SecondsiteError, *JSON_ERRORS):
            return self._decoder.decode(read_limited(self._path(machine), size_bytes_max=RESULT_BYTES_MAX))
        return None

    def put(self, machine: MachineId, record: _T) -> None:
        """Keep another; durable."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path(machine), msgspec.json.encode(record))

    def remove(self, machine: MachineId) -> None:
        """Keep none."""
        remove_file(self._path(machine))

    def _path(self, machine: MachineId) -> Path:
        return self._directory / f"{machine_id(machine)}.json"


@dataclass(eq=False)
class _Job:
    """A scrub that waits or runs."""

    machine: MachineId
    request: VerifyRequest
    name: str
    started_at: str
    cancel: threading.Event = field(default_factory=threading.Event)
    position: Position = field(default_factory=lambda: Position("waiting"))
    began: float | None = None  # by the monotonic clock

    def show(self, now: float) -> VerificationStatus:
        """As the control API says it."""
        seconds = now - self.began if self.began is not None else 0.0
        rate = self.position.done_bytes / seconds if seconds > 0 else 0.0
        left = (self.position.total_bytes - self.position.done_bytes) / rate if rate else None
        return VerificationStatus(
            machine=self.machine,
            name=self.name,
            state=VerificationState.RUNNING,
            requested_by=self.request.requested_by,
            started_at=self.started_at,
            doing=self.position.doing,
            done_bytes=self.position.done_bytes,
            total_bytes=self.position.total_bytes,
            bytes_per_second=rate,
            seconds_left=left,
        )


class Scrubs:
    """The verifications of one store. Thread-safe.

    every_seconds: None: only on demand. bytes_per_second: of scheduled ones; those asked for run unpaced.
    work_dir: on the cache volume. on_report: told of each report before it is kept; for repair.
    """

    def __init__(
        self,
        store: ObjectStore,
        vault: VaultKey,
        *,
        state_dir: Path,
        work_dir: Path,
        clock: Clock,
        events: EventSink,
        every_seconds: float | None = None,
        bytes_per_second: float | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        self._store, self._vault, self._clock, self._events = store, vault, clock, events
        self._every, self._rate = every_seconds, bytes_per_second
        self._work_dir, self._on_report = work_dir, on_report
        self._results = _Records(state_dir / "scrubs", Result)
        self._verified = _Records(state_dir / "verified", _Verified)
        self._lock = threading.Lock()
        self._jobs: dict[MachineId, _Job] = {}  # waiting and running: at most one a machine
        self._not_before: dict[MachineId, float] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scrubs", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Stop; one under way is cancelled and begins anew another time."""
        self._stop.set()
        with self._lock:
            for job in self._jobs.values():
                job.cancel.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- asked from outside ---------------------------------------------------------------------

    def request(self, machine: MachineId, request: VerifyRequest) -> VerificationStatus:
        """Verify a machine's replica as soon as those before it are done.

        Raises:
            VerificationRunning. NoSuchPoint: the one named does not exist.
        """
        if request.point is not None:
            self._choose(machine, request.point)
        with self._lock:
            running = self._jobs.get(machine)
            if running is not None:
                who = running.request.requested_by or "the schedule"
                raise VerificationRunning(machine=running.name, who=who)
            job = self._jobs[machine] = self._job(machine, request)
        self._wake.set()
        return job.show(self._clock.monotonic())

    def status(self, machine: MachineId) -> VerificationStatus:
        """Of the running one, else the last. Raises NoVerification."""
        with self._lock:
            job = self._jobs.get(machine)
        if job is not None:
            return job.show(self._clock.monotonic())
        last = self.last(machine)
        if last is None:
            raise NoVerification(machine=machine)
        return last

    def last(self, machine: MachineId) -> VerificationStatus | None:
        """The last that ended; None: there was none."""
        result = self._results.get(machine)
        return result.status if result is not None else None

    def cancel(self, machine: MachineId) -> None:
        """Stop what runs or waits; nothing does: fine."""
        with self._lock:
            job = self._jobs.get(machine)
        if job is not None:
            job.cancel.set()
            self._wake.set()

    def summary(self, machine: MachineId) -> VerificationSummary | None:
        """For a status; None: there was none."""
        with self._lock:
            running = machine in self._jobs
        result = self._results.get(machine)
        if result is None or result.status is None:
            return None
        status, report = result.status, result.status.report
        return VerificationSummary(
            at=status.ended_at or result.ended_at,
            state=VerificationState.RUNNING.value if running else status.state.value,
            last_verified=self.last_verified(machine),
            lost=len(report.lost) if report else 0,
            damaged=len(report.damaged) + report.more_damaged if report else 0,
        )

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted: what was proved was of other points of the same numbers."""
        self.cancel(machine)
        self._results.remove(machine)
        self._verified.remove(machine)

    def verified(self, machine: MachineId) -> frozenset[int]:
        """`last_verified` as the retention takes it."""
        found = self.last_verified(machine)
        return frozenset() if found is None else frozenset([found])

    def last_verified(self, machine: MachineId) -> int | None:
        """The newest point a scrub proved, for the retention to prefer; it may be gone by now."""
        found = self._verified.get(machine)
        return found.number if found is not None else None

    # -- the worker -----------------------------------------------------------------------------

    def _job(self, machine: MachineId, request: VerifyRequest) -> _Job:
        last = self.last(machine)
        return _Job(machine, request, last.name if last else machine, self._now())

    def _now(self) -> str:
        return self._clock.utc().isoformat(timespec="seconds")

    def _loop(self) -> None:
        """The thread."""
        while not self._stop.is_set():
            try:
                self._plan()
                job = self._next()
                if job is None:
                    self._clock.wait(self._wake, TICK_SECONDS)
                    self._wake.clear()
                    continue
                self._work(job)
            except Exception as error:  # the thread's root: verification goes on with the next machine
                log.exception("verifying failed")
                text = f"verifying failed: {type(error).__name__}: {error}"
                self._events.emit("scrub.internal-error", Severity.CRITICAL, text)
                self._clock.wait(self._stop, TICK_SECONDS)

    def _next(self) -> _Job | None:
        with self._lock:
            return next(iter(self._jobs.values()), None)

    def _plan(self) -> None:
        """Queue the machine that has waited longest, when it is due."""
        if self._every is None:
            return
        now, today = self._clock.monotonic(), self._clock.utc()
        due: list[tuple[float, MachineId]] = []
        try:
            listed = machines(self._store)
        except SecondsiteError:
            return  # the store is away; replication tells that
        for machine in listed:
            with self._lock:
                if machine in self._jobs or self._not_before.get(machine, 0.0) > now:
                    continue
            result = self._results.get(machine)
            if result is None:
                # the first one is due after the same time: a first copy has enough to do
                self._results.put(machine, Result(ended_at=self._now()))
                continue
            age = (today - datetime.fromisoformat(result.ended_at)).total_seconds()
            # a clock set back must not put it off for years
            if age >= self._every or age < -self._every:
                due.append((-abs(age), machine))
        if due:
            machine = min(due)[1]
            with self._lock:
                self._jobs.setdefault(machine, self._job(machine, VerifyRequest()))

    def _work(self, job: _Job) -> None:
        scheduled = not job.request.requested_by
        with self._lock:
            self._not_before[job.machine] = self._clock.monotonic() + RETRY_SECONDS
        result: Result | None = None
        try:
            if not job.cancel.is_set():
                result = self._scrub(job, scheduled=scheduled)
        except ScrubCancelled as error:
            result = self._failed(job, error, VerificationState.CANCELLED)
        except SecondsiteError as error:
            result = self._failed(job, error, VerificationState.FAILED)
            text = f"the replica of {job.name} could not be verified: {error}"
            self._events.emit("scrub.failed", Severity.WARNING, text, machine=job.machine)
        finally:
            try:
                if result is not None:
                    self._results.put(job.machine, result)
            finally:
                with self._lock:
                    self._jobs.pop(job.machine, None)

    def _scrub(self, job: _Job, *, scheduled: bool) -> Result:
        journal = Journal(self._store, job.machine, self._vault)
        before = self._results.get(job.machine)
        job.began = self._clock.monotonic()

        def progress(position: Position) -> None:
            job.position = position

        report = scrub(
            journal,
            KeyRing(self._store, job.machine, self._vault),
            base_opener(journal),
            clock=self._clock,
            points=self._points(journal, job.request),
            trusted=before.trusted if before else None,
            progress=progress,
            cancel=job.cancel,
            bytes_per_second=self._rate if scheduled else None,
            work_dir=self._work_dir,
        )
        crash_point(BEFORE_RESULT)
        if self._on_report is not None:
            self._on_report(journal, report)
        if report.proved:
            self._verified.put(job.machine, _Verified(number=report.proved[-1], at=self._now()))
        made = report_of(report)
        self._tell(job.machine, made)
        status = VerificationStatus(
            machine=job.machine,
            name=report.name or job.name,
            state=VerificationState.COMPLETED,
            requested_by=job.request.requested_by,
            started_at=job.started_at,
            ended_at=self._now(),
            done_bytes=report.bytes,
            total_bytes=report.bytes,
            bytes_per_second=report.bytes_per_second,
            report=made,
        )
        head = report.head or (before.trusted if before else None)
        result = Result(
            ended_at=self._now(),
            status=status,
            number=head.number if head else 0,
            hash=head.hash if head else "",
            generation=head.generation if head else 0,
        )
        self._results.put(job.machine, result)
        crash_point(AFTER_RESULT)
        return result

    def _points(self, journal: Journal, request: VerifyRequest) -> list[int] | None:
        if not request.all and request.point is None:
            return None
        listed = journal.points()
        if request.all:
            return [point.number for point in listed]
        wanted = request.point or "latest"
        title, episodes = journal.machine, lambda: found_in(journal)
        return [choose_point(listed, wanted, machine=title, episodes=episodes).number]

    def _choose(self, machine: MachineId, wanted: str) -> None:
        journal = Journal(self._store, machine, self._vault)
        points = journal.points()
        title = points[-1].machine_name if points else machine
        choose_point(points, wanted, machine=title, episodes=lambda: found_in(journal))

    def _failed(self, job: _Job, error: SecondsiteError, state: VerificationState) -> Result:
        """A verification that did not end says nothing: what was known before stays, but for the error."""
        before = self._results.get(job.machine)
        last = before.status if before else None
        status = VerificationStatus(
            machine=job.machine,
            name=job.name,
            state=state,
            requested_by=job.request.requested_by,
            started_at=job.started_at,
            ended_at=self._now(),
            report=last.report if last else None,
            error={key: str(value) for key, value in error.as_dict().items()},
        )
        # when it is due again follows from the last that ended
        ended = before.ended_at if before else self._now()
        trusted = before.trusted if before else None
        return Result(
            ended_at=ended,
            status=status,
            number=trusted.number if trusted else 0,
            hash=trusted.hash if trusted else "",
            generation=trusted.generation if trusted else 0,
        )

    def _tell(self, machine: MachineId, report: VerificationReport) -> None:
        count = len(report.damaged) + report.more_damaged
        what = (
            f"{report.objects} objects and {format_bytes(report.bytes)} of {report.name or machine} were read"
        )
        if not count:
            text = f"{what}: nothing is damaged, {len(report.proved)} of {report.points} points are proved"
            self._events.emit("scrub.done", Severity.INFORMATION, text, machine=machine, bytes=report.bytes)
            return
        first = report.damaged[0]
        lost = f"points {spans_text(report.lost)} are lost" if report.lost else "no point is lost"
        text = f"{what}: {count} are damaged, {lost}; first {first.object}: {first.why}"
        self._events.emit(
            "scrub.damaged",
            Severity.CRITICAL,
            text,
            machine=machine,
            damaged=count,
            lost=len(report.lost),
            bytes=report.bytes,
        )
