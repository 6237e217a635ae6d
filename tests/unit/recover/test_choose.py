"""Which point a person means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.gateway.common.choose import NoSuchPoint, choose_point
from secondsite.model.points import Consistency

CRASH, APPLICATION = Consistency.CRASH, Consistency.APPLICATION


@dataclass(frozen=True)
class P:
    number: int
    given_at: str
    consistency: Consistency = CRASH


POINTS = [
    P(2, "2026-05-04T12:00:00.500000+00:00"),
    P(3, "2026-05-04T12:00:05.500000+00:00", APPLICATION),
    P(5, "2026-05-04T12:00:10.500000+00:00"),
]


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("latest", 5),
        ("latest-processed", 5),
        ("latest-application-consistent", 3),
        ("2", 2),
        ("2026-05-04T12:00:05.500000+00:00", 3),
        ("2026-05-04T12:00:05.499999+00:00", 2),
        ("2026-05-04T14:00:06+02:00", 3),
        ("2026-05-04T12:00:06Z", 3),
        ("2026-05-04 12:00:06", 3),  # without a zone it is UTC
        ("2027-01-01", 5),
    ],
)
def test_words_numbers_and_times_mean_a_point(wanted: str, number: int) -> None:
    assert choose_point(POINTS, wanted, machine="shop").number == number


@pytest.mark.parametrize("wanted", ["4", "0", "2026-05-04T12:00:00Z", "9999999999999999"])
def test_a_point_that_is_not_there_is_named_with_what_is(wanted: str) -> None:
    with pytest.raises(NoSuchPoint) as caught:
        choose_point(POINTS, wanted, machine="shop")
    happened, _, action = caught.value.sentences()
    assert happened == (
        f"shop has no recovery point {wanted}; there are 2 (2026-05-04T12:00:00.500000+00:00) to "
        "5 (2026-05-04T12:00:10.500000+00:00)."
    )
    assert action == "List what there is with `secondsite points list shop`."


def test_no_point_at_all_is_told() -> None:
    with pytest.raises(NoSuchPoint, match=r"shop has no recovery point latest; there are none yet\."):
        choose_point([], "latest", machine="shop")


def test_no_application_consistent_point_is_not_replaced_by_another() -> None:
    with pytest.raises(NoSuchPoint):
        choose_point(POINTS[:1], "latest-application-consistent", machine="shop")


@pytest.mark.parametrize("wanted", ["newest", "-1", "12:00", "", "5 ", "٣"])
def test_what_is_neither_is_refused(wanted: str) -> None:
    with pytest.raises((InvalidInput, NoSuchPoint)) as caught:
        choose_point(POINTS, wanted, machine="shop")
    assert wanted in str(caught.value)
