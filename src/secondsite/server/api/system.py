"""Whether the server lives, whether it can work, what it measures."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from secondsite import __version__
from secondsite.server.api.access import TheServices, public, requires
from secondsite.server.api.measures import Measures
from secondsite.server.api.schemas import View
from secondsite.server.jobs import records
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(tags=["server"])


class Health(View):
    """The process answers."""

    status: str
    version: str
    warnings: list[str] = Field(default=[], description="What works and needs a person all the same.")


@router.get("/api/v1/health", dependencies=[public()])
def health() -> Health:
    """Whether the process lives; asks nothing else, so that a slow database restarts no server."""
    return Health(status="alive", version=__version__)


@router.get("/api/v1/ready", dependencies=[public()])
def ready(services: TheServices) -> Health:
    """Whether requests can be answered: 503 with the reason when not. For load balancers."""
    for check in services.checks:
        check()
    warnings = services.survival.warnings() if services.survival is not None else []
    return Health(status="ready", version=__version__, warnings=warnings)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics"}},
)
def metrics(services: TheServices, caller: Annotated[Caller, requires(Operation.SERVER_READ)]) -> Response:  # noqa: ARG001
    """Everything measured, for Prometheus; give it a reader's token as bearer_token_file."""
    with services.database.read() as connection:
        services.metrics.jobs({state.value: number for state, number in records.counts(connection).items()})
    if services.survival is not None:
        services.metrics.backup_age(services.survival.backups.age())
    text = services.metrics.text(Measures(services))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
