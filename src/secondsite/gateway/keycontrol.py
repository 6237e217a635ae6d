"""The control API's part for the vault key: where its rotation stands, and the proof that finishes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.keymessages import FinishRotation
from secondsite.gateway.keyrotation import KeyRotation


class Call(Protocol):
    """Runs a function in a worker thread and encodes its answer."""

    def __call__(self, function: Callable[[], object], status: int = 200) -> Awaitable[Response]:
        """status: of the answer, when it does not raise."""


def key_routes(
    rotation: KeyRotation | None,
    body: Callable[[Request, type[FinishRotation]], Awaitable[FinishRotation]],
    call: Call,
) -> list[Route]:
    """None where nothing seals (tests of other parts). body, call: how the control API reads and answers."""
    if rotation is None:
        return []

    async def show(_request: Request) -> Response:
        return await call(rotation.status)

    async def finish(request: Request) -> Response:
        proof = await body(request, FinishRotation)
        return await call(lambda: rotation.finish(proof), 202)

    return [
        Route("/v1/key", show, methods=["GET"]),
        Route("/v1/key/rotation", finish, methods=["POST"]),
    ]
