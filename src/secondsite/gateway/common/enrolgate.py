"""What a gateway that its server let go does not do any more: begin something new. It ends and shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
# Raises the error to answer with while nothing new may begin.
Gate = Callable[[], None]

# What begins something. DELETE ends something: protection, tests, exports, holds.
GATED_METHODS = frozenset({"PUT", "POST"})


def open_gate() -> None:
    """Of a gateway that belongs to no server."""


def gated(method: str, handler: Handler, gate: Gate) -> Handler:
    """The handler behind the gate, where its method begins something."""
    if method not in GATED_METHODS:
        return handler

    async def checked(request: Request) -> Response:
        gate()
        return await handler(request)

    return checked
