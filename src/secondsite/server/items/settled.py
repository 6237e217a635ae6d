"""What need not be looked at again: items whose row and whose gateway's words are those of the last look.

A gateway of a thousand machines says something new of each with every report, nearly always only its newest
point. To compare a whole item costs a server's processor some 100 µs, to see that nothing but measurements
moved a tenth of it. One server remembers what it looked at, as hashes; what another wrote meanwhile shows in
the row, and is looked at.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.itempassing import LOOKED_AT
from secondsite.server.database.tables_items import ITEMS, REPORTS
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.items.news import INSTANT_SECONDS
from secondsite.server.items.records import Item
from secondsite.transfer.reports import ProtectionReport, ReplicaReport, Report

# What only measures; everything else a gateway says may move its item.
MEASURED = (
    "epoch",
    "points",
    "last_point",
    "last_point_at",
    "last_consistency",
    "spool_bytes",
    "total_changed_bytes",
    "total_sent_bytes",
)
_measured = operator.attrgetter(*MEASURED)
_said = operator.attrgetter(
    *(name for name in ProtectionReport.model_fields if name not in {*MEASURED, "rpo_seconds"})
)
_kept = operator.attrgetter(
    *(
        name
        for name in ReplicaReport.model_fields
        if name not in {"points", "oldest_at", "newest", "newest_at", "epoch"}
    )
)
# Whatever else a report says of single machines; each such machine is always looked at.
_PARTS = [
    name
    for name in Report.model_fields
    if name not in {"sent_at", "generation", "refused", "left_behind", "protections", "replicas"}
]
# Texts that never change without the item's revision.
_LONG = {"policy", "disks", "left_out", "mapping", "before_change", "name_key", "changed_by"}
_COLUMNS = [column for column in ITEMS.c if column.name not in _LONG]
_ID, _MACHINE, _STATE, _SOURCE_GENERATION, _TARGET_GENERATION = (
    [column.name for column in _COLUMNS].index(name)
    for name in ("id", "machine", "state", "source_generation", "target_generation")
)
_LOOKED_AT = frozenset(state.value for state in LOOKED_AT)


@dataclass(frozen=True, slots=True)
class Seen:
    """An item as the last look left it. measured: None: the next measurements are written in any case."""

    id: str
    machine: str
    source_id: str
    rpo_threshold_seconds: float | None
    row: int  # hashes
    words: int
    measured: int | None = None
    here: datetime | None = None  # the instant of its newest point, by our clock
    sent_at: str | None = None  # of the measurements


@dataclass(frozen=True)
class Looks:
    """What is to be compared: these items, with what the report says of their machines.

    measured: rows of measurements of the rest, whose items stay as they are; fresh: what is seen of those.
    """

    ids: frozenset[str]
    few: bool
    report: Report
    rest: Sequence[Seen]
    measured: Sequence[dict[str, object]]
    fresh: Mapping[str, Seen]
    keys: Mapping[str, tuple[int, int]]  # item -> hashes of its row and of what was said


# More than that at once are read as one: a list of ids is longer than the answer.
IDS_MAX = 400


class Watched(Protocol):
    """An item as the histories look at it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def machine(self) -> str:
        """Whose it is."""

    @property
    def source_id(self) -> str:
        """The gateway that protects it."""

    @property
    def rpo_threshold_seconds(self) -> float | None:
        """Its objective."""


class Settled:
    """Of one server; bounded by its items, once for each end. Used by the thread that writes reports."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, Seen]] = {}  # gateway -> item

    def look(self, connection: Connection, who: GatewayIdentity, report: Report, at: str) -> Looks:
        """What of a report, heard at `at`, is to be compared with its items."""
        seen, heard = self._seen.get(who.id, {}), _Heard(report, from_moment(at))
        ids: list[str] = []
        keys: dict[str, tuple[int, int]] = {}
        rest: list[Seen] = []
        measured: list[dict[str, object]] = []
        settled: set[str] = set()
        fresh: dict[str, Seen] = {}
        for row in connection.execute(_query(who)):
            item, machine = row[_ID], row[_MACHINE]
            known, key = seen.get(item), (hash(tuple(row[:-1])), heard.words(row))
            new = known is None or (known.row, known.words) != key
            if known is None or new or heard.is_moving(machine) or row[_STATE] in _LOOKED_AT:
                ids.append(item)
                keys[item] = key
                continue
            one = heard.said.get(machine)
            if one is not None and known.source_id == who.id:
                settled.add(machine)
                known, values = heard.measure(known, one, sent_before=row[-1])
                if values is not None:
                    fresh[item] = known
                    measured.append(values)
            rest.append(known)
        left = tuple(one for one in report.protections if one.machine not in settled)
        reduced = report.model_copy(update={"protections": left})
        return Looks(frozenset(ids), len(ids) <= IDS_MAX, reduced, rest, measured, fresh, keys)

    def remember(self, who: GatewayIdentity, looks: Looks, stayed: Sequence[Item]) -> None:
        """What was compared, is written now and stays as it is."""
        before = self._seen.get(who.id, {})
        seen = {one.id: before[one.id] for one in looks.rest if one.id in before} | dict(looks.fresh)
        for item in stayed:
            threshold, (row, words) = item.rpo_threshold_seconds, looks.keys[item.id]
            seen[item.id] = Seen(item.id, item.machine, item.source_id, threshold, row, words)
        self._seen[who.id] = seen


class _Heard:
    """A report, by machine."""

    def __init__(self, report: Report, at: datetime) -> None:
        self._report = report
        self._at = at
        self.said = {one.machine: one for one in report.protections}
        self._kept = {one.machine: one for one in report.replicas}
        self._told = {one.machine for part in _PARTS for one in getattr(report, part)}

    def is_moving(self, machine: str) -> bool:
        """Whether it is to be looked at whatever was said before."""
        one = self.said.get(machine)
        return machine in self._told or (
            one is not None and (one.copying is not None or one.wanted is not None)
        )

    def words(self, row: sa.Row[Any]) -> int:
        """Of all that is said of an item but measurements; of what moves nothing that counts."""
        item, machine = row[_ID], row[_MACHINE]
        if self.is_moving(machine):
            return 0
        one, replica, said = self.said.get(machine), self._kept.get(machine), self._report
        return hash(
            (
                one and _said(one),
                replica and _kept(replica),
                said.refused.get(item),
                said.left_behind.get(item),
                said.generation >= row[_SOURCE_GENERATION],
                said.generation >= row[_TARGET_GENERATION],
            )
        )

    def measure(
        self, seen: Seen, one: ProtectionReport, *, sent_before: str | None
    ) -> tuple[Seen, dict[str, object] | None]:
        """What was seen from now on, and the row of measurements; None when it is as it was."""
        values, here = _measured(one), None
        if one.rpo_seconds is not None:
            here = self._at - timedelta(seconds=one.rpo_seconds)
            if seen.here is not None and abs((here - seen.here).total_seconds()) < INSTANT_SECONDS:
                here = seen.here
        count, sent_at = hash(values), self._report.sent_at
        if (seen.measured, seen.here, seen.sent_at) == (count, here, sent_before):
            return seen, None
        row: dict[str, object] = dict(zip(MEASURED, values, strict=True))
        row |= {"item": seen.id, "sent_at": sent_at, "word": one.state, "bitmap_mode": int(one.bitmap_mode)}
        row |= {"copying": None, "resynced": one.resynced}
        row["last_point_here"] = None if here is None else moment(here)
        threshold = seen.rpo_threshold_seconds
        now = Seen(
            seen.id, seen.machine, seen.source_id, threshold, seen.row, seen.words, count, here, sent_at
        )
        return now, row


def _query(who: GatewayIdentity) -> sa.Select[Any]:
    joined = ITEMS.outerjoin(REPORTS, REPORTS.c.item == ITEMS.c.id)
    ends = sa.or_(ITEMS.c.source_id == who.id, ITEMS.c.target_id == who.id)
    return (
        sa.select(*_COLUMNS, REPORTS.c.sent_at)
        .select_from(joined)
        .where(ends, ITEMS.c.vault_id == who.vault_id)
    )
