"""What a journal's records say, read from the store again, as far as they can be trusted.

The rules are `ChainRecords`'; unlike `Journal`, which refuses a journal that is not whole, this goes on after
a damaged record to tell how much it costs: the points before it stand, those from it on cannot be trusted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from secondsite.base.errors import SecondsiteError
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import ChainBroken
from secondsite.journal.chain_records import ChainRecords
from secondsite.journal.errors import WrongKey, damaged
from secondsite.journal.manifest import RECORD_BYTES_MAX, decode_record, decode_span, record_hash
from secondsite.journal.names import log_name, log_prefix, span_name, spans_prefix, state_prefix
from secondsite.journal.scrub_segment import UNUSABLE
from secondsite.journal.scrub_types import Damage, Meter, Trusted
from secondsite.journal.state import STATE_BYTES_MAX, SpanRef, State, StateDamaged, decode_state
from secondsite.journal.store import StoreUnavailable
from secondsite.model.points import Claim, Point, Record, Span

_WRONG = (*UNUSABLE, StateDamaged, ChainBroken, StoreUnavailable)


@dataclass
class Log:
    """What was read."""

    state: State
    points: list[Point] = field(default_factory=list)  # younger than what the bases hold, in a whole chain
    beyond: list[int] = field(default_factory=list)  # points that cannot be trusted, ascending
    damaged: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    objects: int = 0
    head: Trusted | None = None  # None: the log is not whole
    name: str = ""  # of the machine
    newest_state: str = ""  # the object's name
    read: bool = False  # something opened with the key
    foreign: WrongKey | None = None  # something is sealed with another vault's key

    def listed(self) -> list[int]:
        """Numbers of the points a listing should show."""
        return [p.number for p in self.points if p.number >= self.state.floor] + self.beyond


def read_log(journal: Journal, meter: Meter, trusted: Trusted | None, *, last: int | None = None) -> Log:
    """Everything but segments and bases, up to record `last`; None: all.

    Raises WrongKey when another vault's key sealed the journal.
    """
    meter.say("reading the state")
    log = _read_state(journal, meter)
    meter.say("reading the log")
    _Walk(journal, log, meter, trusted, last).run()
    _read_older(journal, log, meter)
    if log.foreign is not None and not log.read:
        raise log.foreign
    for damage in log.damaged:
        if damage.object == log.newest_state:
            _without_state(journal, log, damage)
            break
    return log


def _without_state(journal: Journal, log: Log, state: Damage) -> None:
    """Nothing is listed or read without the newest state; what an older one names may be gone by right."""
    state.points.update(log.listed())
    log.beyond, log.points, log.head = log.listed(), [], None
    there = set(journal.store.list(log_prefix(journal.machine)))
    there.update(journal.store.list(spans_prefix(journal.machine)))
    log.damaged = [d for d in log.damaged if d.kind == "state" or d.object in there]


def _read_state(journal: Journal, meter: Meter) -> Log:
    """The newest state; where it cannot be read, an older one says what there would be."""
    names = sorted(journal.store.list(state_prefix(journal.machine)), reverse=True)
    log = Log(State(machine=journal.machine), newest_state=names[0] if names else "")
    found: State | None = None
    for place, name in enumerate(names):
        log.objects += 1
        try:
            data = journal.store.get(name, size_bytes_max=STATE_BYTES_MAX)
            meter.spend(len(data))
            state = decode_state(name, data, journal.log_key, newest=place == 0)
            if state.machine != journal.machine:
                raise StateDamaged(name=name, why="it belongs to another machine")
        except _WRONG as error:
            if isinstance(error, WrongKey):
                log.foreign = error
            if place == 0 or _still_there(journal, name):
                log.damaged.append(Damage(name, "state", str(error)))
            continue
        found = found or state
    log.state = found or log.state
    log.read = found is not None
    return log


def _still_there(journal: Journal, name: str) -> bool:
    """Older states are deleted while newer ones are written: that is no damage."""
    return name in journal.store.list(state_prefix(journal.machine))


class _Walk:
    """Along the chain, from the record it begins with."""

    def __init__(
        self, journal: Journal, log: Log, meter: Meter, trusted: Trusted | None, last: int | None
    ) -> None:
        self._journal, self._log, self._meter, self._trusted = journal, log, meter, trusted
        self._last = last if last is not None else sys.maxsize
        self._chain = ChainRecords(journal.machine, journal.log_key)
        self._spans = {span.first: span for span in log.state.spans}
        self._broken: Damage | None = None
        self._checked = False  # the trusted record was met

    def run(self) -> None:
        """Fill the log."""
        state, machine = self._log.state, self._journal.machine
        expected = max(state.begins, 1)
        names = list(self._journal.store.list(log_prefix(machine), after=log_name(machine, expected - 1)))
        for name in names:
            expected = self._over_spans(expected)
            if int(name.rpartition("/")[2]) > self._last:
                break
            if name < log_name(machine, expected):
                continue  # replaced by a span, not deleted yet
            if self._broken is None and name != log_name(machine, expected):
                self._break(log_name(machine, expected), expected, "it is not in the store")
            self._take(name, int(name.rpartition("/")[2]))
            expected = int(name.rpartition("/")[2]) + 1
        self._over_spans(expected)
        begins = max(state.floor, state.begins)
        if begins and not self._chain.number and self._broken is None:
            self._break(log_name(machine, begins), begins, "it is not in the store")
        self._log.points = list(self._chain.points)
        self._finish()

    def _over_spans(self, expected: int) -> int:
        while expected <= self._last and (ref := self._spans.get(expected)) is not None:
            self._take_span(ref)
            expected = ref.last + 1
        return expected

    def _get(self, name: str) -> bytes:
        data = self._journal.store.get(name, size_bytes_max=RECORD_BYTES_MAX)
        self._log.objects += 1
        self._meter.spend(len(data))
        return data

    def _take(self, name: str, number: int) -> None:
        try:
            data = self._get(name)
            if self._broken is not None:
                self._beyond(decode_record(data, self._journal.log_key), number)
                return
            self._chain.add(data, self._log.state)
        except _WRONG as error:
            self._fail(name, "record", number, error)
            return
        self._meet(number)

    def _take_span(self, ref: SpanRef) -> None:
        machine = self._journal.machine
        name, record = span_name(machine, ref.id), log_name(machine, ref.last)
        at, kind = name, "span"
        try:
            span = self._read_span(name, ref)
            at, kind = record, "record"
            data = self._get(record)
            if self._broken is not None:
                self._beyond(decode_record(data, self._journal.log_key), ref.last)
                return
            self._chain.add_span(data, ref, span, self._log.state)
        except _WRONG as error:
            self._fail(at, kind, ref.last, error)
            return
        self._meet(ref.last)

    def _read_span(self, name: str, ref: SpanRef) -> Span:
        data = self._get(name)
        span = decode_span(data, self._journal.log_key)
        if record_hash(data) != ref.object_hash or (span.machine, span.id) != (self._journal.machine, ref.id):
            raise damaged(name, "it is another span than the state names")
        return span

    def _fail(self, name: str, kind: str, number: int, error: SecondsiteError) -> None:
        if isinstance(error, WrongKey):
            self._log.foreign = error
        if self._broken is None:
            self._break(name, number, str(error), kind=kind)
            return
        # what follows a break is lost with it; what is wrong with it is told all the same
        self._log.damaged.append(Damage(name, kind, str(error), points={number}))
        self._log.beyond.append(number)

    def _break(self, name: str, number: int, why: str, *, kind: str = "record") -> None:
        self._broken = Damage(name, kind, why)
        self._log.damaged.append(self._broken)
        self._first_lost = number

    def _beyond(self, record: Record, number: int) -> None:
        """A record after the break, whole by itself."""
        if record.machine != self._journal.machine or record.number != number:
            raise damaged(log_name(self._journal.machine, number), f"it is record {record.number}")
        if not isinstance(record, Claim):
            self._log.beyond.append(number)

    def _meet(self, number: int) -> None:
        self._log.read = True
        trusted = self._trusted
        if trusted is None or number != trusted.number:
            return
        self._checked = True
        if self._chain.hash != trusted.hash:
            name = log_name(self._journal.machine, number)
            why = f"its hash is {self._chain.hash[:16]}…, the one to be trusted is {trusted.hash[:16]}…"
            self._log.damaged.append(Damage(name, "log", why))
            self._rewritten = True

    _rewritten = False
    _first_lost = 0

    def _finish(self) -> None:
        log, chain, trusted = self._log, self._chain, self._trusted
        if chain.points:
            log.name = chain.points[-1].machine_name
        if self._broken is not None:
            self._settle()
        elif chain.number:
            log.head = Trusted(chain.number, chain.hash, log.state.generation)
        if trusted is None:
            return
        if self._rewritten:
            log.damaged[-1].points.update(log.listed())
            log.head = None
        elif self._broken is None and chain.number < trusted.number:
            first, last = chain.number + 1, trusted.number
            why = f"the records {first} to {last} were there before and are gone"
            gone = set(range(first, min(last, first + 10_000) + 1))
            log.damaged.append(Damage(log_name(self._journal.machine, last), "log", why, points=gone))
            log.head = None
        elif not self._checked and self._broken is None:
            log.notes.append(
                f"record {trusted.number}, trusted before, is merged, promoted or deleted by now"
            )
        if log.state.generation < trusted.generation:
            name = f"{state_prefix(self._journal.machine)}{trusted.generation:016d}"
            why = f"generation {trusted.generation} of the state was there before, the newest is now older"
            log.damaged.append(Damage(name, "state", why, points=set(log.listed())))

    def _settle(self) -> None:
        """Which points a break costs: itself, where it was a point, and all that follow."""
        assert self._broken is not None
        if self._read_from_pages():
            return
        if not self._was_claim():
            self._log.beyond.append(self._first_lost)
        self._log.beyond = sorted(set(self._log.beyond))
        self._broken.points.update(self._log.beyond)

    def _read_from_pages(self) -> bool:
        """A page of the log may hold the record as well: then every point is listed and read as before."""
        assert self._broken is not None
        log, journal = self._log, self._journal
        try:
            points, head = journal.points_after(max(0, log.state.promoted - 1)), journal.head()
            points = [point for point in points if point.number <= self._last]
        except SecondsiteError:
            return False
        log.points, log.beyond = list(points), []
        log.head = Trusted(head.number, head.hash, log.state.generation)
        self._broken.why += "; a page of the log still has it, and no point is lost while that is there"
        for damage in log.damaged:
            if damage.kind in {"record", "span"}:
                damage.points.clear()
        return True

    def _was_claim(self) -> bool:
        """Whether the record at the break raised the epoch, as the one after it tells."""
        assert self._broken is not None
        if self._broken.kind == "span":
            return False  # it ends at a point
        try:
            follower = self._journal.read_record(log_name(self._journal.machine, self._first_lost + 1))
        except _WRONG:
            return False
        before = self._chain.epoch + (1 if isinstance(follower, Claim) else 0)
        return follower.epoch > before


def _read_older(journal: Journal, log: Log, meter: Meter) -> None:
    """Records and spans no listed point needs any more; readers pinned before them may."""
    first = max(log.state.begins, 1)
    named = {span_name(journal.machine, span.id) for span in log.state.spans}
    for name in list(journal.store.list(log_prefix(journal.machine))):
        if name >= log_name(journal.machine, first):
            break
        _read_needless(journal, log, meter, name, "record")
    for name in list(journal.store.list(spans_prefix(journal.machine))):
        if name not in named:
            _read_needless(journal, log, meter, name, "span")


def _read_needless(journal: Journal, log: Log, meter: Meter, name: str, kind: str) -> None:
    try:
        data = journal.store.get(name, size_bytes_max=RECORD_BYTES_MAX)
        meter.spend(len(data))
        log.objects += 1
        if kind == "record":
            decode_record(data, journal.log_key)
        else:
            decode_span(data, journal.log_key)
    except UNUSABLE as error:
        if name in journal.store.list(name.rpartition("/")[0] + "/"):
            log.damaged.append(Damage(name, kind, str(error)))
