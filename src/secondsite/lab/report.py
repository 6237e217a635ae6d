"""What the demo measures, and its closing table."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from secondsite.base.units import MIB, format_bytes, format_seconds
from secondsite.gateway.messages.gateway import ProtectionStatus


@dataclass
class Figures:
    """Filled in as the demo goes."""

    plain_boot_seconds: float = 0.0
    first_copy_bytes: int = 0
    first_copy_seconds: float = 0.0
    cycle_seconds: list[float] = field(default_factory=list)
    rpo_seconds: list[float] = field(default_factory=list)
    first_line_seconds: float = 0.0
    before: ProtectionStatus | None = None  # when the first point was committed
    last: ProtectionStatus | None = None

    def note_rpo(self, seconds: float | None) -> None:
        """One look at the age of the newest point."""
        if seconds is not None:
            self.rpo_seconds.append(seconds)

    def note_cycle(self, status: ProtectionStatus) -> None:
        """A point was committed."""
        if status.cycle_seconds is not None:
            self.cycle_seconds.append(status.cycle_seconds)
        self.last = status

    @property
    def changed_bytes(self) -> int:
        """What changed after the first copy, as the hypervisor tracks it."""
        return self._since(lambda status: status.total_changed_bytes)

    @property
    def sent_bytes(self) -> int:
        """What was sent for it, sealed."""
        return self._since(lambda status: status.total_sent_bytes)

    def _since(self, count: Callable[[ProtectionStatus], int]) -> int:
        return count(self.last) - count(self.before) if self.last and self.before else 0

    @property
    def first_copy_mb_s(self) -> float:
        """Data, not holes, in MB (10^6 bytes) a second from the request until the first point."""
        return self.first_copy_bytes / 1e6 / self.first_copy_seconds if self.first_copy_seconds else 0.0


def rows(figures: Figures) -> list[tuple[str, str]]:
    """The table's lines."""
    cycles = figures.cycle_seconds or [0.0]
    rpo = figures.rpo_seconds or [0.0]
    ratio = figures.changed_bytes / figures.sent_bytes if figures.sent_bytes else 0.0
    copied = f"{figures.first_copy_bytes / MIB:.0f} MiB in {format_seconds(figures.first_copy_seconds)}"
    return [
        ("first copy, until the first point was durable", f"{figures.first_copy_mb_s:.0f} MB/s ({copied})"),
        (
            "a cycle, median and longest",
            f"{format_seconds(statistics.median(cycles))}, {format_seconds(max(cycles))}",
        ),
        (
            "RPO reached, median and worst",
            f"{format_seconds(statistics.median(rpo))}, {format_seconds(max(rpo))}",
        ),
        ("request to first userspace line at B", format_seconds(figures.first_line_seconds)),
        (
            "bytes changed : sent (as tracked : sealed)",
            f"{format_bytes(figures.changed_bytes)} : {format_bytes(figures.sent_bytes)} = {ratio:.1f} : 1",
        ),
    ]


def print_table(console: Console, figures: Figures, total_seconds: float) -> None:
    """The closing table."""
    table = Table(title="What was measured", show_header=False, title_justify="left")
    for name, value in rows(figures):
        table.add_row(name, value)
    table.add_row("the whole demo, all removed again", format_seconds(total_seconds))
    console.print(table)
    console.print(
        f"on {os.cpu_count()} processors, {platform.system()} {platform.release()}, guest emulated",
        style="dim",
    )
