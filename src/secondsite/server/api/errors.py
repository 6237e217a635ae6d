"""Errors as they leave the API: one shape, a status by outcome, the request's id in each.

    {"code": "...", "outcome": "...", "happened": "...", "cause": "...", "action": "...", "requestId": "..."}

The status follows from the outcome; errors whose status HTTP itself defines carry it as `status`.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from secondsite.base.errors import Outcome, SecondsiteError, http_status


class HttpError(SecondsiteError):
    """An error with a status of its own."""

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}


class Unauthenticated(HttpError):
    """Nobody we know."""

    code = "access.unauthenticated"
    outcome = Outcome.REFUSED
    status = 401
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}
    happened = "The request does not prove who makes it: {why}."
    cause = "No token was sent, or it is mistyped, expired or revoked."
    action = (
        "Log in with `secondsite login --server URL --token-file FILE`, with a token that is still valid."
    )


class Forbidden(HttpError):
    """Known, but not allowed."""

    code = "access.forbidden"
    outcome = Outcome.REFUSED
    status = 403
    happened = "{who} may not do {operation} {where}."
    cause = "It needs one of the roles {roles}; a token may also be limited to less than its user."
    action = "Ask an owner for the role (`secondsite user grant`), or use a token that is not limited."


class CertificateRequired(HttpError):
    """The route is for gateways and agents."""

    code = "access.certificate-required"
    outcome = Outcome.REFUSED
    status = 401
    happened = "The request was made without a certificate of this server's authority."
    cause = "The connection showed none; only enrolled gateways and agents have one."
    action = "Enrol first, then connect with the certificate that was issued."


class BodyTooLarge(HttpError):
    """More than is read."""

    code = "request.body-too-large"
    outcome = Outcome.USAGE
    status = 413
    happened = "The request's body is larger than {bytes_max} bytes."
    cause = "It is not a request of this API, or it was made without a token (those may send less)."
    action = "Send what the API's description asks for."


class TooManyRequests(HttpError):
    """Asked to wait."""

    code = "request.too-many"
    outcome = Outcome.UNAVAILABLE
    status = 429
    happened = "{what} came too often."
    cause = "A script in a loop, or somebody who guesses passwords."
    action = "Try again in {seconds} seconds."


class RouteUnknown(HttpError):
    """No such resource."""

    code = "request.route-unknown"
    outcome = Outcome.NOT_FOUND
    status = 404
    happened = "The server has nothing at {method} {path}."
    cause = "A mistyped path, or a client and a server of different versions."
    action = "See /api/v1/openapi.json, and compare `secondsite --version` at both ends."


class MethodUnknown(HttpError):
    """The resource is there, the method is not."""

    code = "request.method-unknown"
    outcome = Outcome.USAGE
    status = 405
    happened = "{path} does not know the method {method}."
    cause = "A client and a server of different versions, or a request made by hand."
    action = "See /api/v1/openapi.json for the methods it knows."


class InputRefused(HttpError):
    """A value does not fit the API's description."""

    code = "request.invalid"
    outcome = Outcome.USAGE
    status = 400
    happened = "{where} is not valid: {why}."
    cause = "A mistyped value, or a client and a server of different versions."
    action = "Correct it; nothing was changed."


class InternalFailure(HttpError):
    """A defect of ours, told without hiding it; the detail stays in the log."""

    code = "server.internal"
    status = 500
    happened = "The server failed on this request ({kind})."
    cause = "A defect in secondsite; the server's log has the traceback under the request's id."
    action = "Report it with the log; replication is not affected."


class NotReady(HttpError):
    """Alive, but not able to work."""

    code = "server.not-ready"
    outcome = Outcome.UNAVAILABLE
    status = 503
    happened = "The server is not ready: {why}."
    cause = "It is starting or stopping, or its database does not answer."
    action = "Try again in a moment; see the server's log if it stays so. Replication goes on meanwhile."


class Problem(BaseModel):
    """What went wrong, in sentences, with a stable code."""

    model_config = ConfigDict(extra="allow")

    code: str
    outcome: str
    happened: str
    cause: str
    action: str
    request_id: str = Field(alias="requestId")


def status_of(error: SecondsiteError) -> int:
    """The HTTP status of an error, also of one another process reported."""
    if isinstance(error, HttpError):
        return error.status
    return http_status(error)


def problem_response(error: SecondsiteError, request_id: str) -> Response:
    """The error as it goes out."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    seconds = error.fields.get("seconds")
    if isinstance(error, TooManyRequests) and isinstance(seconds, int):
        headers["retry-after"] = str(seconds)
    body = msgspec.json.encode(error.as_dict() | {"requestId": request_id})
    return Response(body, status_of(error), headers, media_type="application/json")
