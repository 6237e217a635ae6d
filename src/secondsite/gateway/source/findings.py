"""What became of a machine's disks between two of its instants: a table of findings. Pure.

A row is looked at for each disk, as it was at the instant before and as it is now; every row that applies is
an event. What each means for the copy is said in its text: nothing here makes a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from secondsite.base.units import format_bytes
from secondsite.fabrics.base import Capture
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId


@dataclass(frozen=True)
class DiskFact:
    """One disk at an instant."""

    id: DiskId
    size_bytes: int
    location: str = ""  # of its image, in the fabric's words; empty: not known
    untracked: str = ""  # why what changed on it since the instant before was not known


@dataclass(frozen=True)
class Finding:
    """Something that happened to a disk."""

    code: str
    severity: Severity
    text: str


@dataclass(frozen=True)
class _Row:
    """One kind of finding: when it applies to (before, now), and what is said."""

    code: str
    severity: Severity
    applies: Callable[[DiskFact | None, DiskFact | None], bool]
    text: str  # with {disk}, and {before} and {now} as DiskFact


def _added(before: DiskFact | None, now: DiskFact | None) -> bool:
    return before is None and now is not None


def _removed(before: DiskFact | None, now: DiskFact | None) -> bool:
    return before is not None and now is None


def _grown(before: DiskFact | None, now: DiskFact | None) -> bool:
    return before is not None and now is not None and now.size_bytes > before.size_bytes


def _shrunk(before: DiskFact | None, now: DiskFact | None) -> bool:
    return before is not None and now is not None and now.size_bytes < before.size_bytes


def _untracked(before: DiskFact | None, now: DiskFact | None) -> bool:
    return before is not None and now is not None and bool(now.untracked)


def _switched(before: DiskFact | None, now: DiskFact | None) -> bool:
    if before is None or now is None or not before.location or not now.location:
        return False
    return before.location != now.location and not now.untracked


ROWS = (
    _Row(
        "source.disk-added",
        Severity.INFORMATION,
        _added,
        "disk {disk} ({now_size}) was added; all of it is part of points from the next one on, older points "
        "do not have it",
    ),
    _Row(
        "source.disk-removed",
        Severity.WARNING,
        _removed,
        "disk {disk} was removed; points from the next one on do not have it, older points keep it",
    ),
    _Row(
        "source.disk-grown",
        Severity.INFORMATION,
        _grown,
        "disk {disk} grew from {before_size} to {now_size}; its new part is part of points from the next one "
        "on, older points keep their size",
    ),
    _Row(
        "source.disk-shrunk",
        Severity.WARNING,
        _shrunk,
        "disk {disk} shrank from {before_size} to {now_size}; older points keep their size and the "
        "part cut off",
    ),
    _Row(
        "source.disk-untracked",
        Severity.WARNING,
        _untracked,
        "what changed on disk {disk} is not known: {why}; it is read whole, and what the target does not "
        "hold is sent; the other disks are counted as before, older points stay valid",
    ),
    _Row(
        "source.image-switched",
        Severity.INFORMATION,
        _switched,
        "disk {disk} lies in {to} now, no longer in {was}, as after a snapshot or a merge; tracking goes on",
    ),
)


def compare(before: Mapping[DiskId, DiskFact], now: Iterable[DiskFact]) -> list[Finding]:
    """Every row that applies to any disk, in the order of the disks and of the table."""
    present = {disk.id: disk for disk in now}
    names = [*before, *(disk for disk in present if disk not in before)]
    return [
        Finding(row.code, row.severity, _text(row, name, before.get(name), present.get(name)))
        for name in names
        for row in ROWS
        if row.applies(before.get(name), present.get(name))
    ]


def _text(row: _Row, disk: DiskId, before: DiskFact | None, now: DiskFact | None) -> str:
    return row.text.format(
        disk=disk,
        before_size=format_bytes(before.size_bytes) if before else "",
        now_size=format_bytes(now.size_bytes) if now else "",
        was=before.location if before else "",
        to=now.location if now else "",
        why=now.untracked if now else "",
    )


def facts_of(capture: Capture) -> tuple[DiskFact, ...]:
    """The disks of a capture."""
    return tuple(DiskFact(d.id, d.size_bytes, d.location, d.untracked) for d in capture.disks)
