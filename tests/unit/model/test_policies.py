"""Replication policies: what is refused, and which bandwidth holds when."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from secondsite.model.policies import BandwidthWindow, FirstCopyStart, ReplicationPolicy


def window(begin: str, until: str, rate: float | None = 1e6) -> BandwidthWindow:
    return BandwidthWindow.model_validate({"from": begin, "until": until, "bytesPerSecond": rate})


def test_the_window_of_the_minute_holds_also_over_midnight() -> None:
    policy = ReplicationPolicy(bandwidth=(window("22:00", "06:00", 5e6), window("08:00", "18:00", 1e6)))
    at = {minute: policy.bandwidth_at(minute) for minute in (0, 359, 360, 480, 1079, 1080, 1319, 1320)}
    assert at == {0: 5e6, 359: 5e6, 360: None, 480: 1e6, 1079: 1e6, 1080: None, 1319: None, 1320: 5e6}


@pytest.mark.parametrize(
    ("one", "other"),
    [(("08:00", "18:00"), ("17:59", "19:00")), (("22:00", "06:00"), ("05:00", "07:00"))],
)
def test_overlapping_windows_are_refused(one: tuple[str, str], other: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="overlap"):
        ReplicationPolicy(bandwidth=(window(*one), window(*other)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"copyFrequencySeconds": 0.5},
        {"copyFrequencySeconds": float("nan")},
        {"copyFrequencySeconds": 300, "applicationConsistentFrequencySeconds": 60},
        {"retention": "sometimes"},
        {"firstCopy": {"mode": "scheduled"}},
        {"firstCopy": {"mode": "now", "at": "22:00"}},
        {"firstCopy": {"mode": "scheduled", "at": "24:00"}},
        {"unknown": 1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReplicationPolicy.model_validate(wrong)


def test_it_travels_as_it_is() -> None:
    policy = ReplicationPolicy(
        copy_frequency_seconds=1,
        first_copy=FirstCopyStart(mode="scheduled", at="22:00"),
        bandwidth=(window("22:00", "06:00", None),),
        compression_level=None,
    )
    assert ReplicationPolicy.model_validate_json(policy.model_dump_json(by_alias=True)) == policy
