"""The rungs by which a guest is asked to shut down, in virtual time, each with a guest that takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Quiesce, Source
from secondsite.fabrics.errors import HypervisorUnreachable, SourceBusy
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.failover import PlannedStop, PlannedStopStatus
from secondsite.gateway.source.plannedstop import PlannedStops
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState
from secondsite.model.points import Consistency
from secondsite.transfer.protocols import CommittedPoint, Link, StopNote, TargetHead
from support.control import Events

LIMIT = 300.0
STOP = "5" * 32
US = "gateway-a"


class GuestClock(FakeClock):
    """Time in which guests do what they were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.jump = timedelta(0)
        self.later: list[tuple[float, Callable[[], None]]] = []

    def utc(self) -> datetime:
        return super().utc() + self.jump

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for due, what in [each for each in self.later if each[0] <= self.monotonic()]:
            self.later.remove((due, what))
            what()


@dataclass
class Ears:
    """After how many seconds a guest shuts down when asked in each way; None: it goes on."""

    agent: float | None = 5.0
    button: float | None = 5.0
    has_agent: bool = True
    agent_fails: bool = False


class Host(MemoryFabric):
    """Its guest takes its time, or does not listen."""

    def __init__(self, ears: Ears, clock: GuestClock) -> None:
        super().__init__(clock=clock)
        self.ears, self.time, self.asked = ears, clock, list[tuple[str, float]]()
        self.shop = self.add_machine("shop", {"vda": MIB}, agent=ears.has_agent)

    def ask_to_shut_down(self, machine: MachineId, *, agent: bool) -> None:
        self.asked.append(("agent" if agent else "button", self.time.monotonic()))
        if agent and self.ears.agent_fails:
            raise SourceBusy(machine="shop", why="its agent does not answer")
        seconds = self.ears.agent if agent else self.ears.button
        if seconds is not None:
            self.time.later.append((self.time.monotonic() + seconds, self._off))

    def _off(self) -> None:
        self.set_power(self.shop, PowerState.OFF)


def _point() -> CommittedPoint:
    return CommittedPoint(
        number=7,
        epoch=1,
        nonce="ab" * 16,
        checkpoint="c7",
        parent_checkpoint=None,
        committed_at="2025-01-01T00:00:00+00:00",
        asked_at="2025-01-01T00:00:00+00:00",
        given_at="2025-01-01T00:00:00+00:00",
        consistency=Consistency.CRASH,
        disks=(),
    )


class Protected:
    """A machine whose target has a point, and says whose it is."""

    def __init__(self, host: Host) -> None:
        self.host, self.claimant, self.hurried = host, US, 0

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        return [(self.host.shop, "shop", cast("Link", self))]

    def head(self, machine: MachineId) -> TargetHead:
        return TargetHead(machine=machine, number=7, epoch=1, claimant=self.claimant, point=_point())

    def source(self, machine: MachineId) -> Source:
        return self.host.open_source(machine)

    def hindrance(self, _machine: MachineId) -> str:
        return ""

    def hurry(self, _machine: MachineId) -> None:
        self.hurried += 1
        if self.hurried == 3:  # meanwhile the other site does not wait any longer
            self.claimant = "gateway-b"

    def drain(self, _machine: MachineId) -> bool:
        return True

    def rest(self, _machine: MachineId) -> None:
        pass

    begin_again = rest


def stopped(tmp_path: Path, ears: Ears, **how: Any) -> tuple[PlannedStopStatus, Host, Events]:
    clock, events = GuestClock(), Events()
    host = Host(ears, clock)
    stops = PlannedStops(
        cast("Any", Protected(host)),
        host,
        us=US,
        state_dir=tmp_path,
        autostart=True,
        clock=clock,
        events=events,
    )
    stops.start(host.shop, "shop", PlannedStop(operation=STOP, seconds_max=LIMIT, **how))
    stops._threads.wait(host.shop)
    return stops.get(host.shop), host, events


@pytest.mark.parametrize(
    ("ears", "how", "by", "asked"),
    [
        (Ears(), {}, "agent", [("agent", 0)]),
        (Ears(agent=99), {}, "agent", [("agent", 0)]),
        (Ears(agent=None), {}, "power button", [("agent", 0), ("button", LIMIT / 3)]),
        (Ears(agent_fails=True), {}, "power button", [("agent", 0), ("button", 0)]),
        (Ears(has_agent=False), {}, "power button", [("button", 0)]),
        (Ears(has_agent=False, button=299), {}, "power button", [("button", 0)]),
        (Ears(agent=None, button=None), {"power_off": True}, "power off", [("agent", 0), ("button", 100)]),
    ],
)
def test_each_rung_is_reached_by_the_guest_that_needs_it(
    ears: Ears, how: dict[str, bool], by: str, asked: list[tuple[str, float]], tmp_path: Path
) -> None:
    status, host, _ = stopped(tmp_path, ears, **how)
    assert status.shut_down_by == by
    assert [way for way, _ in host.asked] == [way for way, _ in asked]
    assert [at for _, at in host.asked] == pytest.approx([at for _, at in asked], abs=1)


@pytest.mark.parametrize("ears", [Ears(agent=None, button=None), Ears(has_agent=False, button=None)])
def test_a_guest_that_ignores_its_power_button_runs_on_and_somebody_is_asked(
    ears: Ears, tmp_path: Path
) -> None:
    status, host, events = stopped(tmp_path, ears)
    assert (status.state, status.shut_down_by) == ("Waiting", "")
    assert host.runs(host.shop)
    assert host.isolated(host.shop) is None
    assert host.time.monotonic() == pytest.approx(LIMIT, abs=1)
    assert events.codes().count("planned.waiting") == 1


def test_a_stop_that_an_unplanned_failover_did_not_wait_for_ends(tmp_path: Path) -> None:
    """Its last point can never come; the machine stands still, isolated, for whoever decides."""
    status, host, events = stopped(tmp_path, Ears())
    assert status.state == "Failed"
    assert (status.error or {})["code"] == "failover.taken-over"
    assert host.isolated(host.shop) is not None
    assert not host.runs(host.shop)
    assert "planned.failed" in events.codes()


def test_a_gateway_that_goes_on_keeps_to_what_was_asked_for(tmp_path: Path) -> None:
    status, host, events = stopped(tmp_path, Ears(agent=None, button=None))
    assert (status.seconds_max, status.power_off, status.prove) == (LIMIT, False, True)
    stops = PlannedStops(
        cast("Any", Protected(host)),
        host,
        us=US,
        state_dir=tmp_path,
        autostart=True,
        clock=host.time,
        events=events,
    )
    stops._change(host.shop, state="ShuttingDown", seconds_max=30.0, power_off=True)  # as it ended there
    stops.resume()
    stops._threads.wait(host.shop)
    assert stops.get(host.shop).shut_down_by == "power off"
    assert host.time.monotonic() == pytest.approx(LIMIT + 30, abs=2)


class Replicated(Protected):
    """Its target gets a point with each cycle; the cycles of before the stop had an earlier checkpoint."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.source_of = host.open_source(host.shop)
        self.taken = 7
        self.cycle()

    def cycle(self) -> None:
        self.taken += 1
        at = self.host.time.utc().isoformat(timespec="microseconds")
        self.newest = msgspec.structs.replace(
            _point(), number=self.taken, checkpoint=f"c{self.taken}", asked_at=at, given_at=at
        )
        with self.source_of.capture(since=None, checkpoint=f"c{self.taken}", quiesce=Quiesce.NONE):
            pass

    def head(self, machine: MachineId) -> TargetHead:
        return TargetHead(
            machine=machine, number=self.taken, epoch=1, claimant=self.claimant, point=self.newest
        )

    def note_stop(self, note: StopNote) -> None:
        assert note.point in (0, self.taken), "of its last point, or void"

    def hurry(self, _machine: MachineId) -> None:
        self.hurried += 1
        if self.hurried == 4:
            self.cycle()


def _stops(tmp_path: Path, protected: Protected, events: Events) -> PlannedStops:
    return PlannedStops(
        cast("Any", protected),
        protected.host,
        us=US,
        state_dir=tmp_path,
        autostart=True,
        clock=protected.host.time,
        events=events,
    )


@pytest.mark.parametrize("when", ["before it was isolated", "after"])
def test_a_clock_that_is_set_back_neither_ends_a_stop_early_nor_holds_it_up(
    when: str, tmp_path: Path
) -> None:
    """Its last point is the first one of after it stood still, whatever the times of day say."""
    clock = GuestClock()
    host = Host(Ears(), clock)
    protected = Replicated(host)

    def set_back() -> None:
        clock.jump = timedelta(hours=-1)

    if when == "after":
        real = host.hold_open

        def hold_open(machine: MachineId) -> None:
            real(machine)
            set_back()

        host.hold_open = hold_open  # type: ignore[method-assign]
    else:
        clock.later.append((1.0, set_back))
    stops = _stops(tmp_path, protected, Events())
    stops.start(host.shop, "shop", PlannedStop(operation=STOP, seconds_max=LIMIT, prove=False))
    stops._threads.wait(host.shop)
    status = stops.get(host.shop)
    assert (status.state, status.point) == ("Completed", 9)
    assert clock.monotonic() < 60


def test_a_cancelled_stop_whose_machine_could_not_be_let_run_is_cancelled_again(tmp_path: Path) -> None:
    clock, events = GuestClock(), Events()
    host = Host(Ears(), clock)
    protected = Replicated(host)
    stops = _stops(tmp_path, protected, events)
    stops.start(host.shop, "shop", PlannedStop(operation=STOP, seconds_max=LIMIT, prove=False))
    stops._threads.wait(host.shop)
    real = host.lift_isolation

    def away(machine: MachineId, *, run: bool) -> None:
        raise HypervisorUnreachable(uri="test", why=f"{machine} {run}")

    host.lift_isolation = away  # type: ignore[method-assign]
    with pytest.raises(HypervisorUnreachable):
        stops.cancel(host.shop)
    host.lift_isolation = real  # type: ignore[method-assign]
    assert not host.runs(host.shop)
    stops = _stops(tmp_path, protected, events)  # the next gateway goes on with it by itself
    stops.resume()
    stops._threads.wait(host.shop)
    assert host.runs(host.shop)
    assert stops.cancel(host.shop).state == "Cancelled"
