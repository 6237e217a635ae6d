"""The route that has a gateway look whether it has what it needs at its own place."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter
from pydantic import Field

from secondsite.model.readiness import Readiness
from secondsite.server.api.access import TheServices, requires
from secondsite.server.api.errors import NotReady
from secondsite.server.api.providers import ThePlace
from secondsite.server.api.schemas import View
from secondsite.server.operations.asking import AnswerUnknown, read_answer
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["providers"])

Refresher = Annotated[Caller, requires(Operation.INVENTORY_REFRESH)]
ANSWER_SECONDS_MAX = 60.0


class CheckView(View):
    """One thing a gateway needs. why, fix and ask are empty when it is there."""

    code: str
    title: str
    ok: bool
    why: str
    fix: str
    ask: str = Field(description="Which right to ask for, and of whom.")


class ReadinessView(View):
    """What a gateway found of its own place, at that moment."""

    provider: str
    at: datetime
    ready: bool
    checks: list[CheckView]


@router.get("/vaults/{vault}/recoveryServicesProviders/{provider}/readiness")
def show_readiness(
    caller: Refresher,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> ReadinessView:
    """Have a gateway look now whether it may do what it is for, and name each right that is missing."""
    if services.calls is None:
        raise NotReady(why="it asks no gateways")
    gateway = place.gateways.get(place.name)
    answer = services.calls.ask_now(gateway.id, "/v1/readiness", seconds_max=ANSWER_SECONDS_MAX)
    told = read_answer(gateway.name, answer, Readiness)
    try:
        at = datetime.fromisoformat(told.at)
    except ValueError as error:
        raise AnswerUnknown(gateway=gateway.name, why=str(error)) from None
    checks = [CheckView.model_validate(msgspec.structs.asdict(check)) for check in told.checks]
    return ReadinessView(provider=gateway.name, at=at, ready=all(check.ok for check in checks), checks=checks)
