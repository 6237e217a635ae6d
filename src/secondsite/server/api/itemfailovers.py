"""Routes to fail items over: look before, begin, turn to another point, commit, roll back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from secondsite.model import confirmations
from secondsite.model.failover import AUTO_COMMIT_BYTES_PER_SECOND
from secondsite.model.items import ItemOperation
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.itemchecks import look_around
from secondsite.server.api.items import PATH_ITEMS, Reader, ThePlace, checked, start_job
from secondsite.server.api.jobs import ACCEPTED, JobView
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.services import Services
from secondsite.server.api.uplink import calls_of
from secondsite.server.items.errors import TargetElsewhere
from secondsite.server.items.records import Item, job_input
from secondsite.server.items.recovered import settings_for, way_of
from secondsite.server.operations.asking import read_answer
from secondsite.server.operations.failover import FAILOVER, Failover, looking
from secondsite.server.operations.failoverends import (
    CHANGE_POINT,
    COMMIT,
    ROLL_BACK,
    ChangePoint,
    Commit,
    RollBack,
    confirm_change,
    confirm_commit,
    said_of,
)
from secondsite.server.operations.failoverparts import Ends, Preview
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["items"])

FailsOver = Annotated[Caller, requires(Operation.ITEM_FAILOVER)]
ASK_SECONDS = 20.0
NOT_EXCLUDED = (
    "While the link is cut nobody can know that the source stands still. Until its gateway learns of the "
    "failover it may go on working: what it writes is in no point, and whoever reaches it sees a machine "
    "that is no longer the authority."
)
_Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")]
_Sentence = Annotated[
    str,
    Field(
        max_length=1024,
        pattern=r"^[^\u0000]*$",
        description="What a person says to it, word for word; a refusal, and the look before, say what.",
    ),
]
_Point = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[0-9A-Za-z:.+-]+$",
        description="latest, latest-processed, latest-application-consistent, last-clean, a number, or a "
        "time: the newest point not after it (UTC where no zone is given).",
    ),
]
_Network = Annotated[_Name, Field(description="mapped, none, or the name of a network of the target's site.")]


class EndsBody(Model):
    """How it is to end; of the two that happen by themselves one at most."""

    auto_commit_after: Annotated[
        float | None, Field(ge=60, le=90 * 86400, description="Seconds since its machine was last started.")
    ] = None
    auto_roll_back_after: Annotated[
        float | None, Field(ge=60, le=90 * 86400, description="Seconds since its machine was last started.")
    ] = None
    confirm_timer: Annotated[_Sentence, Field(description="As to a commit, or to a roll-back.")] = ""
    bytes_per_second: Annotated[
        int | None,
        Field(
            ge=65536,
            le=2**53,
            description="Of the copying at its commit, all disks together; absent: as the commit says, and "
            f"{AUTO_COMMIT_BYTES_PER_SECOND} when it commits by itself.",
        ),
    ] = None
    autostart: Annotated[bool, Field(description="Once committed: start with its host.")] = False
    old_machine: Annotated[
        Literal["remove", "remove-with-disks"] | None,
        Field(description="Of its former copy there, which the machine was protected onto again."),
    ] = None

    def ends(self, name: str) -> Ends:
        """As jobs take it. Raises InputRefused, ConfirmationMissing."""
        if self.auto_commit_after is not None and self.auto_roll_back_after is not None:
            raise InputRefused(where="the body", why="it can commit or roll back by itself, not both")
        made = Ends(
            auto_commit_after=self.auto_commit_after,
            auto_roll_back_after=self.auto_roll_back_after,
            confirm_timer=self.confirm_timer,
            autostart=self.autostart,
            old_machine=self.old_machine,
            bytes_per_second=self.bytes_per_second,
        )
        made.require_said(name)
        return made


class UnplannedBody(EndsBody):
    """What to take over, and where it is attached."""

    recovery_point: _Point = "latest"
    network: _Network = "mapped"
    name: Annotated[_Name | None, Field(description="Of the machine there; absent: its own.")] = None
    confirm: _Sentence = ""
    shut_down: Annotated[
        bool, Field(description="Try to shut the source down first; whatever comes of it, go on.")
    ] = False
    shut_down_seconds: Annotated[float, Field(ge=1, le=3600)] = 120.0


class PlannedBody(EndsBody):
    """What to move, and how long its guest may take to shut down."""

    network: _Network = "mapped"
    name: Annotated[_Name | None, Field(description="Of the machine there; absent: its own.")] = None
    confirm: _Sentence = ""
    seconds: Annotated[float, Field(ge=1, le=86400, description="For its guest to shut down.")] = 300.0
    power_off: Annotated[
        bool, Field(description="If it does not: switch it off, and ask nobody. Else the job asks.")
    ] = False
    prove: Annotated[bool, Field(description="Read all of it and compare by hash.")] = True


class ChangePointBody(Model):
    """Which point to turn to."""

    recovery_point: _Point
    confirm: _Sentence = ""


class CommitBody(Model):
    """How to keep it."""

    confirm: _Sentence = ""
    bytes_per_second: Annotated[
        int | None,
        Field(
            ge=65536,
            le=2**53,
            description="At most, of all its disks together; absent: as its failover says, else as fast as "
            "it goes.",
        ),
    ] = None
    delete_points: Annotated[
        bool, Field(description="The machine's recovery points there, once nobody reads or holds them.")
    ] = True


class ConfirmBody(Model):
    """What a person says to it."""

    confirm: _Sentence = ""


class FailoverCheckView(View):
    """One thing looked at before; what fails says why and what to do."""

    name: str
    passed: bool
    required: bool = Field(description="False: it is only to be known.")
    cause: str
    action: str


class FailoverPreviewView(View):
    """What a failover would do and cost now, as the target sees it in its store."""

    recovery_point: int
    recovery_point_at: str = Field(description="The instant it holds.")
    consistency: str
    expected_loss_seconds: float = Field(description="From that instant until now.")
    writer: str = Field(description="Who writes the machine now, as the store says.")
    cannot_be_excluded: str
    confirm: str = Field(description="What a person has to say to begin it.")
    checks: list[FailoverCheckView]


@router.get(PATH_ITEMS + "/{item}/unplannedFailover")
def look_at_failover(  # noqa: PLR0917 - called by name, by the framework
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
    recovery_point: Annotated[_Point, Query(alias="recoveryPoint")] = "latest",
    network: Annotated[_Network, Query()] = "mapped",
    name: Annotated[_Name | None, Query()] = None,
) -> FailoverPreviewView:
    """What a failover would lose, what cannot be excluded, and all that is in the way; changes nothing."""
    found = place.read(services)
    seen = preview_of(services, found, {"point": recovery_point, "network": network, "name": name})
    shown = msgspec.structs.replace(seen, checks=(*look_around(services, found, move=False), *seen.checks))
    return preview_view(shown, seen.confirm, NOT_EXCLUDED)


@router.post(PATH_ITEMS + "/{item}/unplannedFailover", status_code=202, responses=ACCEPTED)
def fail_item_over(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: UnplannedBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Take the machine over at the target: with its source gone, or without knowing whether it is."""
    given = unplanned(place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.UNPLANNED_FAILOVER)
    return start_job(services, actor, response, FAILOVER, given, Operation.ITEM_FAILOVER, check)


@router.get(PATH_ITEMS + "/{item}/plannedFailover")
def look_at_move(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
    network: Annotated[_Network, Query()] = "mapped",
    name: Annotated[_Name | None, Query()] = None,
) -> FailoverPreviewView:
    """All that is in the way of moving the machine in order, at both sites; changes nothing."""
    found = place.read(services)
    seen = preview_of(services, found, {"point": "latest", "network": network, "name": name})
    checks = (*look_around(services, found, move=True), *seen.checks)
    shown = msgspec.structs.replace(seen, expected_loss_seconds=0.0, checks=checks)
    return preview_view(shown, confirmations.moved(found.name, found.source_name, found.target_name), "")


@router.post(PATH_ITEMS + "/{item}/plannedFailover", status_code=202, responses=ACCEPTED)
def move_item(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: PlannedBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Stop the machine in order, carry its last changes over, and take it over with nothing lost."""
    given = planned(place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.PLANNED_FAILOVER)
    return start_job(services, actor, response, PLANNED_FAILOVER, given, Operation.ITEM_FAILOVER, check)


@router.post(PATH_ITEMS + "/{item}/applyRecoveryPoint", status_code=202, responses=ACCEPTED)
def change_item_point(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ChangePointBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Run the machine that was taken over on another point; what it wrote since is lost."""
    item = place.read(services)
    given = ChangePoint(
        **job_input(item, actor.name),
        point=body.recovery_point,
        confirm=body.confirm,
        failover=said_of(item),
    )
    confirm_change(given)
    check = checked(services, place, ItemOperation.CHANGE_POINT)
    return start_job(services, actor, response, CHANGE_POINT, given, Operation.ITEM_FAILOVER, check)


@router.post(PATH_ITEMS + "/{item}/failoverCommit", status_code=202, responses=ACCEPTED)
def commit_item_failover(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: CommitBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Keep the machine at the target: plain disks of that site, and no other point to turn to."""
    given = committed(place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.COMMIT)
    return start_job(services, actor, response, COMMIT, given, Operation.ITEM_FAILOVER, check)


@router.post(PATH_ITEMS + "/{item}/failoverCancel", status_code=202, responses=ACCEPTED)
def cancel_item_failover(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ConfirmBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Roll a failover back: the machine at the target goes, its source runs on, replicated as before."""
    given = rolled_back(place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.CANCEL_FAILOVER)
    return start_job(services, actor, response, ROLL_BACK, given, Operation.ITEM_FAILOVER, check)


# what jobs are given: of one item, or of each of a group


def unplanned(item: Item, body: UnplannedBody, by: str) -> Failover:
    """Raises InputRefused, ConfirmationMissing."""
    return Failover(
        **job_input(item, by),
        point=body.recovery_point,
        network=body.network,
        target_name=body.name,
        confirm=body.confirm,
        shut_down=body.shut_down,
        shut_down_seconds=body.shut_down_seconds,
        ends=body.ends(item.name),
    )


def planned(item: Item, body: PlannedBody, by: str) -> PlannedFailover:
    """Raises InputRefused, ConfirmationMissing."""
    return PlannedFailover(
        **job_input(item, by),
        network=body.network,
        target_name=body.name,
        confirm=body.confirm,
        seconds=body.seconds,
        power_off=body.power_off,
        prove=body.prove,
        ends=body.ends(item.name),
    )


def committed(item: Item, body: CommitBody, by: str) -> Commit:
    """Raises ConfirmationMissing."""
    given = Commit(
        **job_input(item, by),
        confirm=body.confirm,
        failover=said_of(item),
        point=item.failover.point if item.failover is not None else None,
        bytes_per_second=body.bytes_per_second,
        delete_points=body.delete_points,
    )
    confirm_commit(given)
    return given


def rolled_back(item: Item, body: ConfirmBody, by: str) -> RollBack:
    """Raises ConfirmationMissing."""
    given = RollBack(**job_input(item, by), confirm=body.confirm, failover=said_of(item))
    confirm_change(given)
    return given


# what the routes share


def preview_of(services: Services, item: Item, wanted: Mapping[str, str | None]) -> Preview:
    """Asked of the target now, with the settings the job would take, which it refuses if they do not fit.

    Raises TargetElsewhere, what the gateway says, GatewaySilent.
    """
    if item.target_id is None:
        raise TargetElsewhere(name=item.name, gateway=item.target_name)
    with services.database.read() as connection:
        settings = settings_for(connection, item, way_of(item))
    path, body = looking(item, wanted, settings)
    answer = calls_of(services).ask_now(item.target_id, path, body=body, seconds_max=ASK_SECONDS)
    return read_answer(item.target_name, answer, Preview)


def preview_view(seen: Preview, confirm: str, not_excluded: str) -> FailoverPreviewView:
    """As it goes out."""
    return FailoverPreviewView(
        recovery_point=seen.point,
        recovery_point_at=seen.point_at,
        consistency=seen.consistency,
        expected_loss_seconds=seen.expected_loss_seconds,
        writer=seen.writer,
        cannot_be_excluded=not_excluded,
        confirm=confirm,
        checks=[FailoverCheckView(**msgspec.structs.asdict(check)) for check in seen.checks],
    )
