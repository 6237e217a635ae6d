"""Holds: points a person keeps past what the retention says, with a reason and an end.

A hold is a pin in the machine's own state record, so that every process that thins or promotes sees it. It
always ends: a journal that is held at one point grows until the hold is over. Nobody reads by a hold; who
opens the held point pins it again, so a hold keeps the point and nothing that merging replaced.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.units import parse_seconds
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.messages.gateway import HeldPoint, HoldRequest, PointHold
from secondsite.journal.chain import Journal
from secondsite.journal.episodes import found_in
from secondsite.journal.state import Pin, State
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.points import Point

PREFIX = "hold:"
EXPORT_PREFIX = "export:"  # as gateway.exports names its holders
HOLD_DAYS_MAX = 3660
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class HoldExists(SecondsiteError):
    """The name is taken by a hold of another point."""

    code = "hold.exists"
    outcome = Outcome.REFUSED
    happened = "{machine} has a hold {name} already, of point {number} until {until}."
    cause = "A name holds one point; taking it for another would let go of the first unasked."
    action = "Use another --name, or release {name} first."


class HoldUnknown(SecondsiteError):
    """Nothing to release."""

    code = "hold.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} has no hold {wanted}; {known}."
    cause = "It was released or has ended, or the name is mistyped; tests and exports let go by themselves."
    action = "See `secondsite points list {machine}`, whose last column says who holds a point."


class Holds:
    """Takes and releases holds. Thread-safe within one gateway."""

    def __init__(
        self,
        journal: Callable[[MachineId], Journal],
        *,
        clock: Clock,
        events: EventSink,
        served: Callable[[MachineId], Collection[str]] = lambda _: (),
        released: Callable[[], None] = lambda: None,
    ) -> None:
        """served: holders whose exports this gateway knows. released: told after points were let go."""
        self._served = served
        self._journal = journal
        self._clock = clock
        self._events = events
        self._released = released
        self._lock = threading.Lock()

    def hold(self, machine: MachineId, request: HoldRequest) -> HeldPoint:
        """Keep a point until its end. The same hold again changes its reason and its end.

        Raises InvalidInput, NoSuchPoint, HoldExists; then nothing was changed.
        """
        if not request.reason.strip():
            raise InvalidInput(what="the reason", why="it is empty")
        until = parse_end(request.until, self._clock)
        if request.name is not None and (not _NAME.match(request.name) or request.name.isdecimal()):
            why = "it is letters, digits, dots, dashes and underscores, at most 63, and no number"
            raise InvalidInput(what=f"the name {request.name[:80]!r}", why=why)
        journal = self._journal(machine)
        with self._lock:
            points = journal.points()
            title = points[-1].machine_name if points else machine
            point = choose_point(points, request.point, machine=title, episodes=lambda: found_in(journal))
            holder = f"{PREFIX}{request.name or point.number}"
            now = _text(self._clock.utc())
            state = journal.state()
            mine = next((pin for pin in state.pins_at(now) if pin.holder == holder), None)
            if mine is not None and mine.number != point.number:
                raise HoldExists(
                    machine=title, name=request.name, number=mine.number, until=mine.until or "released"
                )
            for pin in state.pins:  # so that ended ones do not fill the list
                if pin.holder.startswith(PREFIX) and pin not in state.pins_at(now):
                    journal.unpin(pin.holder)
            reason = request.reason.strip()
            pin = journal.pin(point.number, holder, reason, _text(until), reads=False)
        text = f"point {point.number} of {title} is held until {_short(until)}: {reason}"
        self._tell("point.held", text, machine, point.number, holder)
        return HeldPoint(number=point.number, at=point.given_at, hold=_hold(pin))

    def release(self, machine: MachineId, wanted: str) -> list[HeldPoint]:
        """Let go of a hold by its name, or of every hold of a point by its number. Raises HoldUnknown."""
        journal = self._journal(machine)
        with self._lock:
            points = {point.number: point for point in journal.points()}
            pins = [
                pin
                for pin in journal.state().pins_at(_text(self._clock.utc()))
                if pin.holder.startswith(PREFIX)
            ]
            found = [pin for pin in pins if wanted in (pin.holder.removeprefix(PREFIX), str(pin.number))]
            if not found:
                title = next((point.machine_name for point in points.values()), machine)
                names = ", ".join(f"{pin.holder.removeprefix(PREFIX)} (point {pin.number})" for pin in pins)
                known = f"there are {names}" if names else "there is none"
                raise HoldUnknown(machine=title, wanted=wanted[:80], known=known)
            return self._let_go(journal, found, points)

    def release_lost(self, machine: MachineId) -> list[HeldPoint]:
        """Let go of points held for exports that this gateway does not know: of one that was lost.

        Also of a rescue that is running on the same store: a person says that there is none.
        """
        journal = self._journal(machine)
        with self._lock:
            points = {point.number: point for point in journal.points()}
            known = self._served(machine)
            lost = [
                pin
                for pin in journal.state().pins
                if pin.holder.startswith(EXPORT_PREFIX) and pin.holder not in known
            ]
            return self._let_go(journal, lost, points)

    def _let_go(self, journal: Journal, pins: Sequence[Pin], points: Mapping[int, Point]) -> list[HeldPoint]:
        for pin in pins:
            journal.unpin(pin.holder)
        for pin in pins:
            text = f"point {pin.number} of {points[pin.number].machine_name} is no longer held"
            self._tell("point.released", f"{text} ({pin.reason})", journal.machine, pin.number, pin.holder)
        if pins:
            self._released()
        return [HeldPoint(number=pin.number, at=points[pin.number].given_at, hold=_hold(pin)) for pin in pins]

    def _tell(self, code: str, text: str, machine: MachineId, number: int, holder: str) -> None:
        self._events.emit(code, Severity.INFORMATION, text, machine=machine, number=number, holder=holder)


def holders(state: State, clock: Clock) -> dict[int, tuple[PointHold, ...]]:
    """Who holds which point now, people, tests and exports alike."""
    found: dict[int, tuple[PointHold, ...]] = {}
    for pin in state.pins_at(_text(clock.utc())):
        found[pin.number] = (*found.get(pin.number, ()), _hold(pin))
    return found


def parse_end(text: str, clock: Clock) -> datetime:
    """When a hold ends: ``12h``, ``30d``, or a time; UTC where it has no zone. Raises InvalidInput."""
    now = clock.utc()
    what = f"the end {text[:80]!r}"
    try:
        end = now + timedelta(seconds=parse_seconds(text))
    except InvalidInput:
        try:
            end = datetime.fromisoformat(text.strip())
        except ValueError:
            why = "it is neither a time like 2026-12-31T18:00:00 nor a length like 12h or 30d"
            raise InvalidInput(what=what, why=why) from None
    except OverflowError:
        raise InvalidInput(what=what, why="no hold lasts longer than ten years") from None
    end = end.astimezone(UTC) if end.tzinfo else end.replace(tzinfo=UTC)
    if end <= now:
        raise InvalidInput(what=what, why=f"it is past: here it is {_short(now)}")
    if end - now > timedelta(days=HOLD_DAYS_MAX):
        raise InvalidInput(what=what, why="no hold lasts longer than ten years")
    return end


def _hold(pin: Pin) -> PointHold:
    return PointHold(holder=pin.holder, reason=pin.reason, until=pin.until)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")


def _short(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}Z"
