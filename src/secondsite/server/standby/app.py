"""What a standby answers: that it is one, whether it follows, and nothing else."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from secondsite import __version__
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB
from secondsite.server.api.errors import BodyTooLarge, InputRefused, problem_response
from secondsite.server.standby.errors import HelloRefused, NotActive
from secondsite.server.standby.follower import Follower
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.standby import PATH_HELLO, PURPOSE, Hello, HelloAnswer, ServerRole

BODY_BYTES_MAX = 16 * KIB


class StandbyApp:
    """The routes of one standby."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._key = follower.master.derive(PURPOSE)

    def asgi(self) -> Starlette:
        """The application."""
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        return Starlette(
            routes=[
                Route("/api/v1/health", self._answering(self._health), methods=["GET"]),
                Route(PATH_HELLO, self._hello, methods=["POST"]),
                Route("/metrics", self._answering(self._metrics), methods=["GET"]),
                Route("/{path:path}", self._answering(self._refuse), methods=methods),
            ]
        )

    def _answering(self, work: Callable[[], Response]) -> Callable[[Request], object]:
        async def answer(_request: Request) -> Response:
            try:
                return await run_in_threadpool(work)
            except SecondsiteError as error:
                return problem_response(error, secrets.token_hex(8))

        return answer

    def _refuse(self) -> Response:
        status = self._follower.status()
        raise NotActive(active=status.claim_url or status.active or "not known here")

    def _health(self) -> Response:
        held, status = self._follower.held(), self._follower.status()
        lag = self._follower.lag_seconds(status, held)
        late = lag is None or lag > self._follower.late_seconds
        said = f"its state is {lag:.0f} s old" if lag is not None else "it holds no state yet"
        warnings = [f"the standby is late: {said}"] if late else []
        return JSONResponse({"status": "standby", "version": __version__, "warnings": warnings})

    def _metrics(self) -> Response:
        text = measures(self._follower)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _hello(self, request: Request) -> Response:
        try:
            said = Hello.model_validate_json(await _body(request))
            answer = await run_in_threadpool(self._answer, said)
        except ValidationError as error:
            refused = InputRefused(where="the body", why=error.errors()[0]["msg"])
            return problem_response(refused, secrets.token_hex(8))
        except SecondsiteError as error:
            return problem_response(error, secrets.token_hex(8))
        return JSONResponse(json.loads(answer.model_dump_json(by_alias=True)))

    def _answer(self, said: Hello) -> HelloAnswer:
        if not said.proves(self._key):
            raise HelloRefused(why="its proof is none")
        return HelloAnswer(
            id=self._follower.files.id(),
            name=self._follower.config.name,
            url=self._follower.config.reached_at(),
            role=ServerRole.STANDBY,
            server_time=time_text(self._follower.clock.utc()),
        )


def measures(follower: Follower) -> bytes:
    """For Prometheus: numbers only, so that they may be read without a token."""
    held, status = follower.held(), follower.status()
    lag = follower.lag_seconds(status, held)
    registry = CollectorRegistry()
    for name, text, value in (
        ("lag_seconds", "Age of the state a takeover would go on with", math.inf if lag is None else lag),
        ("late", "1: it is older than the configuration allows", lag is None or lag > follower.late_seconds),
        ("copy_bytes", "Size of the copy that is held", held.size if held is not None else 0),
        ("active_answers", "1: the active server answered the last time", not status.active_problem),
    ):
        Gauge(f"secondsite_standby_{name}", text, registry=registry).set(float(value))
    return generate_latest(registry)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise BodyTooLarge(bytes_max=BODY_BYTES_MAX)
    return bytes(body)
