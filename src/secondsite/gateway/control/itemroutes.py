"""The control API's part about standing protections, and the proof they rest on: pause, resume, resync."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite.gateway.common.enrolgate import Gate, gated
from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.keycontrol import Body, Call
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.messages.items import ByWhom, KeyProofRequest, KeyState, ResyncRequest
from secondsite.gateway.source.verbs import Verbs
from secondsite.model.ids import MachineId


class Services(Protocol):
    """Of `control.services.ControlServices` what is used here."""

    @property
    def name(self) -> str:
        """The gateway's."""

    @property
    def verbs(self) -> Verbs | None:
        """None where nothing is protected."""

    @property
    def recovery_key(self) -> RecoveryKeyGuard | None:
        """None where nothing is sealed (tests of other parts)."""

    @property
    def gate(self) -> Gate:
        """Closed once the server has let the gateway go."""


def item_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""
    verbs = services.verbs
    if verbs is None:
        return []

    def machine_of(request: Request) -> MachineId:
        pairs = [(protection.machine, protection.name) for protection in verbs.desired.all()]
        where = f"gateway {services.name}"
        return resolve(request.path_params["machine"], pairs, kind="protected machine", where=where)

    async def pause(request: Request) -> Response:
        said = await body(request, ByWhom)
        return await call(lambda: verbs.pause(machine_of(request), by=said.by))

    async def resume(request: Request) -> Response:
        said = await body(request, ByWhom)
        return await call(lambda: verbs.resume(machine_of(request), by=said.by))

    async def resync(request: Request) -> Response:
        said = await body(request, ResyncRequest)
        return await call(lambda: verbs.resync(machine_of(request), by=said.by, number=said.number))

    at = "/v1/protections/{machine}"
    return [
        Route(f"{at}/pause", pause, methods=["POST"]),  # ends something: not behind the gate
        Route(f"{at}/resume", gated("POST", resume, services.gate), methods=["POST"]),
        Route(f"{at}/resync", gated("POST", resync, services.gate), methods=["POST"]),
    ]


def key_proof_routes(services: Services, body: Body, call: Call) -> list[Route]:
    """body, call: how the control API reads and answers."""
    guard = services.recovery_key
    if guard is None:
        return []

    async def show(_request: Request) -> Response:
        return await call(guard.state)

    async def prove(request: Request) -> Response:
        said = await body(request, KeyProofRequest)

        def check() -> KeyState:
            guard.check(said.nonce, said.proof, said.key_file, by=said.by)
            return guard.state()

        return await call(check)

    return [
        Route("/v1/recovery-key", show, methods=["GET"]),
        Route("/v1/recovery-key/proof", prove, methods=["POST"]),
    ]
