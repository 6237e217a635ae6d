"""A scrub's report in the words of the control API: bounded, whatever the damage."""

from __future__ import annotations

from secondsite.gateway.messages.verdicts import DamagedObject, LostRanges, VerificationReport
from secondsite.journal.scrub import Damage, ScrubReport
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId

# A store that lost a volume has as many damaged objects as it has objects: the first ones are enough to act.
DAMAGED_SHOWN_MAX = 1000
RANGES_SHOWN_MAX = 256


def lost_ranges(disk: DiskId, where: Extents) -> LostRanges:
    """Extents, cut to what is worth showing."""
    pairs = tuple(pair for _, pair in zip(range(RANGES_SHOWN_MAX), where, strict=False))
    return LostRanges(disk=disk, bytes=where.total_bytes, ranges=pairs, more=len(where) - len(pairs))


def report_of(found: ScrubReport) -> VerificationReport:
    """The report as it travels and is kept."""
    shown = sorted(found.damaged, key=_weight)
    return VerificationReport(
        machine=found.machine,
        name=found.name,
        started_at=found.started_at,
        seconds=found.seconds,
        objects=found.objects,
        bytes=found.bytes,
        bytes_per_second=found.bytes_per_second,
        points=len(found.points),
        newest=found.points[-1] if found.points else None,
        newest_proved=max(found.proved, default=None),
        proved=tuple(found.proved),
        unproved=tuple(found.unproved),
        lost=tuple(found.lost),
        reread=tuple(found.reread),
        damaged=tuple(_damaged(damage) for damage in shown[:DAMAGED_SHOWN_MAX]),
        more_damaged=max(0, len(shown) - DAMAGED_SHOWN_MAX),
        missing=tuple(lost_ranges(disk, where) for disk, where in sorted(found.missing.items())),
        notes=tuple(found.notes),
        trust=f"{found.head.number}:{found.head.hash}" if found.head else None,
    )


def _weight(damage: Damage) -> tuple[int, str]:
    return -len(damage.points), damage.object


def _damaged(damage: Damage) -> DamagedObject:
    return DamagedObject(
        object=damage.object,
        kind=damage.kind,
        why=damage.why,
        points=tuple(sorted(damage.points)),
        lost=tuple(lost_ranges(disk, where) for disk, where in sorted(damage.ranges.items())),
    )
