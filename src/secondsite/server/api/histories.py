"""Routes of how items did over time: when they missed their objective, how their health changed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from secondsite.server.api.access import TheServices
from secondsite.server.api.events import telling_of
from secondsite.server.api.items import Reader, ThePlace
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import View
from secondsite.server.database.values import moment
from secondsite.server.events.history import HealthChange, RpoReport
from secondsite.server.events.intervals import Day, Interval

router = APIRouter(prefix="/api/v1", tags=["items"])

_ITEM = "/vaults/{vault}/replicationProtectedItems/{item}"
DAYS_MAX = 90
INTERVALS_MAX = 500


class RpoDayView(View):
    """One day, UTC. Where nobody knows anything, the server being down for instance, it is unknown."""

    day: datetime
    met_seconds: float
    missed_seconds: float
    unknown_seconds: float
    hours_missed: int = Field(description="Clock hours in which the objective was missed at any time.")

    @classmethod
    def of(cls, day: Day) -> RpoDayView:
        """As it goes out."""
        return cls.model_validate(day)


class MissedView(View):
    """A time in which the newest point was older than the objective; it may go on."""

    since: datetime
    until: datetime

    @classmethod
    def of(cls, interval: Interval) -> MissedView:
        """As it goes out."""
        return cls(since=interval.since, until=interval.until)


class RpoHistoryView(View):
    """How an item did."""

    item: str
    name: str
    threshold_seconds: float = Field(description="As the policy says it now.")
    days: list[RpoDayView]
    missed: list[MissedView] = Field(description="The newest 500 at most, oldest first.")

    @classmethod
    def made(cls, item: str, name: str, threshold: float, report: RpoReport) -> RpoHistoryView:
        """As it goes out."""
        return cls(
            item=item,
            name=name,
            threshold_seconds=threshold,
            days=[RpoDayView.of(day) for day in report.days],
            missed=[MissedView.of(one) for one in report.missed[-INTERVALS_MAX:]],
        )


class HealthChangeView(View):
    """From this moment on an item's health was this."""

    at: datetime
    health: Literal["Normal", "Warning", "Critical"]
    code: str
    note: str

    @classmethod
    def of(cls, change: HealthChange) -> HealthChangeView:
        """As it goes out."""
        return cls.model_validate(change)


@router.get(_ITEM + "/rpoHistory")
def rpo_history(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
    days: Annotated[int, Query(ge=1, le=DAYS_MAX)] = 30,
) -> RpoHistoryView:
    """When an item missed its recovery point objective, by day; kept for 90 days."""
    with services.database.read() as connection:
        found = place.find(services, connection)
    report = telling_of(services).histories.rpo(found.id, days_back=days)
    return RpoHistoryView.made(found.id, found.name, found.policy.rpo_threshold_seconds, report)


@router.get(_ITEM + "/healthHistory")
def health_history(
    page: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> Page[HealthChangeView]:
    """How an item's health changed, youngest first; kept for 90 days."""
    with services.database.read() as connection:
        item = place.find(services, connection)
    found = telling_of(services).histories.health(item.id, before=page.after_text(), limit=page.limit)
    link = page.link(moment(found[-1].at)) if len(found) == page.limit else None
    return Page(value=[HealthChangeView.of(change) for change in found], next_link=link)
