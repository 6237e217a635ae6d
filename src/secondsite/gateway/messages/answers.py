"""How the control API reads requests and writes answers: JSON, and the errors as they travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from secondsite.base.errors import InvalidInput, SecondsiteError, http_status
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.common.enrolgate import Handler

# The largest body is a protection with its mappings: some kilobytes. More is a mistake or an attack.
BODY_BYTES_MAX = 64 * 1024

_ENCODER = msgspec.json.Encoder()
_T = TypeVar("_T")
Table = list[tuple[str, str, Handler]]  # method, path and handler


def error_response(error: SecondsiteError) -> Response:
    """The error as it goes out."""
    return as_json(error.as_dict(), http_status(error))


def as_json(value: object, status: int = 200) -> Response:
    """As JSON."""
    return Response(_ENCODER.encode(value), status, media_type="application/json")


async def read_body(request: Request, kind: type[_T]) -> _T:
    """Read and check a request's body. Raises InvalidInput."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise InvalidInput(what="the request body", why=f"it is larger than {BODY_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except JSON_ERRORS as error:
        raise InvalidInput(what="the request body", why=str(error)) from None


def integer(request: Request, name: str, default: int) -> int:
    """A parameter of the query. Raises InvalidInput."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise InvalidInput(what=f"the parameter {name}", why="it is not a whole number")
    return int(text)


async def call(function: Callable[[], object], status: int = 200) -> Response:
    """Run it in a worker thread, and answer with what it returns."""
    return as_json(await run_in_threadpool(function), status)
