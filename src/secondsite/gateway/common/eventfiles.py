"""A gateway's events on disk, until its server has them: one file for each run of the gateway.

    STATE/events/<run>.jsonl       {"number": N, "event": {"at", "code", "severity", "text", ...}} a line
    STATE/events/<run>.jsonl.1     the older half, once the file has grown to its limit

`<run>` is eight digits that grow with each run, a dash, and sixteen random hexadecimal digits: the log's name
at the server. Each run begins a log of its own with number 1, so that no number is given twice even when
a power cut took the last lines. A line is written before anybody is told of the event, and not synced: it
outlives the death of the process, and nothing is decided by it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from secondsite.base.files import append_line
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.model.events import Event

log = logging.getLogger(__name__)

# Two files of a MiB are some thousand events: weeks of a bad link.
FILE_BYTES_MAX = 1 * MIB
_NAME = re.compile(r"(\d{8})-[0-9a-f]{16}\Z")


class _Line(msgspec.Struct, frozen=True):
    number: int
    event: Event


class EventFiles:
    """The directory. Thread-safe; one process at a time."""

    def __init__(self, directory: Path) -> None:
        """This run's name is fixed here; its file is made with the first event."""
        self._directory = directory
        self._lock = threading.Lock()
        self._failing = False
        found = self._runs()
        sequence = int(found[-1][:8]) + 1 if found else 1
        self.run = f"{sequence % 10**8:08d}-{secrets.token_hex(8)}"

    def append(self, number: int, event: Event) -> None:
        """Keep one more event of this run; a volume that is full or gone is told once, and costs no more."""
        line = msgspec.json.encode(_Line(number, event))
        with self._lock:
            try:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                append_line(self._path(self.run), line, size_bytes_max=FILE_BYTES_MAX)
                self._failing = False
            except OSError as error:
                if not self._failing:
                    log.warning("events are kept in memory only: %s", error)
                self._failing = True

    def earlier(self) -> list[str]:
        """The runs before this one that have events here, oldest first."""
        return [run for run in self._runs() if run != self.run]

    def read(self, run: str) -> Iterator[tuple[int, Event]]:
        """A run's events with their numbers, oldest first; what does not parse is passed over."""
        for path in (self._older(run), self._path(run)):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                for line in file:
                    # a torn last line, of a power cut
                    with contextlib.suppress(*JSON_ERRORS):
                        found = msgspec.json.decode(line, type=_Line)
                        yield found.number, found.event

    def drop(self, run: str) -> None:
        """Forget an earlier run."""
        assert run != self.run
        self._older(run).unlink(missing_ok=True)
        self._path(run).unlink(missing_ok=True)

    def _runs(self) -> list[str]:
        names = {path.name.partition(".")[0] for path in self._directory.glob("*.jsonl*")}
        return sorted(name for name in names if _NAME.match(name))

    def _path(self, run: str) -> Path:
        return self._directory / f"{run}.jsonl"

    def _older(self, run: str) -> Path:
        return self._directory / f"{run}.jsonl.1"
