"""The control API's part about replicas: their points, what keeps them, what is served and verified."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from secondsite.gateway.control.services import Roles
from secondsite.gateway.messages.answers import Table, call, integer, read_body
from secondsite.gateway.messages.gateway import DismissRequest, ExportRequest, HoldRequest
from secondsite.gateway.messages.verdicts import VerifyRequest


@dataclass(frozen=True)
class ReplicaRoutes:
    """Their handlers."""

    roles: Roles

    def table(self) -> Table:
        """Method, path and handler."""
        return [
            ("GET", "/v1/machines/{machine}/points", self.points),
            ("GET", "/v1/machines/{machine}/retention", self.retention),
            ("POST", "/v1/machines/{machine}/dismissal", self.dismiss),
            ("POST", "/v1/machines/{machine}/holds", self.hold),
            ("DELETE", "/v1/machines/{machine}/holds/{hold}", self.release),
            ("DELETE", "/v1/machines/{machine}/lost-holds", self.release_lost),
            ("GET", "/v1/machines/{machine}/exports", self.exports),
            ("POST", "/v1/machines/{machine}/exports", self.start_export),
            ("DELETE", "/v1/machines/{machine}/exports/{id}", self.end_export),
            ("GET", "/v1/machines/{machine}/verification", self.verification),
            ("POST", "/v1/machines/{machine}/verification", self.verify),
            ("DELETE", "/v1/machines/{machine}/verification", self.cancel_verification),
        ]

    async def points(self, request: Request) -> Response:
        """Recovery points, oldest first; `newest`: only so many, `below`: of those with lower numbers."""
        newest, below = (integer(request, name, 0) or None for name in ("newest", "below"))
        return await call(
            lambda: self.roles.recovery().points(self.roles.replica(request), newest=newest, below=below)
        )

    async def retention(self, request: Request) -> Response:
        """What is kept of a machine and what that costs, also by another policy."""
        policy = request.query_params.get("policy")
        return await call(lambda: self.roles.reports().report(self.roles.replica(request), policy))

    async def hold(self, request: Request) -> Response:
        """Keep a point until a time."""
        body = await read_body(request, HoldRequest)
        return await call(lambda: self.roles.holds().hold(self.roles.replica(request), body), 201)

    async def release(self, request: Request) -> Response:
        """Let go of what is held by a name, or of a point."""
        hold = request.path_params["hold"]
        return await call(lambda: self.roles.holds().release(self.roles.replica(request), hold))

    async def release_lost(self, request: Request) -> Response:
        """Let go of what exports of a lost gateway hold."""
        return await call(lambda: self.roles.holds().release_lost(self.roles.replica(request)))

    async def dismiss(self, request: Request) -> Response:
        """The points in doubt are sound."""
        body = await read_body(request, DismissRequest)

        def work() -> object:
            return self.roles.signals().dismiss(
                self.roles.recovery().journal(self.roles.replica(request)), body
            )

        return await call(work)

    async def exports(self, request: Request) -> Response:
        """What of the machine is served now."""
        return await call(lambda: self.roles.recovery().exports(self.roles.replica(request)))

    async def start_export(self, request: Request) -> Response:
        """Serve a point's disks until ended."""
        body = await read_body(request, ExportRequest)
        return await call(lambda: self.roles.recovery().start_export(self.roles.replica(request), body), 201)

    async def end_export(self, request: Request) -> Response:
        """Stop serving and let go of the point."""
        export = request.path_params["id"]
        return await call(lambda: self.roles.recovery().end_export(self.roles.replica(request), export))

    async def verify(self, request: Request) -> Response:
        """Begin to verify a replica; ask with GET how far it is."""
        body = await read_body(request, VerifyRequest)
        return await call(lambda: self.roles.scrubs().request(self.roles.replica(request), body), 202)

    async def verification(self, request: Request) -> Response:
        """The verification that waits or runs, or the last one."""
        return await call(lambda: self.roles.scrubs().status(self.roles.replica(request)))

    async def cancel_verification(self, request: Request) -> Response:
        """Stop it."""
        return await call(lambda: self.roles.scrubs().cancel(self.roles.replica(request)))
