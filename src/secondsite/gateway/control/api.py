"""The control API of one gateway: JSON over HTTP on a unix socket that only its owner can open.

Handlers parse, resolve the machine, call a service in a worker thread and encode the answer; nothing is
decided here. Every error is `SecondsiteError.as_dict()` under the status its outcome maps to. What takes long
(a test failover) answers 202 with a record whose id is polled at ``/v1/operations/{id}``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.enrolgate import gated
from secondsite.gateway.control.adoptroutes import AdoptionRoutes
from secondsite.gateway.control.backuproutes import backup_routes
from secondsite.gateway.control.checkroutes import check_routes
from secondsite.gateway.control.deletionroutes import deletion_routes
from secondsite.gateway.control.failoverroutes import failover_routes
from secondsite.gateway.control.itemroutes import item_routes, key_proof_routes
from secondsite.gateway.control.keycontrol import key_routes
from secondsite.gateway.control.monitoring import metrics_routes, whole_status
from secondsite.gateway.control.protectionroutes import ProtectionRoutes
from secondsite.gateway.control.replicaroutes import ReplicaRoutes
from secondsite.gateway.control.reverseroutes import reverse_routes
from secondsite.gateway.control.services import ControlServices, Roles
from secondsite.gateway.control.testroutes import TestFailoverRoutes
from secondsite.gateway.messages.adoption import AdoptRequest
from secondsite.gateway.messages.answers import Table, as_json, call, error_response, integer, read_body
from secondsite.gateway.messages.gateway import EventEntry, Inventory

EVENTS_MAX = 1000


class RouteUnknown(SecondsiteError):
    """No such resource or method."""

    code = "control.route-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "The gateway has nothing at {method} {path}."
    cause = "The command and the gateway are of different versions."
    action = "Compare `secondsite --version` at both ends and update the older one."


class InternalFailure(SecondsiteError):
    """A defect of ours, told without hiding it."""

    code = "control.internal"
    happened = "The gateway failed on this request: {kind}: {text}."
    cause = "A defect in secondsite; the gateway's log has the traceback."
    action = "Report it with the log; replication is not affected."


@dataclass(frozen=True)
class SiteRoutes:
    """Handlers about the gateway itself, and its site."""

    roles: Roles

    def table(self) -> Table:
        """Method, path and handler."""
        return [
            ("GET", "/v1/status", self.status),
            ("GET", "/v1/inventory", self.inventory),
            ("GET", "/v1/events", self.events),
        ]

    async def status(self, _request: Request) -> Response:
        """Everything at once."""
        return await call(lambda: whole_status(self.roles.services))

    async def inventory(self, _request: Request) -> Response:
        """Hosts, machines, networks and pools of the site."""
        return await call(self._inventory)

    def _inventory(self) -> Inventory:
        fabric = self.roles.fabric()
        return Inventory(
            hosts=tuple(fabric.hosts()),
            machines=tuple(fabric.machines()),
            networks=tuple(fabric.networks()),
            pools=tuple(fabric.pools()),
        )

    async def events(self, request: Request) -> Response:
        """Events after a number, oldest first."""
        after = integer(request, "after", 0)
        limit = min(integer(request, "limit", EVENTS_MAX), EVENTS_MAX)
        found = await run_in_threadpool(self.roles.services.events.since, after, limit)
        return as_json([EventEntry(number=number, event=event) for number, event in found])


def _tables(services: ControlServices) -> list[Route]:
    """Method, path and handler, each behind the gate where it begins something."""
    roles = Roles(services)
    adoption = AdoptionRoutes(
        services.name,
        services.adoptions,
        roles.missing,
        roles.recovery,
        lambda request: read_body(request, AdoptRequest),
        call,
        roles.pools,
    )
    faces = (
        SiteRoutes(roles),
        ProtectionRoutes(roles),
        ReplicaRoutes(roles),
        TestFailoverRoutes(roles),
        adoption,
    )
    rows = [row for face in faces for row in face.table()]
    return [Route(p, gated(m, handler, services.gate), methods=[m]) for m, p, handler in rows]


def build_app(services: ControlServices, on_failure: Callable[[BaseException], None]) -> Starlette:
    """The API as an ASGI application; `on_failure` is told of defects (with their traceback)."""

    async def known(request: Request, error: Exception) -> Response:  # noqa: ARG001
        assert isinstance(error, SecondsiteError)
        return error_response(error)

    async def unknown_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        wrong = RouteUnknown(method=request.method, path=request.url.path)
        return as_json(wrong.as_dict(), error.status_code)

    async def defect(request: Request, error: Exception) -> Response:  # noqa: ARG001
        on_failure(error)
        return error_response(InternalFailure(kind=type(error).__name__, text=str(error)[:500]))

    app = Starlette(
        routes=[
            *_tables(services),
            *key_routes(services, read_body, call),
            *metrics_routes(services),
            *item_routes(services, read_body, call),
            *failover_routes(services, read_body, call),
            *reverse_routes(services, read_body, call),
            *key_proof_routes(services, read_body, call),
            *deletion_routes(services, call),
            *check_routes(services.checks, call),
            *backup_routes(services, read_body, call),
        ],
        exception_handlers={SecondsiteError: known, HTTPException: unknown_route, Exception: defect},
    )
    app.router.redirect_slashes = False
    return app
