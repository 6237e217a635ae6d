"""The control API of one gateway: JSON over HTTP on a unix socket that only its owner can open.

Handlers parse, resolve the machine, call a service in a worker thread and encode the answer; nothing is
decided here. Every error is `SecondsiteError.as_dict()` under the status its outcome maps to. What takes long
(a test failover) answers 202 with a record whose id is polled at ``/v1/operations/{id}``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError, http_status
from secondsite.base.parse import JSON_ERRORS
from secondsite.fabrics.base import Fabric
from secondsite.gateway.adopt import Adoptions
from secondsite.gateway.adoptmessages import AdoptRequest
from secondsite.gateway.adoptroutes import AdoptionRoutes
from secondsite.gateway.enrolgate import Gate, gated, open_gate
from secondsite.gateway.holds import Holds
from secondsite.gateway.keycontrol import key_routes
from secondsite.gateway.keyrotation import KeyRotation
from secondsite.gateway.messages import (
    ChallengeReply,
    CleanUp,
    DismissRequest,
    EventEntry,
    ExportRequest,
    GatewayStatus,
    HoldRequest,
    Inventory,
    ProtectionStatus,
    ProtectRequest,
    ReplicaStatus,
    SeedExportRequest,
    SeedImportRequest,
    StartTestFailover,
)
from secondsite.gateway.names import resolve
from secondsite.gateway.recover import Recovery
from secondsite.gateway.recoverykey import RecoveryKeyGuard
from secondsite.gateway.retention_report import RetentionReports
from secondsite.gateway.scrub import Scrubs
from secondsite.gateway.seedimport import SeedImports
from secondsite.gateway.services import EventReader, ProtectionService
from secondsite.gateway.signals import SignalsWatch
from secondsite.gateway.verdicts import VerifyRequest
from secondsite.model.ids import MachineId

# The largest body is a protection with its mappings: some kilobytes. More is a mistake or an attack.
BODY_BYTES_MAX = 64 * 1024
EVENTS_MAX = 1000
POINT_SECONDS_MAX = 120.0

_ENCODER = msgspec.json.Encoder()
_T = TypeVar("_T")


class RoleMissing(SecondsiteError):
    """This gateway was not configured for what was asked."""

    code = "gateway.role-missing"
    outcome = Outcome.REFUSED
    happened = "Gateway {name} has no {role}."
    cause = "Its configuration names none; the other site's gateway may be the one to ask."
    action = "Give that gateway's control socket with --gateway, or add the {role} to the configuration."


class RouteUnknown(SecondsiteError):
    """No such resource or method."""

    code = "control.route-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "The gateway has nothing at {method} {path}."
    cause = "The command and the gateway are of different versions."
    action = "Compare `secondsite --version` at both ends and update the older one."


class InternalFailure(SecondsiteError):
    """A defect of ours, told without hiding it."""

    code = "control.internal"
    happened = "The gateway failed on this request: {kind}: {text}."
    cause = "A defect in secondsite; the gateway's log has the traceback."
    action = "Report it with the log; replication is not affected."


@dataclass(frozen=True)
class ControlServices:
    """What the API is a face of; a missing role is None."""

    name: str
    site: str
    clock: Clock
    events: EventReader
    fabric: Fabric | None = None
    protections: ProtectionService | None = None
    recovery_key: RecoveryKeyGuard | None = None
    recovery: Recovery | None = None
    holds: Holds | None = None
    signals: SignalsWatch | None = None
    reports: RetentionReports | None = None
    scrubs: Scrubs | None = None
    seed_imports: SeedImports | None = None
    key_rotation: KeyRotation | None = None
    adoptions: Adoptions | None = None
    gate: Gate = open_gate


def error_response(error: SecondsiteError) -> Response:
    """The error as it goes out."""
    return _json(error.as_dict(), http_status(error))


def _json(value: object, status: int = 200) -> Response:
    return Response(_ENCODER.encode(value), status, media_type="application/json")


async def _body(request: Request, kind: type[_T]) -> _T:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise InvalidInput(what="the request body", why=f"it is larger than {BODY_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except JSON_ERRORS as error:
        raise InvalidInput(what="the request body", why=str(error)) from None


def _integer(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise InvalidInput(what=f"the parameter {name}", why="it is not a whole number")
    return int(text)


class ControlApi:
    """The handlers. One instance a gateway; holds no state of its own."""

    def __init__(self, services: ControlServices) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Path, method and handler: the whole API at a glance."""
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/v1/status", self.status),
            ("GET", "/v1/inventory", self.inventory),
            ("GET", "/v1/events", self.events),
            ("GET", "/v1/challenge", self.challenge),
            ("GET", "/v1/protections/{machine}", self.protection),
            ("PUT", "/v1/protections/{machine}", self.protect),
            ("DELETE", "/v1/protections/{machine}", self.unprotect),
            ("POST", "/v1/protections/{machine}/point", self.take_point),
            ("GET", "/v1/protections/{machine}/deep-verify", self.deep_verification),
            ("POST", "/v1/protections/{machine}/deep-verify", self.deep_verify),
            ("GET", "/v1/protections/{machine}/seed-export", self.seed_export),
            ("POST", "/v1/protections/{machine}/seed-export", self.export_seed),
            ("DELETE", "/v1/protections/{machine}/seed-export", self.cancel_seed),
            ("GET", "/v1/seed-import", self.seed_import),
            ("POST", "/v1/seed-import", self.import_seed),
            ("GET", "/v1/machines/{machine}/points", self.points),
            ("GET", "/v1/machines/{machine}/retention", self.retention),
            ("POST", "/v1/machines/{machine}/dismissal", self.dismiss),
            ("POST", "/v1/machines/{machine}/holds", self.hold),
            ("DELETE", "/v1/machines/{machine}/holds/{hold}", self.release),
            ("DELETE", "/v1/machines/{machine}/lost-holds", self.release_lost),
            ("GET", "/v1/machines/{machine}/exports", self.exports),
            ("POST", "/v1/machines/{machine}/exports", self.start_export),
            ("DELETE", "/v1/machines/{machine}/exports/{id}", self.end_export),
            ("POST", "/v1/machines/{machine}/test-failover", self.start_test_failover),
            ("DELETE", "/v1/machines/{machine}/test-failover", self.clean_up),
            ("GET", "/v1/machines/{machine}/verification", self.verification),
            ("POST", "/v1/machines/{machine}/verification", self.verify),
            ("DELETE", "/v1/machines/{machine}/verification", self.cancel_verification),
            ("GET", "/v1/test-failovers", self.list_test_failovers),
            ("GET", "/v1/operations/{id}", self.operation),
        ]
        services, read = self._services, lambda request: _body(request, AdoptRequest)
        table += AdoptionRoutes(
            services.name, services.adoptions, self._missing, self._recovery, read, _call
        ).table()
        return [Route(p, gated(m, handler, services.gate), methods=[m]) for m, p, handler in table]

    # roles

    def _missing(self, role: str) -> RoleMissing:
        return RoleMissing(name=self._services.name, role=role)

    def _fabric(self) -> Fabric:
        if self._services.fabric is None:
            raise self._missing("fabric")
        return self._services.fabric

    def _protections(self) -> ProtectionService:
        if self._services.protections is None:
            raise self._missing("protection role (fabric and peers)")
        return self._services.protections

    def _recovery(self) -> Recovery:
        if self._services.recovery is None:
            raise self._missing("replica store")
        return self._services.recovery

    def _signals(self) -> SignalsWatch:
        if self._services.signals is None:
            raise self._missing("replica store")
        return self._services.signals

    def _holds(self) -> Holds:
        if self._services.holds is None:
            raise self._missing("replica store")
        return self._services.holds

    def _reports(self) -> RetentionReports:
        if self._services.reports is None:
            raise self._missing("retention (a replica store and an address to listen on)")
        return self._services.reports

    def _scrubs(self) -> Scrubs:
        if self._services.scrubs is None:
            raise self._missing("replica store")
        return self._services.scrubs

    def _seed_imports(self) -> SeedImports:
        if self._services.seed_imports is None:
            raise self._missing("replica store with a listener")
        return self._services.seed_imports

    def _resolve(self, text: str, candidates: Iterable[tuple[MachineId, str]], kind: str) -> MachineId:
        return resolve(text, candidates, kind=kind, where=f"gateway {self._services.name}")

    def _protected(self, request: Request) -> MachineId:
        pairs = [(status.machine, status.name) for status in self._protections().statuses()]
        return self._resolve(request.path_params["machine"], pairs, "protected machine")

    def _replica(self, request: Request) -> MachineId:
        return self._resolve(request.path_params["machine"], self._recovery().machines(), "replica")

    # the gateway

    async def status(self, _request: Request) -> Response:
        """Everything at once."""
        return await _call(self._status)

    def _status(self) -> GatewayStatus:
        services = self._services
        recovery = services.recovery
        return GatewayStatus(
            name=services.name,
            site=services.site,
            version=__version__,
            at=services.clock.utc().isoformat(),
            protections=tuple(services.protections.statuses()) if services.protections else (),
            replicas=tuple(self._replicas(recovery)) if recovery else (),
            test_failovers=tuple(recovery.test_failovers()) if recovery else (),
        )

    def _replicas(self, recovery: Recovery) -> list[ReplicaStatus]:
        scrubs = self._services.scrubs
        found = recovery.replicas()
        if scrubs is None:
            return found
        return [
            msgspec.structs.replace(replica, verification=scrubs.summary(replica.machine))
            for replica in found
        ]

    async def inventory(self, _request: Request) -> Response:
        """Hosts, machines, networks and pools of the site."""
        return await _call(self._inventory)

    def _inventory(self) -> Inventory:
        fabric = self._fabric()
        return Inventory(
            hosts=tuple(fabric.hosts()),
            machines=tuple(fabric.machines()),
            networks=tuple(fabric.networks()),
            pools=tuple(fabric.pools()),
        )

    async def events(self, request: Request) -> Response:
        """Events after a number, oldest first."""
        after = _integer(request, "after", 0)
        limit = min(_integer(request, "limit", EVENTS_MAX), EVENTS_MAX)
        found = await run_in_threadpool(self._services.events.since, after, limit)
        return _json([EventEntry(number=number, event=event) for number, event in found])

    # protections

    async def challenge(self, _request: Request) -> Response:
        """A question for the holder of the recovery key."""
        return await _call(self._challenge)

    def _challenge(self) -> ChallengeReply:
        if self._services.recovery_key is None:
            raise self._missing("vault key")
        return self._services.recovery_key.challenge()

    async def protection(self, request: Request) -> Response:
        """One protection."""

        def find() -> ProtectionStatus:
            machine = self._protected(request)
            return next(status for status in self._protections().statuses() if status.machine == machine)

        return await _call(find)

    async def protect(self, request: Request) -> Response:
        """Check the proof of the recovery key, then protect."""
        body = await _body(request, ProtectRequest)

        def run() -> ProtectionStatus:
            service = self._protections()
            pairs = [(machine.id, machine.name) for machine in self._fabric().machines()]
            machine = self._resolve(request.path_params["machine"], pairs, "machine")
            if self._services.recovery_key is None:
                raise self._missing("vault key")
            self._services.recovery_key.check(body.nonce, body.proof, body.key_file)
            return service.protect(machine, body)

        return await _call(run)

    async def unprotect(self, request: Request) -> Response:
        """End a protection."""
        return await _call(lambda: self._protections().unprotect(self._protected(request)))

    async def take_point(self, request: Request) -> Response:
        """An application-consistent point, now."""
        return await _call(
            lambda: self._protections().take_point(self._protected(request), seconds_max=POINT_SECONDS_MAX)
        )

    async def deep_verify(self, request: Request) -> Response:
        """Begin a deep verification; ask with GET how far it is."""
        return await _call(lambda: self._protections().deep_verify(self._protected(request)), 202)

    async def deep_verification(self, request: Request) -> Response:
        """The deep verification that runs, or the last one."""
        return await _call(lambda: self._protections().deep_verification(self._protected(request)))

    # offline seeding

    async def export_seed(self, request: Request) -> Response:
        """Begin to write the first copy to media; ask with GET how far it is."""
        body = await _body(request, SeedExportRequest)
        return await _call(lambda: self._protections().export_seed(self._protected(request), body), 202)

    async def seed_export(self, request: Request) -> Response:
        """Where the seed of a machine stands."""
        return await _call(lambda: self._protections().seed_export(self._protected(request)))

    async def cancel_seed(self, request: Request) -> Response:
        """No seed after all."""
        return await _call(lambda: self._protections().cancel_seed(self._protected(request)))

    async def import_seed(self, request: Request) -> Response:
        """Begin to take what is on media into the store; ask with GET how far it is."""
        body = await _body(request, SeedImportRequest)
        return await _call(lambda: self._seed_imports().start(Path(body.directory)), 202)

    async def seed_import(self, _request: Request) -> Response:
        """The import that runs, or the last one."""
        return await _call(lambda: self._seed_imports().show())

    # replicas

    async def points(self, request: Request) -> Response:
        """Recovery points, oldest first."""
        return await _call(lambda: self._recovery().points(self._replica(request)))

    async def retention(self, request: Request) -> Response:
        """What is kept of a machine and what that costs, also by another policy."""
        policy = request.query_params.get("policy")
        return await _call(lambda: self._reports().report(self._replica(request), policy))

    async def hold(self, request: Request) -> Response:
        """Keep a point until a time."""
        body = await _body(request, HoldRequest)
        return await _call(lambda: self._holds().hold(self._replica(request), body), 201)

    async def release(self, request: Request) -> Response:
        """Let go of what is held by a name, or of a point."""
        hold = request.path_params["hold"]
        return await _call(lambda: self._holds().release(self._replica(request), hold))

    async def release_lost(self, request: Request) -> Response:
        """Let go of what exports of a lost gateway hold."""
        return await _call(lambda: self._holds().release_lost(self._replica(request)))

    async def dismiss(self, request: Request) -> Response:
        """The points in doubt are sound."""
        body = await _body(request, DismissRequest)

        def work() -> object:
            return self._signals().dismiss(self._recovery().journal(self._replica(request)), body)

        return await _call(work)

    async def exports(self, request: Request) -> Response:
        """What of the machine is served now."""
        return await _call(lambda: self._recovery().exports(self._replica(request)))

    async def start_export(self, request: Request) -> Response:
        """Serve a point's disks until ended."""
        body = await _body(request, ExportRequest)
        return await _call(lambda: self._recovery().start_export(self._replica(request), body), 201)

    async def end_export(self, request: Request) -> Response:
        """Stop serving and let go of the point."""
        export = request.path_params["id"]
        return await _call(lambda: self._recovery().end_export(self._replica(request), export))

    async def start_test_failover(self, request: Request) -> Response:
        """Begin a test failover; poll the operation."""
        body = await _body(request, StartTestFailover)
        return await _call(lambda: self._recovery().start_test_failover(self._replica(request), body), 202)

    async def clean_up(self, request: Request) -> Response:
        """Begin the clean-up of a test failover; poll the operation."""
        body = await _body(request, CleanUp)
        return await _call(lambda: self._recovery().clean_up(self._replica(request), body), 202)

    async def verify(self, request: Request) -> Response:
        """Begin to verify a replica; ask with GET how far it is."""
        body = await _body(request, VerifyRequest)
        return await _call(lambda: self._scrubs().request(self._replica(request), body), 202)

    async def verification(self, request: Request) -> Response:
        """The verification that waits or runs, or the last one."""
        return await _call(lambda: self._scrubs().status(self._replica(request)))

    async def cancel_verification(self, request: Request) -> Response:
        """Stop it."""
        return await _call(lambda: self._scrubs().cancel(self._replica(request)))

    async def list_test_failovers(self, _request: Request) -> Response:
        """Test failovers, past ones with their notes."""
        return await _call(lambda: self._recovery().test_failovers())

    async def operation(self, request: Request) -> Response:
        """How far a long operation has come."""
        return await _call(lambda: self._recovery().test_failover(request.path_params["id"]))


async def _call(function: Callable[[], object], status: int = 200) -> Response:
    return _json(await run_in_threadpool(function), status)


def build_app(services: ControlServices, on_failure: Callable[[BaseException], None]) -> Starlette:
    """The API as an ASGI application; `on_failure` is told of defects (with their traceback)."""

    async def known(request: Request, error: Exception) -> Response:  # noqa: ARG001
        assert isinstance(error, SecondsiteError)
        return error_response(error)

    async def unknown_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        wrong = RouteUnknown(method=request.method, path=request.url.path)
        return _json(wrong.as_dict(), error.status_code)

    async def defect(request: Request, error: Exception) -> Response:  # noqa: ARG001
        on_failure(error)
        return error_response(InternalFailure(kind=type(error).__name__, text=str(error)[:500]))

    app = Starlette(
        routes=[*ControlApi(services).routes(), *key_routes(services, _body, _call)],
        exception_handlers={SecondsiteError: known, HTTPException: unknown_route, Exception: defect},
    )
    app.router.redirect_slashes = False
    return app
