"""Routes to choose a recovery point of an item, boot it as a test, and clean that up."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from secondsite.model.items import ItemOperation
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.items import PATH_ITEMS, Reader, ThePlace, checked, start_job
from secondsite.server.api.jobs import ACCEPTED, JobView
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.settingsbodies import Settings
from secondsite.server.api.uplink import calls_of
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.items.records import Item, job_input
from secondsite.server.operations.asking import read_answer
from secondsite.server.operations.testfailover import TEST_CLEANUP, TEST_FAILOVER, TestCleanup, TestFailover
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["items"])

Tester = Annotated[Caller, requires(Operation.ITEM_TEST)]
ASK_SECONDS = 20.0
# what a gateway is asked with stands in an address: no name of a network or machine is near that long
_Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")]


class TestFailoverBody(Model):
    """What to boot, and where it is attached."""

    __test__ = False  # not a test class, whatever its name

    recovery_point: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[0-9A-Za-z:.+-]+$",
            description="latest, latest-processed, latest-application-consistent, last-clean, a number, or a "
            "time: the newest point not after it (UTC where no zone is given).",
        ),
    ] = "latest"
    network: Annotated[
        _Name, Field(description="isolated, none, mapped, or the name of a network of the target's site.")
    ] = "isolated"
    name: Annotated[_Name | None, Field(description="Of the test machine; absent: with -test.")] = None
    settings: Annotated[
        Settings | None, Field(description="Instead of those that are kept for the item and direction.")
    ] = None


class CleanupBody(Model):
    """What was learnt from the test."""

    notes: Annotated[str, Field(min_length=1, max_length=8000, pattern=r"^[^\u0000]*$")]
    force: Annotated[
        bool, Field(description="Also one whose record its gateway cannot read, or does not tell of.")
    ] = False


class PointView(View):
    """A recovery point, as the gateway that keeps it tells it."""

    number: int
    at: str = Field(description="The instant it holds.")
    committed_at: str
    consistency: str
    size_bytes: int
    changed_bytes: int
    sent_bytes: int
    disks: list[str]
    trust: str = Field(description="LastClean or InDoubt, where there is something to say.")
    held: bool = Field(description="Kept whatever the retention says.")


class _Hold(msgspec.Struct, frozen=True):
    holder: str


class _Point(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    number: int
    at: str
    committed_at: str
    consistency: str
    size_bytes: int
    changed_bytes: int
    sent_bytes: int
    disks: tuple[str, ...]
    trust: str = ""
    held_by: tuple[_Hold, ...] = ()

    def view(self) -> PointView:
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        del values["held_by"]
        return PointView(**{**values, "disks": list(self.disks), "held": bool(self.held_by)})


@router.get(PATH_ITEMS + "/{item}/recoveryPoints")
def list_item_points(
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> Page[PointView]:
    """The recovery points of an item, newest first, asked of the gateway that keeps them."""
    found = place.read(services)
    if found.target_id is None:
        raise GatewayUnknown(name=found.target_name)
    wanted = {"newest": asked.limit + 1}
    below = asked.after_number()
    if below is not None:
        wanted["below"] = below
    path = f"/v1/machines/{quote(found.machine, safe='')}/points?{urlencode(wanted)}"
    answer = calls_of(services).ask_now(found.target_id, path, seconds_max=ASK_SECONDS)
    points = read_answer(found.target_name, answer, list[_Point])[::-1]
    shown = points[: asked.limit]
    link = asked.link(shown[-1].number) if len(points) > len(shown) else None
    return Page(value=[point.view() for point in shown], next_link=link)


@router.post(PATH_ITEMS + "/{item}/testFailover", status_code=202, responses=ACCEPTED)
def boot_item_test(  # noqa: PLR0917 - called by name, by the framework
    caller: Tester,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: TestFailoverBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Boot the machine from a point at the target, beside the original; replication goes on."""
    given = tested(place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.TEST_FAILOVER)
    return start_job(services, actor, response, TEST_FAILOVER, given, Operation.ITEM_TEST, check)


@router.post(PATH_ITEMS + "/{item}/testFailoverCleanup", status_code=202, responses=ACCEPTED)
def clean_up_item_test(  # noqa: PLR0917 - called by name, by the framework
    caller: Tester,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: CleanupBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Remove the test machine, its network and what it wrote; the notes stay."""
    given = cleaned_up(place.read(services), body, actor.name)
    needed = () if body.force else (ItemOperation.TEST_FAILOVER_CLEANUP,)  # what is not told of is not known
    check = checked(services, place, *needed)
    return start_job(services, actor, response, TEST_CLEANUP, given, Operation.ITEM_TEST, check)


# what jobs are given: of one item, or of each of a group


def tested(item: Item, body: TestFailoverBody, by: str) -> TestFailover:
    """To boot it as a test."""
    return TestFailover(
        **job_input(item, by),
        point=body.recovery_point,
        network=body.network,
        test_name=body.name,
        settings=body.settings,
    )


def cleaned_up(item: Item, body: CleanupBody, by: str) -> TestCleanup:
    """To remove what the test left."""
    return TestCleanup(**job_input(item, by), notes=body.notes, force=body.force)
