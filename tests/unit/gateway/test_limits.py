"""Bandwidth by time of day: what holds when, in whose local time, who shares it, and who need not wait."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.units import KIB, MIB
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.common.limits import LOOK_SECONDS, PolicyLimits
from secondsite.model.ids import MachineId
from secondsite.model.points import SegmentRef
from secondsite.model.policies import RATE_MIN, BandwidthWindow, ReplicationPolicy
from secondsite.transfer.bandwidth import TokenBucket
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.protocols import Payload
from secondsite.transfer.sender import LinkShipper, _Shipment
from secondsite.transfer.spool import Spool
from secondsite.transfer.turns import Item, Turns
from support.transfer import MACHINE, OTHER_MACHINE, Events, Maker

BERLIN = ZoneInfo("Europe/Berlin")
THIRD = MachineId("6f1f7c9e-52c7-4f0e-9a53-0c4a3a1f0003")


def policy(*windows: tuple[str, str, float | None]) -> ReplicationPolicy:
    return ReplicationPolicy(
        bandwidth=tuple(BandwidthWindow(from_=f, until=u, bytes_per_second=rate) for f, u, rate in windows)
    )


OFFICE = policy(("08:00", "18:00", 1e6), ("18:00", "22:00", None))
NIGHT = policy(("02:00", "03:00", 2e6))


def at(text: str) -> FakeClock:
    return FakeClock(datetime.fromisoformat(text).astimezone(UTC))


def test_a_window_holds_within_a_minute_of_the_clock_and_is_told() -> None:
    clock = at("2026-01-15T07:58:00+01:00")
    events = EventLog(clock)
    limits = PolicyLimits(clock, events, BERLIN)
    limits.assign(MACHINE, "p1", "Office", OFFICE)
    assert (limits.of(MACHINE), events.since(0, 10)) == (None, [])
    rates = []
    for _ in range(6):
        clock.advance(LOOK_SECONDS)
        limits.look()
        rates.append(limits.rate(MACHINE))
    assert rates == [None] * 5 + [1e6]
    clock.advance(10 * 3600)
    limits.look()
    assert limits.of(MACHINE) is None  # a window without a limit is none
    limits.look()
    said = [event.text for _, event in events.since(0, 10)]
    assert len(said) == 2
    assert "Office (1 machines) at most 976.6 KiB a second" in said[0]
    assert "until 18:00 (08:00 local time)" in said[0]
    assert "as much as the gateway allows" in said[1]
    assert [event.code for _, event in events.since(0, 10)] == ["bandwidth.changed"] * 2


def test_the_thread_follows_the_clock() -> None:
    clock = at("2026-01-15T07:59:00+01:00")  # a wait of the fake clock passes at once: days go by
    events = Events()
    limits = PolicyLimits(clock, events, BERLIN)
    limits.assign(MACHINE, "p1", "Office", OFFICE)
    limits.start()
    events.wait_for("bandwidth.changed")
    limits.close()


@pytest.mark.parametrize(
    ("day", "limited_minutes"),
    [
        ("2026-01-15", 60),
        ("2026-03-29", 0),  # summer time begins: no clock on a wall shows 02:30
        ("2026-10-25", 120),  # and ends: it is shown twice
    ],
)
def test_summer_time_is_what_the_wall_shows(day: str, limited_minutes: int) -> None:
    clock = at(f"{day}T00:00:00+01:00")
    limits = PolicyLimits(clock, EventLog(clock), BERLIN)
    limits.assign(MACHINE, "p1", "Night", NIGHT)
    limited = 0
    for _ in range(6 * 60):
        limits.look()
        limited += limits.rate(MACHINE) is not None
        clock.advance(60)
    assert limited == limited_minutes


def test_items_of_a_policy_share_and_others_do_not() -> None:
    clock = at("2026-01-15T12:00:00+01:00")
    limits = PolicyLimits(clock, EventLog(clock), BERLIN)
    for machine, key in ((MACHINE, "p1"), (OTHER_MACHINE, "p1"), (THIRD, "p2")):
        limits.assign(machine, key, "Office", OFFICE)
    one, same, other = (limits.of(machine) for machine in (MACHINE, OTHER_MACHINE, THIRD))
    assert one is same
    assert one is not other
    # another policy, a change of it, the end: each without a new start
    limits.assign(MACHINE, "p2", "Office", OFFICE)
    assert limits.of(MACHINE) is other
    limits.assign(OTHER_MACHINE, "p1", "Office", policy(("11:00", "13:00", 5e6)))
    assert (limits.rate(OTHER_MACHINE), limits.rate(MACHINE)) == (5e6, 1e6)
    limits.assign(OTHER_MACHINE, "p1", "Office", ReplicationPolicy())
    assert limits.of(OTHER_MACHINE) is None
    limits.forget(MACHINE)
    assert limits.rate(MACHINE) is None
    assert limits.rate(THIRD) == 1e6


class Fixed:
    """One machine has a limit."""

    def __init__(self, machine: MachineId, bucket: TokenBucket) -> None:
        self.machine, self.bucket = machine, bucket

    def of(self, machine: MachineId) -> TokenBucket | None:
        return self.bucket if machine == self.machine else None


class SlowLink:
    """Takes from the machine's bucket as the real link does, and notes who arrived."""

    def __init__(self, limits: Fixed, clock: SystemClock) -> None:
        self.limits, self.clock = limits, clock
        self.changed = threading.Condition()
        self.arrived: list[MachineId] = []
        self.under_way = {MACHINE: 0, OTHER_MACHINE: 0}
        self.most = 0

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: threading.Event | None = None
    ) -> None:
        assert cancel is not None
        with self.changed:
            self.under_way[machine] += 1
            self.most = max(self.most, self.under_way[MACHINE])
        bucket = self.limits.of(machine)
        try:
            for _ in range(-(-ref.stored_bytes // (64 * KIB))):
                if bucket is not None:
                    bucket.take(64 * KIB, cancel)
        finally:
            with self.changed:
                self.under_way[machine] -= 1
                self.arrived.append(machine)
                self.changed.notify_all()


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[tuple[LinkShipper, SlowLink]]:
    clock = SystemClock()
    limits = Fixed(MACHINE, TokenBucket(RATE_MIN, clock))
    link = SlowLink(limits, clock)
    events = Events()
    spool = Spool(tmp_path / "cache", limit_bytes=64 * MIB, identity=tmp_path / "known", events=events)
    shipper = LinkShipper(
        link,  # type: ignore[arg-type]  # only segments are sent
        spool,
        clock=clock,
        chance=random.Random(1),
        events=events,
        limits=limits,
        connections=3,
    )
    yield shipper, link
    shipper.close()


def test_who_has_no_limit_does_not_wait_behind_who_has_one(shipped: tuple[LinkShipper, SlowLink]) -> None:
    shipper, link = shipped
    maker = Maker()
    limited, free = shipper.begin(MACHINE, 1), shipper.begin(OTHER_MACHINE, 1)
    for _ in range(6):  # a minute and a half of what it may send
        made = maker.segment(MIB)
        limited.add(made.ref, made.data, wait=True)
    for _ in range(12):
        made = maker.segment(MIB)
        free.add(made.ref, made.data, wait=True)
    with link.changed:
        assert link.changed.wait_for(lambda: link.arrived.count(OTHER_MACHINE) == 12, 10), link.arrived
        assert MACHINE not in link.arrived
        assert link.most <= 2
    limits = link.limits
    limits.bucket.set_rate(
        None
    )  # its window ends: what waits for it leaves within the old limit's next piece
    limits.bucket = TokenBucket(None, link.clock)
    with link.changed:
        assert link.changed.wait_for(lambda: link.arrived.count(MACHINE) == 6, 20), link.arrived


def test_a_limit_that_is_used_up_takes_no_worker() -> None:
    clock, cancelled = FakeClock(), threading.Event()
    bucket = TokenBucket(RATE_MIN, clock)
    turns = Turns(Fixed(MACHINE, bucket), connections=4)
    made = Maker().segment(64 * KIB)

    def item(machine: MachineId) -> Item:
        return Item(cast("_Shipment", SimpleNamespace(machine=machine)), 0, made.ref, None)

    queue = deque(
        [item(MACHINE), item(MACHINE), item(OTHER_MACHINE), item(MACHINE), item(MACHINE), item(MACHINE)]
    )
    first = turns.next(queue)
    assert first is not None
    assert first.shipment.machine == MACHINE
    cancelled.set()
    with contextlib.suppress(TransferCancelled):  # it does not wait, but what it let through counts
        bucket.take(int(RATE_MIN), cancelled)
    free = turns.next(queue)
    assert free is not None
    assert free.shipment.machine == OTHER_MACHINE
    assert turns.next(queue) is None
    clock.advance(1.0)
    sending: list[Item] = []
    while (taken := turns.next(queue)) is not None:
        turns.begin(taken)
        sending.append(taken)
    assert len(sending) == 3  # of four workers one is left to the others
    assert len(queue) == 1
    turns.end(sending[0])
    assert turns.next(queue) is not None
