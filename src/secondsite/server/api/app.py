"""The API put together: routes, frame, error handlers, and an OpenAPI description that says all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from secondsite import __version__
from secondsite.base.errors import SecondsiteError
from secondsite.server.api import (
    alerts,
    approvals,
    auditlog,
    backups,
    desired,
    enrolment,
    events,
    helds,
    histories,
    inventory,
    itemfailovers,
    itemforget,
    itemgroups,
    itemreturns,
    items,
    itemsettings,
    itemtests,
    jobs,
    keyproof,
    mappings,
    oidc,
    operations,
    people,
    policies,
    providers,
    readiness,
    standby,
    system,
    topology,
    uplink,
    vaults,
)
from secondsite.server.api.access import CERTIFICATE, PUBLIC, mark_of, request_id_of
from secondsite.server.api.errors import (
    InputRefused,
    MethodUnknown,
    Problem,
    RouteUnknown,
    Unauthenticated,
    problem_response,
)
from secondsite.server.api.frame import Frame
from secondsite.server.api.services import Services
from secondsite.server.people.roles import Caller

DESCRIPTION = """The server of secondsite: who is who, what is protected, every operation as a durable job.

Every answer that is not a success has the shape `Problem`, with a stable code. Listings come in pages:
`nextLink` leads to the next one. What takes long answers 202 with `Location: /api/v1/jobs/{id}`.
"""
# A validation error's position begins with where the value was; people know bodies, paths and parameters.
_PLACES = {"body": "the body", "path": "the path", "query": "the parameter", "header": "the header"}
# In the order in which the description shows them.
_PARTS = (
    system,
    backups,
    standby,
    people,
    auditlog,
    vaults,
    providers,
    readiness,
    policies,
    enrolment,
    inventory,
    topology,
    mappings,
    operations,
    jobs,
    approvals,
    oidc,
    uplink,
    desired,
    itemgroups,
    itemreturns,
    items,
    itemsettings,
    itemtests,
    itemfailovers,
    itemforget,
    helds,
    keyproof,
    events,
    alerts,
    histories,
)


def build_app(services: Services) -> FastAPI:
    """The application of one server."""
    app = FastAPI(
        title="secondsite",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        responses={
            "4XX": {"model": Problem, "description": "Refused: nothing was changed"},
            "5XX": {"model": Problem, "description": "Failed, or not possible now"},
        },
        dependencies=[Depends(known_parameters)],
        # measured by our own metrics, told by our own log: not a second time
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.services = services
    for part in _PARTS:
        app.include_router(part.router)
    app.add_exception_handler(SecondsiteError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(
        Frame,
        clock=services.clock,
        metrics=services.metrics,
        authenticate=_Authenticator(services),
        incarnation=services.survival.life.shown if services.survival is not None else "",
        check_changes=services.survival.life.check_work if services.survival is not None else lambda: None,
    )
    _describe(app)
    return app


class _Authenticator:
    """Who makes a request, by its bearer token, looked up in a worker thread."""

    def __init__(self, services: Services) -> None:
        self._tokens = services.tokens

    async def __call__(self, scope: Scope) -> Caller | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.decode("latin-1").partition(" ")
                if scheme.lower() != "bearer":
                    raise Unauthenticated(why="its authorization is not of the kind Bearer")
                return await run_in_threadpool(self._tokens.caller, token.strip())
        return None


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SecondsiteError)
    return problem_response(error, request_id_of(request))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *where = [str(part) for part in first["loc"]] or ["body"]
    named = " ".join([_PLACES.get(place, place), ".".join(where)]).strip()
    # pydantic's words without what was sent, which may be a password
    return problem_response(InputRefused(where=named, why=str(first["msg"])), request_id_of(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ours: SecondsiteError
    if error.status_code == 404:
        ours = RouteUnknown(method=request.method, path=request.url.path)
    elif error.status_code == 405:
        ours = MethodUnknown(method=request.method, path=request.url.path)
    else:
        ours = InputRefused(where="the request", why=str(error.detail))
    answer = problem_response(ours, request_id_of(request))
    answer.headers.update(error.headers or {})
    return answer


@dataclass(frozen=True)
class Route:
    """One method of one path. marks: what its dependencies say about who may use it (`access.mark_of`)."""

    method: str
    path: str
    name: str
    marks: frozenset[str]


def _marks(dependant: Dependant) -> Iterator[str]:
    for dependency in dependant.dependencies:
        mark = mark_of(dependency.call)
        if mark is not None:
            yield mark
        yield from _marks(dependency)


def routes_of(app: FastAPI) -> Iterator[Route]:
    """Every route of the API."""
    for found in iter_route_contexts(app.routes):
        if not isinstance(found.original_route, APIRoute):
            continue  # the description itself
        marks = frozenset(_marks(found.dependant))
        for method in sorted(found.methods or ()):
            yield Route(method, str(found.path_format), str(found.name), marks)


def _query_names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        yield parameter.alias
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)


async def known_parameters(request: Request) -> None:
    """Refuse what the path does not know: a mistyped filter must not silently list everything."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None or not request.query_params:
        return
    known = set(_query_names(dependant))
    for name in request.query_params:
        if name not in known:
            what = ", ".join(sorted(known)) or "none"
            raise InputRefused(where=f"the parameter {name[:40]}", why=f"it is not known here; known: {what}")


def _describe(app: FastAPI) -> None:
    """Say in the description which routes need a token, and what for."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"}
        }
        for route in routes_of(app):
            operation = schema["paths"].get(route.path, {}).get(route.method.lower())
            if operation is not None and route.marks and route.marks != {PUBLIC}:
                if CERTIFICATE not in route.marks:
                    operation["security"] = [{"token": []}]
                operation["x-operation"] = min(route.marks)
        return schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend it
