"""The progress bar of a first copy or a verification: on a terminal a bar, elsewhere a line now and then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from secondsite.gateway.messages.gateway import FirstCopy

LINE_SECONDS = 2.0


class CopyProgress:
    """Shows how far a first copy is, with rate and time left, on standard error."""

    def __init__(
        self, name: str, *, quiet: bool, clock: Clock | None = None, doing: str = "first copy of"
    ) -> None:
        self._name = name
        self._doing = doing
        self._quiet = quiet
        self._clock = clock or SystemClock()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said_at: float | None = None

    def __enter__(self) -> CopyProgress:
        if self._quiet or not sys.stderr.isatty():
            return self
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn(f"{self._doing} {{task.description}}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rate]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, copy: FirstCopy | None, note: str) -> None:
        """Draw the present state."""
        if self._bar is not None and self._task is not None:
            if copy is None:
                self._bar.update(self._task, rate=note)
                return
            left = "" if copy.seconds_left is None else f", {format_seconds(copy.seconds_left)} left"
            self._bar.update(
                self._task,
                completed=copy.done_bytes,
                total=copy.total_bytes or None,
                rate=f"{format_bytes(copy.bytes_per_second)}/s{left}",
            )
            return
        now = self._clock.monotonic()
        if self._quiet or (self._said_at is not None and now - self._said_at < LINE_SECONDS):
            return
        self._said_at = now
        print(
            f"{self._doing} {self._name}: {describe_copy(copy) if copy else note or 'starting'}",
            file=sys.stderr,
        )

    def done(self, copy: FirstCopy | None) -> None:
        """Fill the bar."""
        if self._bar is not None and self._task is not None:
            total = copy.total_bytes if copy is not None else None
            self._bar.update(
                self._task,
                completed=total,
                total=total,
                rate="protected" if self._doing.startswith("first") else "done",
            )


def describe_copy(copy: FirstCopy) -> str:
    """``1.2 GiB of 4.0 GiB, 350.0 MiB/s, 8.0 s left``, and in a comparison how much of it differed."""
    left = "" if copy.seconds_left is None else f", {format_seconds(copy.seconds_left)} left"
    total = f" of {format_bytes(copy.total_bytes)}" if copy.total_bytes else ""
    differed = "" if copy.differed_bytes is None else f", {format_bytes(copy.differed_bytes)} differed"
    return f"{format_bytes(copy.done_bytes)}{total}, {format_bytes(copy.bytes_per_second)}/s{left}{differed}"
