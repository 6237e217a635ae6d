"""When a machine's first copy may begin: at once, at a time of day, or when media bring it.

    STATE/first-copies/<machine>.json    {"at": "22:00", "due": "2026-01-15T21:00:00+00:00", "begun": false}

The moment is chosen once, when protection was enabled, and kept: a gateway that is started again waits for
the same one. `begun`: it was reached, or a person did not want to wait. A damaged file is as none: the next
such time counts. Resynchronisations never wait.
"""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB
from secondsite.model.policies import FirstCopyStart, minute_of

FILE_BYTES_MAX = 4 * KIB


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    at: str = ""
    due: dt.datetime | None = None
    begun: bool = False


@dataclass(frozen=True)
class Waiting:
    """What a first copy waits for. due: None: for media, or for a person."""

    due: dt.datetime | None
    text: str  # for people


class FirstCopy:
    """Of one machine. Thread-safe; one process at a time."""

    def __init__(self, path: Path, name: str, clock: Clock, zone: dt.tzinfo | None = None) -> None:
        """zone: instead of the local time of this machine (tests)."""
        self._path = path
        self._name = name
        self._clock = clock
        self._zone = zone
        self._lock = threading.Lock()
        self._record = self._read()

    def waits(self, start: FirstCopyStart) -> Waiting | None:
        """What it waits for, by the policy as it is now; None: it may begin."""
        with self._lock:
            if start.mode == "now" or self._record.begun:
                return None
            if start.mode == "offline":
                return Waiting(None, self._said("for media: `secondsite seed export`"))
            assert start.at is not None
            now = self._clock.utc()
            if self._record.at != start.at or self._record.due is None:
                self._write(_Record(at=start.at, due=next_time(now, start.at, self._zone)))
            due = self._record.due
            assert due is not None
            if now >= due:
                self._write(msgspec.structs.replace(self._record, begun=True))
                return None
            local = due.astimezone(self._zone)
            return Waiting(due, self._said(f"until {local:%Y-%m-%d %H:%M} local time"))

    def begin(self) -> None:
        """Wait no longer, now or after any restart."""
        with self._lock:
            if not self._record.begun:
                self._write(msgspec.structs.replace(self._record, begun=True))

    def remove(self) -> None:
        """The machine is not protected any more."""
        with self._lock:
            remove_file(self._path)
            self._record = _Record()

    def _said(self, what: str) -> str:
        now = f"begin it now with `secondsite resume {self._name}`"
        return f"The first copy of {self._name} waits {what}; {now}."

    def _read(self) -> _Record:
        try:
            data = read_limited(self._path, size_bytes_max=FILE_BYTES_MAX)
            found = msgspec.json.decode(data, type=_Record)
        except (FileNotFoundError, *JSON_ERRORS):
            return _Record()
        aware = found.due is None or found.due.tzinfo is not None
        return found if aware else _Record(begun=found.begun)

    def _write(self, record: _Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, msgspec.json.encode(record))
        self._record = record


def next_time(now: dt.datetime, time_of_day: str, zone: dt.tzinfo | None) -> dt.datetime:
    """The next moment after `now`, in UTC, at which a clock on the wall shows HH:MM.

    One that summer time leaves out is taken an hour later.
    """
    minute = minute_of(time_of_day)
    local = now.astimezone(zone)
    for days in (0, 1, 2):
        day = local.date() + dt.timedelta(days=days)
        wall = dt.datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
        moment = wall.astimezone(dt.UTC)  # without a zone: of this machine's local time
        if moment > now:
            return moment
    raise AssertionError("one of three days has it")
