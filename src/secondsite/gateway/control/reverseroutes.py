"""The control API's part for protecting machines the other way round. All of it may be repeated."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.enrolgate import gated
from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.failoverroutes import Services
from secondsite.gateway.control.keycontrol import Body, Call
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.messages.reverse import (
    CompleteMigration,
    RetireReplica,
    ReverseRequest,
    ReverseStatus,
)
from secondsite.gateway.reverse.kept import Kept
from secondsite.gateway.reverse.service import Reversals
from secondsite.model.ids import MachineId


def reverse_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""
    parts, routes = services.failing_over, []
    if parts.kept is not None:
        routes += _kept_routes(parts.kept, body, call)
    if parts.reversals is not None and parts.fencing is not None:
        routes += _source_routes(services, parts.fencing, parts.reversals, body, call)
    return routes


def _kept_routes(kept: Kept, body: Body, call: Call) -> list[Route]:
    async def retire(request: Request) -> Response:
        asked = await body(request, RetireReplica)
        return await call(lambda: kept.retire(request.path_params["id"], asked), 202)

    async def complete(request: Request) -> Response:
        asked = await body(request, CompleteMigration)
        return await call(lambda: kept.complete_migration(request.path_params["id"], asked))

    return [
        Route("/v1/failovers/{id}/retire", retire, methods=["POST"]),
        Route("/v1/failovers/{id}/complete-migration", complete, methods=["POST"]),
    ]


def _source_routes(
    services: Services, fencing: Fencing, reversals: Reversals, body: Body, call: Call
) -> list[Route]:
    where = f"gateway {services.name}"

    def machine_of(request: Request) -> MachineId:
        pairs = [(held.machine, held.name) for held in fencing.all()]
        return resolve(request.path_params["machine"], pairs, kind="held machine", where=where)

    async def preview(request: Request) -> Response:
        return await call(lambda: reversals.preview(machine_of(request)))

    async def show(request: Request) -> Response:
        return await call(lambda: reversals.get(machine_of(request)))

    async def start(request: Request) -> Response:
        asked = await body(request, ReverseRequest)

        def run() -> ReverseStatus:
            return reversals.start(machine_of(request), asked)

        return await call(run, 202)

    async def take_back(request: Request) -> Response:
        return await call(lambda: reversals.take_back(machine_of(request)), 202)

    path = "/v1/held/{machine}/reverse"
    return [
        Route(f"{path}/preview", preview, methods=["GET"]),
        Route(path, show, methods=["GET"]),
        Route(path, gated("POST", start, services.gate), methods=["POST"]),
        Route(path, take_back, methods=["DELETE"]),
    ]
