"""What a policy costs, against a journal that is thinned for real: never less than it took, not much more."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondsite.base.units import GIB, MIB, format_bytes
from secondsite.model.points import Consistency
from secondsite.model.retention import DAY, HOUR, PointFacts, RetentionPolicy, decide
from secondsite.model.retention_cost import Cost, Piece, churn_of, cost_of, share_of

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "retention.md").read_text()
BLOCK = 4096


@dataclass
class Kept:
    """A listed point of the thinned journal."""

    facts: PointFacts
    blocks: set[int]
    arrived: int  # bytes
    count: int = 1


class Load:
    """A machine that writes random blocks, some of them again and again, thinned as a journal is."""

    def __init__(self, policy: RetentionPolicy, *, every: float, seed: int) -> None:
        self.policy, self.every, self.chance = policy, every, random.Random(seed)
        self.points: list[Kept] = []
        self.number = 0

    def write(self) -> set[int]:
        hot = {self.chance.randrange(1000) for _ in range(60)}
        return hot | {self.chance.randrange(1_000_000) for _ in range(40)}

    def run(self, points: int) -> None:
        for _ in range(points):
            self.number += 1
            blocks = self.write()
            facts = PointFacts(self.number, 1e9 + self.number * self.every, Consistency.CRASH)
            self.points.append(Kept(facts, blocks, len(blocks) * BLOCK))
            self.thin()

    def thin(self) -> None:
        decision = decide([kept.facts for kept in self.points], self.policy)
        floor = decision.floor or 0
        by_number = {kept.facts.number: kept for kept in self.points}
        for group in decision.groups:
            last = by_number[group.last]
            for number in group.dropped:
                gone = by_number.pop(number)
                last.blocks |= gone.blocks
                last.arrived += gone.arrived
                last.count += gone.count
        self.points = [kept for number, kept in sorted(by_number.items()) if number >= floor]

    def stored(self) -> int:
        """Of the oldest point nothing: the base holds it."""
        return sum(len(kept.blocks) for kept in self.points[1:]) * BLOCK

    def pieces(self) -> list[Piece]:
        return [
            Piece(
                after.facts.at - before.facts.at,
                len(after.blocks) * BLOCK,
                after.arrived,
                merged=after.count > 1,
            )
            for before, after in zip(self.points, self.points[1:], strict=False)
        ]

    def cost(self, policy: RetentionPolicy) -> Cost:
        churn = churn_of(self.pieces())
        assert churn is not None
        return cost_of(policy, churn, disk_bytes=1_000_000 * BLOCK)


@pytest.mark.parametrize("text", ["all:2h,1h:1d,2h:3d", "all:1h,1h:2d", "latest+5", "1h:12h,6h:3d"])
def test_the_cost_is_what_it_comes_to_and_a_little_more(text: str) -> None:
    policy = RetentionPolicy.parse(text)
    load = Load(policy, every=300, seed=len(text))
    load.run(12 * 24 * 4)
    forecast = load.cost(policy)
    most_stored = most_points = 0
    for _ in range(12 * 12):  # half a day more: buckets fill and are thinned in turn
        load.run(1)
        most_stored, most_points = max(most_stored, load.stored()), max(most_points, len(load.points))
    assert most_stored <= forecast.journal_bytes <= 1.35 * most_stored
    assert most_points <= forecast.points <= most_points + 40


def test_seen_beforehand_it_is_never_too_little() -> None:
    """From five hours, of which two are merged, for a policy that was not in force then."""
    load = Load(RetentionPolicy.parse("all:2h,1h:1d"), every=300, seed=3)
    load.run(12 * 5)
    wanted = RetentionPolicy.parse("all:1h,1h:1d,6h:4d")
    forecast = load.cost(wanted)
    load.policy = wanted
    most = 0
    for _ in range(12 * 24 * 5):
        load.run(1)
        most = max(most, load.stored())
    assert most <= forecast.journal_bytes <= 2.0 * most


def test_too_few_points_tell_nothing() -> None:
    assert churn_of([]) is None
    assert churn_of([Piece(5, 10, None, merged=False)]) is None
    assert churn_of([Piece(3600, 10, 10, merged=True)]) is None


def test_a_share_is_taken_from_the_longest_pieces_that_fit() -> None:
    pieces = [
        Piece(5, 1000, 1000, merged=False),
        Piece(600, 80, 100, merged=True),
        Piece(3600, 50, 100, merged=True),
        Piece(3700, 150, 300, merged=True),
        Piece(86400, 10, 100, merged=True),
        Piece(7200, 1, None, merged=True),  # made by an older version: it does not know
    ]
    churn = churn_of(pieces)
    assert churn is not None
    hour = share_of(churn, 3600)
    assert (hour.share, hour.measured_seconds) == (0.5, 3650)
    # two hours were never merged: the share of one hour, which is more than it will be
    assert share_of(churn, 7200).share == 0.5
    assert share_of(churn, 86400).share == 0.1
    assert share_of(churn, 60).measured_seconds is None
    assert share_of(churn, 60).share == 1.0


def test_a_point_never_holds_more_than_the_disks() -> None:
    churn = churn_of([Piece(5, 5 * MIB, 5 * MIB, merged=False)] * 10)
    assert churn is not None
    cost = cost_of(RetentionPolicy.parse("all:5min,1d:7d"), churn, disk_bytes=1 * GIB)
    a_day_unthinned = int((300 + DAY) * churn.stored_bytes_per_second)
    assert cost.journal_bytes == a_day_unthinned + 8 * GIB


def test_the_worked_example_of_the_document() -> None:
    """docs/retention.md computes by hand what this computes."""
    section = DOCUMENT.split("## A worked example")[1].split("\n## ")[0]
    points = [Piece(5, 2 * MIB, 2 * MIB, merged=False)] * 1440
    hours = [Piece(HOUR, 504 * MIB, 1440 * MIB, merged=True)] * 22
    churn = churn_of([*hours, *points])
    assert churn is not None
    policy = RetentionPolicy.parse("all:2h,1h:1d,2h:7d")
    cost = cost_of(policy, churn, disk_bytes=64 * GIB)
    told = {
        "a day": format_bytes(churn.stored_bytes_per_day),
        "share": f"{cost.shares[0].share * 100:.0f} %",
        "points": f"{cost.points:,}",
        "stored": format_bytes(cost.journal_bytes),
        "without thinning": format_bytes(7 * churn.stored_bytes_per_day),
        "thirty days": format_bytes(
            cost_of(RetentionPolicy.parse("all:2h,1h:1d,1d:30d"), churn, disk_bytes=64 * GIB).journal_bytes
        ),
    }
    for what, text in told.items():
        assert re.search(rf"\*\*{re.escape(text)}\*\*", section), f"{what}: {text} is not in the example"
    assert len(re.findall(r"\*\*[^*]+\*\*", section)) == len(told)
