"""What is kept of a machine and what that costs, now and by a policy that is only being thought about."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.messages.retention import (
    BaseCost,
    NextPass,
    RetentionCost,
    RetentionReport,
    WindowShare,
)
from secondsite.gateway.target.journalbytes import segment_bytes
from secondsite.gateway.target.retention import Retention
from secondsite.journal.chain import Journal
from secondsite.journal.state import State
from secondsite.model.ids import MachineId
from secondsite.model.points import Point
from secondsite.model.retention import Decision, RetentionPolicy
from secondsite.model.retention_cost import Churn, Piece, churn_of, cost_of

# A span's figure is 24 characters and a number; a machine has hundreds of spans.
ARRIVED_MAX = 100_000
BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own block is


class RetentionReports:
    """Reads journals, changes nothing. Thread-safe."""

    def __init__(
        self, journal: Callable[[MachineId], Journal], retention: Retention, *, clock: Clock
    ) -> None:
        self._journal = journal
        self._retention = retention
        self._clock = clock
        self._lock = threading.Lock()
        self._arrived: dict[str, int] = {}  # span -> what it was made of; a span never changes

    def report(self, machine: MachineId, policy: str | None = None) -> RetentionReport:
        """One machine; `policy`: another than the one in force. Raises InvalidInput, ChainBroken."""
        kept = self._retention.policies.of(machine)
        wanted = kept if policy is None else RetentionPolicy.parse(policy)
        journal = self._journal(machine)
        state = journal.state()
        points = journal.points()
        stored = journal.points_after(state.promoted)
        churn = churn_of(self._pieces(journal, state, points))
        newest = points[-1] if points else None
        return RetentionReport(
            machine=machine,
            name=newest.machine_name if newest else machine,
            policy=wanted.describe(),
            source="" if wanted != kept else self._retention.policies.source(machine),
            trial=wanted != kept,
            points=len(points),
            oldest=points[0].given_at if points else None,
            newest=newest.given_at if newest else None,
            journal_bytes=segment_bytes(stored),
            bases=tuple(
                BaseCost(disk=base.disk, size_bytes=base.size_bytes, allocated_bytes=_allocated(base.locator))
                for base in state.bases
            ),
            next_pass=_next_pass(self._retention.next_pass(journal, wanted), points),
            measured_seconds=churn.seconds if churn else 0.0,
            stored_bytes_per_day=churn.stored_bytes_per_day if churn else None,
            point_seconds=churn.point_seconds if churn else None,
            cost=_cost(
                wanted, churn, points, standing=0 if self._retention.has_bases else points[0].sent_bytes
            )
            if churn
            else None,
        )

    def _pieces(self, journal: Journal, state: State, points: Sequence[Point]) -> list[Piece]:
        """What each listed point but the oldest holds; how long the oldest took is not known."""
        spans = {span.last: span.id for span in state.spans}
        found = []
        for before, point in itertools.pairwise(points):
            seconds = _time(point) - _time(before)
            span = spans.get(point.number)
            arrived: int | None = point.sent_bytes
            if span is not None:
                arrived = self._arrived_of(journal, span)
            elif point.parent_checkpoint is None:
                arrived = None  # everything was compared or sent again: that is not churn
            found.append(Piece(seconds, point.sent_bytes, arrived, merged=span is not None))
        return found

    def _arrived_of(self, journal: Journal, span: str) -> int | None:
        with self._lock:
            known = self._arrived.get(span)
        if known is None:
            made = journal.read_span(span)
            known = made.arrived_bytes if made is not None else 0
            with self._lock:
                if len(self._arrived) >= ARRIVED_MAX:
                    self._arrived.clear()
                self._arrived[span] = known
        return known or None


def _time(point: Point) -> float:
    return parse_time(point.committed_at).timestamp()


def _allocated(locator: str) -> int | None:
    try:
        return Path(locator).stat().st_blocks * BLOCK_BYTES
    except OSError:
        return None


def _next_pass(decision: Decision, points: Sequence[Point]) -> NextPass:
    floor = decision.floor or 0
    return NextPass(
        merged=sum(len(group.dropped) for group in decision.groups),
        into=len(decision.groups),
        leaving=sum(1 for point in points if point.number < floor),
        held=len(decision.waiting),
        settling=decision.settling,
    )


def _cost(policy: RetentionPolicy, churn: Churn, points: Sequence[Point], *, standing: int) -> RetentionCost:
    """standing: stored bytes of the oldest point, which carries what a base would where there are none."""
    cost = cost_of(policy, churn, disk_bytes=sum(disk.size_bytes for disk in points[-1].disks))
    return RetentionCost(
        points=cost.points,
        journal_bytes=cost.journal_bytes + standing,
        shares=tuple(
            WindowShare(every_seconds=s.every_seconds, share=s.share, measured_seconds=s.measured_seconds)
            for s in cost.shares
        ),
    )
