"""The control API's part for keys: where a rotation stands, the proof that finishes it, new data keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.enrolgate import Gate, Handler, gated
from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.slots import ProtectionService
from secondsite.gateway.keys.rotation import KeyRotation
from secondsite.gateway.messages.keys import DataKeysRenewed, FinishRotation, RenewDataKeys

_T = TypeVar("_T")


class Body(Protocol):
    """Reads and checks a request's body."""

    def __call__(self, request: Request, kind: type[_T]) -> Awaitable[_T]:
        """Raises InvalidInput."""


class Call(Protocol):
    """Runs a function in a worker thread and encodes its answer."""

    def __call__(self, function: Callable[[], object], status: int = 200) -> Awaitable[Response]:
        """status: of the answer, when it does not raise."""


class Services(Protocol):
    """Of `control.services.ControlServices` what is used here."""

    @property
    def name(self) -> str:
        """The gateway's."""

    @property
    def key_rotation(self) -> KeyRotation | None:
        """None where nothing seals (tests of other parts)."""

    @property
    def protections(self) -> ProtectionService | None:
        """None where nothing is protected."""

    @property
    def gate(self) -> Gate:
        """Raises while the gateway takes no new work: then it changes no keys either."""


def key_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""
    rotation, protections = services.key_rotation, services.protections

    async def show(_request: Request) -> Response:
        assert rotation is not None
        return await call(rotation.status)

    async def finish(request: Request) -> Response:
        assert rotation is not None
        proof, finished = await body(request, FinishRotation), rotation.finish
        return await call(lambda: finished(proof), 202)

    async def renew(request: Request) -> Response:
        asked = await body(request, RenewDataKeys)

        def run() -> DataKeysRenewed:
            assert protections is not None
            pairs = [(status.machine, status.name) for status in protections.statuses()]
            where = f"gateway {services.name}"
            machine = resolve(request.path_params["machine"], pairs, kind="protected machine", where=where)
            return protections.renew_data_keys(machine, asked.disks)

        return await call(run)

    def post(path: str, handler: Handler) -> Route:
        return Route(path, gated("POST", handler, services.gate), methods=["POST"])

    routes = []
    if rotation is not None:
        routes.append(Route("/v1/key", show, methods=["GET"]))
        routes.append(post("/v1/key/rotation", finish))
    if protections is not None:
        routes.append(post("/v1/protections/{machine}/data-keys", renew))
    return routes
