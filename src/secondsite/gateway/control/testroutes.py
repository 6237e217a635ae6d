"""The control API's part about test failovers. What takes long is begun, and asked after."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from secondsite.gateway.control.services import Roles
from secondsite.gateway.messages.answers import Table, call, read_body
from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover
from secondsite.gateway.recovery.testfailover import plan_request


@dataclass(frozen=True)
class TestFailoverRoutes:
    """Their handlers."""

    roles: Roles

    def table(self) -> Table:
        """Method, path and handler."""
        return [
            ("GET", "/v1/machines/{machine}/test-failover", self.check_test_failover),
            ("POST", "/v1/machines/{machine}/test-failover", self.start_test_failover),
            ("DELETE", "/v1/machines/{machine}/test-failover", self.clean_up),
            ("GET", "/v1/test-failovers", self.list_test_failovers),
            ("GET", "/v1/operations/{id}", self.operation),
        ]

    async def check_test_failover(self, request: Request) -> Response:
        """What a test failover would do, asked with the fields of its request; nothing is made."""
        wanted = plan_request(request.query_params)
        return await call(
            lambda: self.roles.recovery().check_test_failover(self.roles.replica(request), wanted)
        )

    async def start_test_failover(self, request: Request) -> Response:
        """Begin a test failover; poll the operation."""
        body = await read_body(request, StartTestFailover)
        return await call(
            lambda: self.roles.recovery().start_test_failover(self.roles.replica(request), body), 202
        )

    async def clean_up(self, request: Request) -> Response:
        """Begin the clean-up of a test failover; poll the operation."""
        body = await read_body(request, CleanUp)
        return await call(lambda: self.roles.recovery().clean_up(self.roles.replica(request), body), 202)

    async def list_test_failovers(self, request: Request) -> Response:
        """Test failovers, past ones with their notes; `standing=MACHINE`: only the one that stands there."""
        standing = request.query_params.get("standing")
        return await call(lambda: self.roles.recovery().test_failovers(standing=standing))

    async def operation(self, request: Request) -> Response:
        """How far a long operation has come."""
        return await call(lambda: self.roles.recovery().test_failover(request.path_params["id"]))
