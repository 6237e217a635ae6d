"""The control API's part for failovers and held machines. Every POST may be repeated."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.enrolgate import Gate, gated
from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.keycontrol import Body, Call
from secondsite.gateway.control.settingsroutes import settings_routes
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.messages.failover import (
    CallOffFailover,
    CancelTimer,
    ChangePoint,
    CommitFailover,
    Decide,
    FailoverPreview,
    FailoverStatus,
    HeldMachine,
    LookAtFailover,
    PlannedStop,
    PlannedStopStatus,
    RemoveFormer,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.reverse.failingover import FailingOver
from secondsite.gateway.source.plannedstop import PlannedStops
from secondsite.model.ids import MachineId
from secondsite.model.recovered import decode


class Services(Protocol):
    """Of `control.services.ControlServices` what is used here."""

    @property
    def name(self) -> str:
        """The gateway's."""

    @property
    def recovery(self) -> Recovery | None:
        """None without a store."""

    @property
    def failing_over(self) -> FailingOver:
        """What does it."""

    @property
    def gate(self) -> Gate:
        """Whether anything may begin."""


def failover_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""
    routes = []
    parts = services.failing_over
    if parts.failovers is not None and services.recovery is not None:
        routes += _target_routes(services, parts.failovers, services.recovery, body, call)
        routes += settings_routes(services.name, parts.failovers, services.recovery, body, call)
    if parts.fencing is not None:
        routes += _source_routes(services, parts.fencing, body, call)
    if parts.stops is not None:
        routes += _stop_routes(services, parts.stops, body, call)
    return routes


def _target_routes(
    services: Services, failovers: Failovers, recovery: Recovery, body: Body, call: Call
) -> list[Route]:
    where = f"gateway {services.name}"

    def machine_of(request: Request) -> MachineId:
        wanted = request.path_params["machine"]
        return resolve(wanted, recovery.machines(), kind="replica", where=where)

    async def preview(request: Request) -> Response:
        query = request.query_params

        def look() -> FailoverPreview:
            settings = decode(query["settings"]) if "settings" in query else None
            asked = LookAtFailover(
                point=query.get("point", "latest"),
                name=query.get("name"),
                network=query.get("network", "mapped"),
                settings=settings,
            )
            return failovers.preview(machine_of(request), asked)

        return await call(look)

    async def start(request: Request) -> Response:
        asked = await body(request, StartFailover)
        return await call(lambda: failovers.start(machine_of(request), asked), 202)

    async def call_off(request: Request) -> Response:
        asked = await body(request, CallOffFailover)
        return await call(lambda: failovers.call_off(asked.operation))

    async def listing(_request: Request) -> Response:
        return await call(failovers.all)

    async def show(request: Request) -> Response:
        return await call(lambda: failovers.get(request.path_params["id"]))

    return [
        Route("/v1/machines/{machine}/failover", preview, methods=["GET"]),
        Route("/v1/machines/{machine}/failover", gated("POST", start, services.gate), methods=["POST"]),
        Route("/v1/machines/{machine}/failover", call_off, methods=["DELETE"]),
        Route("/v1/failovers", listing, methods=["GET"]),
        Route("/v1/failovers/{id}", show, methods=["GET"]),
        *_standing_routes(failovers, body, call),
    ]


def _standing_routes(failovers: Failovers, body: Body, call: Call) -> list[Route]:
    """What becomes of one that was begun."""

    async def change(request: Request) -> Response:
        asked = await body(request, ChangePoint)

        def run() -> FailoverStatus:
            return failovers.change_point(request.path_params["id"], asked)

        return await call(run, 202)

    async def commit(request: Request) -> Response:
        asked = await body(request, CommitFailover)
        return await call(lambda: failovers.commit(request.path_params["id"], asked), 202)

    async def roll_back(request: Request) -> Response:
        asked = await body(request, RollBackFailover)
        return await call(lambda: failovers.roll_back(request.path_params["id"], asked), 202)

    async def remove_former(request: Request) -> Response:
        asked = await body(request, RemoveFormer)
        return await call(lambda: failovers.remove_former(request.path_params["id"], asked))

    async def cancel_timer(request: Request) -> Response:
        asked = await body(request, CancelTimer)
        return await call(lambda: failovers.cancel_timer(request.path_params["id"], asked))

    return [
        # what was begun can be ended, whatever the server says of this gateway meanwhile
        Route("/v1/failovers/{id}/change-point", change, methods=["POST"]),
        Route("/v1/failovers/{id}/commit", commit, methods=["POST"]),
        Route("/v1/failovers/{id}/roll-back", roll_back, methods=["POST"]),
        Route("/v1/failovers/{id}/remove-former", remove_former, methods=["POST"]),
        Route("/v1/failovers/{id}/cancel-timer", cancel_timer, methods=["POST"]),
    ]


def _source_routes(services: Services, fencing: Fencing, body: Body, call: Call) -> list[Route]:
    where = f"gateway {services.name}"

    def machine_of(request: Request) -> MachineId:
        pairs = [(held.machine, held.name) for held in fencing.all()]
        return resolve(request.path_params["machine"], pairs, kind="held machine", where=where)

    async def listing(_request: Request) -> Response:
        return await call(fencing.all)

    async def release(request: Request) -> Response:
        asked = await body(request, Decide)

        def run() -> HeldMachine:
            return fencing.release(machine_of(request), asked)

        return await call(run)

    async def discard(request: Request) -> Response:
        asked = await body(request, Decide)

        def run() -> HeldMachine:
            return fencing.discard(machine_of(request), asked)

        return await call(run)

    return [
        Route("/v1/held", listing, methods=["GET"]),
        Route("/v1/held/{machine}/release", release, methods=["POST"]),
        Route("/v1/held/{machine}/discard", discard, methods=["POST"]),
    ]


def _stop_routes(services: Services, stops: PlannedStops, body: Body, call: Call) -> list[Route]:
    where = f"gateway {services.name}"

    def machine_of(request: Request) -> tuple[MachineId, str]:
        pairs = [(machine, name) for machine, name, _ in stops.protected()]
        machine = resolve(request.path_params["machine"], pairs, kind="protected machine", where=where)
        return machine, dict(pairs)[machine]

    async def listing(_request: Request) -> Response:
        return await call(stops.all)

    async def show(request: Request) -> Response:
        return await call(lambda: stops.get(machine_of(request)[0]))

    async def start(request: Request) -> Response:
        asked = await body(request, PlannedStop)

        def run() -> PlannedStopStatus:
            return stops.start(*machine_of(request), asked)

        return await call(run, 202)

    async def cancel(request: Request) -> Response:
        return await call(lambda: stops.cancel(machine_of(request)[0]))

    path = "/v1/protections/{machine}/planned-stop"
    return [
        Route("/v1/planned-stops", listing, methods=["GET"]),
        Route(path, show, methods=["GET"]),
        Route(path, gated("POST", start, services.gate), methods=["POST"]),
        Route(path, cancel, methods=["DELETE"]),
    ]
