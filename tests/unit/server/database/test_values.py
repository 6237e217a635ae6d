"""What columns hold sorts and reads back as what it was."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from secondsite.base.clock import FakeClock
from secondsite.server.database.values import fresh_id, from_json, from_moment, moment, to_json

MOMENTS = st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year > 1969)


@given(MOMENTS, MOMENTS)
def test_moments_sort_as_text(one: datetime, other: datetime) -> None:
    assert from_moment(moment(one)) == one
    assert (moment(one) < moment(other)) == (one < other)


def test_a_moment_is_written_in_utc() -> None:
    there = datetime(2026, 1, 31, 9, 0, tzinfo=timezone(timedelta(hours=1)))
    assert moment(there) == "2026-01-31T08:00:00.000000Z"


def test_ids_are_uuids_that_sort_by_their_time() -> None:
    clock = FakeClock()
    ids = []
    for _ in range(50):
        ids.append(fresh_id(clock))
        clock.advance(0.001)
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_structures_come_back() -> None:
    assert from_json(to_json({"größe": 1}), dict[str, int]) == {"größe": 1}
