"""The control API's part for checks that change nothing: the way to another gateway, this one's own place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.base.errors import InvalidInput
from secondsite.gateway.control.keycontrol import Call
from secondsite.gateway.source.peercheck import PeerChecks
from secondsite.model.readiness import Readiness
from secondsite.transfer.pki import gateway_name

_URL = re.compile(r"https://[!-~]{1,250}\Z")


@dataclass(frozen=True)
class Checks:
    """peers: the way to other gateways. readiness: what this one has of what it needs."""

    peers: PeerChecks
    readiness: Callable[[], Readiness] | None = None


def _url(request: Request, name: str) -> str | None:
    text = request.query_params.get(name)
    if text is not None and not _URL.match(text):
        raise InvalidInput(what=f"the parameter {name}", why="it is not https://HOST:PORT")
    return text


def check_routes(checks: Checks | None, call: Call) -> list[Route]:
    """call: how the control API answers."""
    if checks is None:
        return []
    peers, readiness = checks.peers, checks.readiness

    async def check_peer(request: Request) -> Response:
        name = gateway_name(request.path_params["name"])
        url, guess = _url(request, "url"), _url(request, "guess")
        return await call(lambda: peers.check(name, url, guess))

    async def ready(_request: Request) -> Response:
        assert readiness is not None
        return await call(readiness)

    routes = [Route("/v1/peers/{name}/check", check_peer, methods=["GET"])]
    if readiness is not None:
        routes.append(Route("/v1/readiness", ready, methods=["GET"]))
    return routes
