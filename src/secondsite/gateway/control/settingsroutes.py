"""The control API's part about settings of recovered machines: looked at beforehand, and brought in again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.keycontrol import Body, Call
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.messages.failover import LookAtFailover
from secondsite.gateway.messages.testfailover import StartTestFailover
from secondsite.gateway.recovery.recover import Recovery
from secondsite.model.ids import MachineId


def settings_routes(
    name: str, failovers: Failovers, recovery: Recovery, body: Body, call: Call
) -> list[Route]:
    """name: of the gateway. Settings of any length come in a body; a preview by GET takes short ones too."""

    def machine_of(request: Request) -> MachineId:
        wanted = request.path_params["machine"]
        return resolve(wanted, recovery.machines(), kind="replica", where=f"gateway {name}")

    async def check(request: Request) -> Response:
        asked = await body(request, LookAtFailover)
        return await call(lambda: failovers.preview(machine_of(request), asked))

    async def check_test(request: Request) -> Response:
        asked = await body(request, StartTestFailover)
        return await call(lambda: recovery.check_test_failover(machine_of(request), asked))

    async def again(request: Request) -> Response:
        return await call(lambda: failovers.bring_in_again(request.path_params["id"]), 202)

    return [
        Route("/v1/machines/{machine}/failover/check", check, methods=["POST"]),
        Route("/v1/machines/{machine}/test-failover/check", check_test, methods=["POST"]),
        Route("/v1/operations/{id}/settings", again, methods=["POST"]),
    ]
