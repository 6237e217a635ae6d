"""Routes of active and standby server: standbys say hello, people see them, and switch over in order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy.engine import Connection

from secondsite.server.api.access import TheActor, TheServices, public, requires
from secondsite.server.api.errors import NotReady
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import note
from secondsite.server.people.roles import Caller, Operation
from secondsite.server.survival.handover import HandOver, HandOverStatus
from secondsite.server.survival.service import Survival
from secondsite.server.survival.standbys import StandbyServer
from secondsite.transfer import standby as wire

router = APIRouter(tags=["server"])

Reader = Annotated[Caller, requires(Operation.SERVER_READ)]
Owner = Annotated[Caller, requires(Operation.SERVER_HAND_OVER)]
StandbyPath = Annotated[str, Path(alias="standby", pattern=r"^[0-9a-f]{32}$", description="A standby's id.")]


class StandbyView(View):
    """A standby server, or the one that was active before."""

    id: str
    name: str
    url: str
    role: Literal["Standby", "Former"]
    seen_at: datetime
    copy_name: str = Field(description="What it holds, verified; empty: nothing yet.")
    current_at: datetime | None = Field(description="When what it holds was all there was.")
    lag_seconds: float | None
    late_seconds: int = Field(description="From when on it is late.")
    late_since: datetime | None

    @classmethod
    def of(cls, one: StandbyServer, now: datetime) -> StandbyView:
        """As it goes out."""
        return cls.model_validate(
            {
                "id": one.id,
                "name": one.name,
                "url": one.url,
                "role": "Standby" if one.late_seconds else "Former",
                "seen_at": one.seen_at,
                "copy_name": one.copy,
                "current_at": one.current_at,
                "lag_seconds": one.lag_seconds(now),
                "late_seconds": one.late_seconds,
                "late_since": one.late_since,
            },
            strict=False,
        )


class HandOverView(View):
    """How far a planned switch-over is at this server."""

    state: Literal["None", "Stopping", "Copying", "HandedOver"]
    since: datetime | None
    waits_for: list[str] = Field(description="Jobs whose step under way has not ended.")
    copy_name: str = Field(description="The last copy of the state, once a store has it.")
    stores: list[str]
    problem: str

    @classmethod
    def of(cls, status: HandOverStatus) -> HandOverView:
        """As it goes out."""
        return cls.model_validate(
            {
                "state": status.state.value,
                "since": status.since,
                "waits_for": list(status.waits_for),
                "copy_name": status.copy,
                "stores": list(status.stores),
                "problem": status.problem,
            },
            strict=False,
        )


def _survival(services: Services) -> Survival:
    if services.survival is None:
        raise NotReady(why="it has no standby servers")
    return services.survival


def _handover(services: Services) -> HandOver:
    found = _survival(services).handover
    if found is None:
        raise NotReady(why="it cannot be handed over")
    return found


@router.post(wire.PATH_HELLO, dependencies=[public()])
def hello(body: wire.Hello, services: TheServices) -> wire.HelloAnswer:
    """Another server of ours says who it is; proved with a key made of the master key both have."""
    return _survival(services).standbys.hello(body)


@router.get("/api/v1/server/standbys")
def list_standbys(
    asked: AskedPage,  # noqa: ARG001 - a server has a few, ever: one page
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[StandbyView]:
    """The standby servers, how far each follows, and the server that was active before."""
    now = services.clock.utc()
    return Page(
        value=[StandbyView.of(one, now) for one in _survival(services).standbys.known()], next_link=None
    )


@router.delete("/api/v1/server/standbys/{standby}", status_code=204)
def forget_standby(
    standby: StandbyPath,
    caller: Owner,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> None:
    """Forget one that is gone for good; one that lives says hello again."""
    standbys = _survival(services).standbys
    written = note(services, actor, Operation.SERVER_HAND_OVER, forgotten=standby)

    def work(connection: Connection) -> None:
        standbys.forget(connection, standby)
        written(connection, "", "server")

    services.database.run(work)


@router.get("/api/v1/server/hand-over")
def show_hand_over(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> HandOverView:
    """How far a planned switch-over is here."""
    return HandOverView.of(_handover(services).status())


@router.post("/api/v1/server/hand-over", status_code=202)
def begin_hand_over(
    caller: Owner,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> HandOverView:
    """Stop in order for a standby to go on: jobs stop, nothing changes any more, the last state goes out."""
    return HandOverView.of(_handover(services).begin(note(services, actor, Operation.SERVER_HAND_OVER)))


@router.delete("/api/v1/server/hand-over")
def take_back_hand_over(
    caller: Owner,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> HandOverView:
    """Go on here after all, as long as no standby has taken over."""
    written = note(services, actor, Operation.SERVER_HAND_OVER, taken_back=True)
    return HandOverView.of(_handover(services).take_back(written))
