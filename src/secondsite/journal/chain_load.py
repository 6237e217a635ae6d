"""Reading a chain from a store: the state's spans, log pages where there are any, records for the rest."""

from __future__ import annotations

from collections.abc import Mapping

from secondsite.journal.chain_errors import ChainBroken
from secondsite.journal.chain_records import ChainRecords
from secondsite.journal.errors import FormatUnknown, ObjectDamaged, WrongKey
from secondsite.journal.keys import LogKey
from secondsite.journal.log_pages import PAGE_BYTES_MAX, RECORDS, decode_log_page
from secondsite.journal.manifest import RECORD_BYTES_MAX, decode_span, record_hash
from secondsite.journal.names import log_name, log_page_name, log_pages_prefix, log_prefix, span_name
from secondsite.journal.state import SpanRef, State, StateRecord
from secondsite.journal.store import ObjectMissing, ObjectStore
from secondsite.model.ids import MachineId
from secondsite.model.points import Span

# A page that cannot be used is as if it were not there: the records are.
_UNUSABLE = (FormatUnknown, ObjectDamaged, ObjectMissing, WrongKey)


class MovedOn(Exception):
    """Others promoted or merged while the journal was being read: read again."""


class ChainLoader:
    """Reads one machine's chain; `Journal` locks around it."""

    def __init__(
        self, store: ObjectStore, machine: MachineId, key: LogKey | None, state: StateRecord
    ) -> None:
        self._store, self._machine, self._key, self._state = store, machine, key, state

    def load(self, state: State) -> ChainRecords:
        """The chain as of `state`. Raises MovedOn, ChainBroken."""
        chain = ChainRecords(self._machine, self._key)
        spans = {span.first: span for span in state.spans}
        pages = self._pages(state)
        expected = max(state.begins, 1)
        names = self._store.list(log_prefix(self._machine), after=log_name(self._machine, expected - 1))
        for name in names:
            expected = self._spans_at(chain, spans, expected, state)
            if expected in pages:
                expected = self._page_at(chain, expected, state)
            if name < log_name(self._machine, expected):
                continue  # a span or a page stands for it
            if name != log_name(self._machine, expected):
                self._check(state)
                raise ChainBroken(machine=self._machine, number=expected, why=f"{name} is there instead")
            chain.add(self._record(expected, state), state)
            expected += 1
        self._spans_at(chain, spans, expected, state)
        chain.spans = state.spans
        begins = max(state.floor, state.begins)
        if begins and not chain.number:
            self._check(state)
            raise ChainBroken(
                machine=self._machine, number=begins, why="the record it begins with is missing"
            )
        return chain

    def span(self, ref: SpanRef) -> Span:
        """A span's object, checked against what the state says of it. Raises MovedOn, ChainBroken."""
        name = span_name(self._machine, ref.id)
        try:
            data = self._store.get(name, size_bytes_max=RECORD_BYTES_MAX)
        except ObjectMissing:
            if ref not in self._state.read().spans:
                raise MovedOn from None
            raise
        span = decode_span(data, self._key)
        if record_hash(data) != ref.object_hash or (span.machine, span.id) != (self._machine, ref.id):
            raise ChainBroken(machine=self._machine, number=ref.last, why=f"{name} is another span")
        return span

    def _spans_at(
        self, chain: ChainRecords, spans: Mapping[int, SpanRef], expected: int, state: State
    ) -> int:
        """Add the spans that begin at record `expected`; returns the number after them."""
        while (ref := spans.get(expected)) is not None:
            chain.add_span(self._record(ref.last, state), ref, self.span(ref), state)
            expected = ref.last + 1
        return expected

    def _pages(self, state: State) -> frozenset[int]:
        """First numbers of log pages that no span and no promotion has touched."""
        found = set()
        for name in self._store.list(log_pages_prefix(self._machine)):
            text = name.rpartition("/")[2]
            first = int(text) if text.isdigit() else 0
            last = first + RECORDS - 1
            if first > state.begins and not any(
                span.first <= last and first <= span.last for span in state.spans
            ):
                found.add(first)
        return frozenset(found)

    def _page_at(self, chain: ChainRecords, first: int, state: State) -> int:
        """Add the records of the page that begins at record `first`; returns the number after them."""
        name = log_page_name(self._machine, first)
        try:
            data = self._store.get(name, size_bytes_max=PAGE_BYTES_MAX)
            records = decode_log_page(data, first, self._key, what=name)
        except _UNUSABLE:
            return first
        for found, record in records:
            chain.add_checked(record, found, state)
        return first + RECORDS

    def _record(self, number: int, state: State) -> bytes:
        try:
            return self._store.get(log_name(self._machine, number), size_bytes_max=RECORD_BYTES_MAX)
        except ObjectMissing:
            self._check(state)  # promoted or merged away between the two calls
            raise

    def _check(self, state: State) -> None:
        """Raise MovedOn when the state is not `state` any more."""
        if self._state.read().generation != state.generation:
            raise MovedOn
