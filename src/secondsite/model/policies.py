"""A replication policy: how often a machine is copied, what is kept of it, and what it may cost. Pure.

One definition, used by the server's API, in what a server wants of a gateway, and by the gateway itself.
Names are the field's. Times of day are of the source gateway's own zone, written HH:MM.

A gateway refuses an item whose policy asks for what it does not know (`transfer.desired.read_desired`). So a
setting added later must be left out of what is written while it has its default (`Field(exclude_if=...)`):
else a new server would stop every older gateway from taking any policy.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from secondsite.base.errors import InvalidInput
from secondsite.model.retention import RetentionPolicy

DAY_MINUTES = 24 * 60
WINDOWS_MAX = 24
# 512 kbit/s. A target cuts off what comes at less than 32 KiB/s (`transfer.ingest.Limits`), and two
# connections may share what a policy has.
RATE_MIN = 64_000.0
_TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
_Seconds = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]


class _Part(BaseModel):
    """Base: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class BandwidthWindow(_Part):
    """Between two times of day at most so many bytes a second leave the source gateway for this policy.

    `until` at or before `from_`: over midnight. None: no limit.
    """

    from_: Annotated[_TimeOfDay, Field(alias="from")]
    until: _TimeOfDay
    bytes_per_second: Annotated[float, Field(ge=RATE_MIN, le=1e12, allow_inf_nan=False)] | None = None

    def holds_at(self, minute: int) -> bool:
        """Whether it holds in this minute of the day, 0..1439."""
        begin, end = minute_of(self.from_), minute_of(self.until)
        if begin < end:
            return begin <= minute < end
        return minute >= begin or minute < end


class FirstCopyStart(_Part):
    """When the first copy begins: at once, at a time of day (off-peak), or from media."""

    mode: Literal["now", "scheduled", "offline"] = "now"
    at: _TimeOfDay | None = None  # of scheduled: the next such time after protection was enabled

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "scheduled") != (self.at is not None):
            message = "a scheduled first copy names a time of day, others name none"
            raise ValueError(message)
        return self


class ReplicationPolicy(_Part):
    """What is asked for. `rpo_threshold_seconds` only alerts: replication never waits for it."""

    copy_frequency_seconds: _Seconds = 5.0
    rpo_threshold_seconds: Annotated[float, Field(ge=1, le=30 * 86_400, allow_inf_nan=False)] = 900.0
    retention: Annotated[str, Field(min_length=1, max_length=400)] = "all:2h,1h:1d,2h:7d"
    application_consistent_frequency_seconds: _Seconds | None = None
    compression_level: Annotated[int, Field(ge=-5, le=19)] | None = 1  # None: not compressed
    bandwidth: Annotated[tuple[BandwidthWindow, ...], Field(max_length=WINDOWS_MAX)] = ()
    first_copy: FirstCopyStart = FirstCopyStart()
    delete_replica_on_disable: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            RetentionPolicy.parse(self.retention)
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        often = self.application_consistent_frequency_seconds
        if often is not None and often < self.copy_frequency_seconds:
            message = "application-consistent points cannot come more often than points"
            raise ValueError(message)
        for one, other in itertools.combinations(self.bandwidth, 2):
            if any(one.holds_at(m) and other.holds_at(m) for m in _edges(one, other)):
                message = f"the bandwidth windows from {one.from_} and from {other.from_} overlap"
                raise ValueError(message)
        return self

    def bandwidth_at(self, minute: int) -> float | None:
        """Bytes a second that may leave in this minute of the day; None: no limit."""
        return next((w.bytes_per_second for w in self.bandwidth if w.holds_at(minute)), None)


def minute_of(time_of_day: str) -> int:
    """Minutes since midnight of HH:MM."""
    return int(time_of_day[:2]) * 60 + int(time_of_day[3:])


def _edges(one: BandwidthWindow, other: BandwidthWindow) -> tuple[int, int]:
    """Two windows of a day overlap exactly when one of them holds where the other begins."""
    return minute_of(one.from_), minute_of(other.from_)
