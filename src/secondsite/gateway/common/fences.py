"""Fences: the highest epoch of each job a gateway has seen, so that a worker that lost a job changes nothing.

    STATE/fences.json      {"version": 1, "jobs": {"<job>": epoch, ...}}, the last used last

It is durable before the first call of a new epoch is carried out: a restart forgets nothing. A file that does
not parse stops the gateway from working for a server, it is not begun anew: then an old worker could act.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB

VERSION = 1
FILE_BYTES_MAX = 4 * MIB
# A job lives for hours; ten thousand are more than a site begins while one of them is open.
JOBS_MAX = 10_000


class StepOutdated(SecondsiteError):
    """The job has gone on under another worker."""

    code = "calls.step-outdated"
    outcome = Outcome.REFUSED
    happened = "Job {job} was not carried on: its epoch {epoch} is over, {seen} has begun."
    cause = "Another server took the job over while this one was slow or cut off."
    action = "Nothing: the job goes on where it is now. Look at it with `secondsite job show {job}`."


class FencesDamaged(SecondsiteError):
    """The file does not parse."""

    code = "calls.fences-damaged"
    outcome = Outcome.DAMAGED
    happened = "What jobs this gateway has seen cannot be read from {path}: {why}."
    cause = "It was edited by hand, or its volume was damaged."
    action = "See that no job is open at the server, remove the file, and restart the gateway."


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    jobs: dict[str, int]


class Fences:
    """The file. Thread-safe; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises FencesDamaged."""
        self._path = path
        self._lock = threading.Lock()
        self._jobs = self._read()

    def pass_or_refuse(self, job: str, epoch: int) -> None:
        """Let a step of this epoch pass, remembered before it does. Raises StepOutdated."""
        with self._lock:
            seen = self._jobs.get(job, -1)
            if epoch < seen:
                raise StepOutdated(job=job, epoch=epoch, seen=seen)
            if epoch == seen:
                return
            jobs = {known: number for known, number in self._jobs.items() if known != job}
            while len(jobs) >= JOBS_MAX:
                del jobs[next(iter(jobs))]
            jobs[job] = epoch
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path, msgspec.json.encode(_File(version=VERSION, jobs=jobs)))
            self._jobs = jobs

    def _read(self) -> dict[str, int]:
        try:
            data = read_limited(self._path, size_bytes_max=FILE_BYTES_MAX)
            found = msgspec.json.decode(data, type=_File)
        except FileNotFoundError:
            return {}
        except JSON_ERRORS as error:
            raise FencesDamaged(path=self._path, why=str(error)) from None
        if found.version != VERSION:
            raise FencesDamaged(path=self._path, why=f"its version is {found.version}, not {VERSION}")
        return found.jobs
