"""The control API's part for backups of the server: it names one, this gateway fetches and keeps it."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.enrolgate import Gate, gated
from secondsite.gateway.control.keycontrol import Body, Call
from secondsite.gateway.uplink.backups import NoStoreForBackups, ServerBackups
from secondsite.transfer.backups import KeepBackup


class Services(Protocol):
    """Of `control.services.ControlServices` what is used here."""

    @property
    def server_backups(self) -> ServerBackups | None:
        """None where there is no store, or no server."""

    @property
    def gate(self) -> Gate:
        """Whether something new may begin."""


def backup_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""

    async def keep(request: Request) -> Response:
        asked = await body(request, KeepBackup)
        name = request.path_params["name"]

        def run() -> object:
            if services.server_backups is None:
                raise NoStoreForBackups
            return services.server_backups.take(name, asked)

        return await call(run)

    return [Route("/v1/server-backups/{name}", gated("PUT", keep, services.gate), methods=["PUT"])]
