"""The frame around every request: its id, who makes it, a bounded body, one line of log, and no bare failure.

Order: id, caller (401 before a byte of the body is read), body, routes. What no handler answered is answered
here, so that every answer of the server has the one shape of errors.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.logs import REQUEST_ID
from secondsite.base.units import KIB, MIB
from secondsite.server.api.errors import BodyTooLarge, InternalFailure, problem_response
from secondsite.server.api.listener import CERTIFICATE_KEY
from secondsite.server.api.metrics import UNMATCHED, Metrics
from secondsite.transfer.calls import ANSWER_BYTES_MAX, PATH_ANSWERS
from secondsite.transfer.enrolment import PATH_REVOCATIONS
from secondsite.transfer.incarnation import INCARNATION_HEADER
from secondsite.transfer.reports import EVENT_BATCH_BYTES_MAX, PATH_EVENTS, PATH_REPORTS, REPORT_BYTES_MAX

log = logging.getLogger("secondsite.server.requests")

BODY_BYTES_MAX = 1 * MIB
# A log-in or an enrolment is some kilobytes; who proves nothing gets no more memory than that.
ANONYMOUS_BODY_BYTES_MAX = 64 * KIB
# Who shows a certificate of our authority may send what a gateway has to tell there.
GATEWAY_BODY_BYTES_MAX = {
    PATH_REVOCATIONS: 2 * MIB,
    PATH_ANSWERS: ANSWER_BYTES_MAX,
    PATH_EVENTS: EVENT_BATCH_BYTES_MAX,
    PATH_REPORTS: REPORT_BYTES_MAX,
}
# Chosen by a client to find its request again in the log; anything else is replaced.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
)

# People log in and out also at a server whose place another took; gateways are told in their routes.
_ALWAYS = re.compile(
    r"/api/v1/(sessions(/current)?|oidc/(logins|devices)(/.*)?|gateways/self/.*|uplink/.*|standby/hello"
    r"|server/hand-over)\Z"
)

Authenticate = Callable[[Scope], Awaitable[object | None]]


class Frame:
    """ASGI middleware; `authenticate` gives the caller (None: anonymous) or raises a SecondsiteError."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        metrics: Metrics,
        authenticate: Authenticate,
        incarnation: str = "",
        check_changes: Callable[[], None] = lambda: None,
    ) -> None:
        """incarnation: shown with every answer; empty: none.

        check_changes: raises while nothing may be changed here, because another server is active.
        """
        self._check_changes = check_changes
        self._app = app
        self._clock = clock
        self._metrics = metrics
        self._authenticate = authenticate
        mine = (INCARNATION_HEADER.encode(), incarnation.encode())
        self._headers = [*_HEADERS, mine] if incarnation else [*_HEADERS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = self._clock.monotonic()
        sent: list[int] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])
                message["headers"] = [
                    *message.get("headers", ()),
                    *self._headers,
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        self._metrics.begun()
        try:
            await self._run(scope, receive, answer, sent)
        finally:
            self._tell(scope, sent[0] if sent else 0, self._clock.monotonic() - started)

    async def _run(self, scope: Scope, receive: Receive, send: Send, sent: list[int]) -> None:
        problem: SecondsiteError
        try:
            caller = await self._authenticate(scope)
            scope["state"]["caller"] = caller
            if _changes(scope):
                self._check_changes()
            body = await _whole_body(scope, receive, _body_bytes_max(scope, caller))
            if body is None:
                return  # the client went away
            await self._app(scope, _replay(body, receive), send)
        except SecondsiteError as error:
            problem = error
        except Exception as error:  # the root of a request: nothing may escape unanswered
            log.exception("request failed")
            problem = InternalFailure(kind=type(error).__name__)
        else:
            return
        if not sent:
            await problem_response(problem, scope["state"]["request_id"])(scope, receive, send)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._metrics.ended(method=scope["method"], route=route, status=status, seconds=seconds)
        client = scope.get("client")
        caller = scope["state"].get("caller")
        # the path without its query: what a client searches for is not for the log
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "address": client[0] if client else "",
            "user": getattr(caller, "name", ""),
        }
        log.info("request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.match(text):
                return text
    return secrets.token_hex(8)


def _changes(scope: Scope) -> bool:
    """Whether a request is a person's who changes something."""
    return scope["method"] not in {"GET", "HEAD", "OPTIONS"} and not _ALWAYS.match(scope["path"])


def _body_bytes_max(scope: Scope, caller: object | None) -> int:
    if scope["state"].get(CERTIFICATE_KEY) is not None and scope["path"] in GATEWAY_BODY_BYTES_MAX:
        return GATEWAY_BODY_BYTES_MAX[scope["path"]]
    return BODY_BYTES_MAX if caller is not None else ANONYMOUS_BODY_BYTES_MAX


async def _whole_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes | None:
    """The body; None when the client went away. Raises BodyTooLarge before more than the limit is held.

    What still comes then is read and dropped by the listener, within the time a body has: were the connection
    closed at once, the kernel would reset it and the client would never see the answer.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > bytes_max:
            raise BodyTooLarge(bytes_max=bytes_max)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise BodyTooLarge(bytes_max=bytes_max)
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
