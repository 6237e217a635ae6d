"""The control API's part for deleting replicas. Whoever asks spells the machine's name out."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.keycontrol import Call
from secondsite.gateway.messages.items import Deletion
from secondsite.gateway.recovery.deletion import Deletions
from secondsite.gateway.recovery.recover import Recovery


class Services(Protocol):
    """Of `control.services.ControlServices` what is used here."""

    @property
    def name(self) -> str:
        """The gateway's."""

    @property
    def recovery(self) -> Recovery | None:
        """None where there is no store."""

    @property
    def deletions(self) -> Deletions | None:
        """None where there is no store."""


def deletion_routes(services: Services, call: Call) -> list[Route]:
    """call: how the control API answers."""
    deletions, recovery = services.deletions, services.recovery
    if deletions is None or recovery is None:
        return []

    async def delete(request: Request) -> Response:
        def begin() -> Deletion:
            pairs = recovery.machines()
            where = f"gateway {services.name}"
            machine = resolve(request.path_params["machine"], pairs, kind="replica", where=where)
            asked = request.query_params
            by = asked.get("by", "")[:255] or "somebody at the gateway"
            return deletions.begin(machine, confirm=asked.get("confirm", ""), by=by)

        return await call(begin, 202)

    async def show(_request: Request) -> Response:
        return await call(deletions.all)

    return [
        Route("/v1/machines/{machine}/replica", delete, methods=["DELETE"]),
        Route("/v1/deletions", show, methods=["GET"]),
    ]
