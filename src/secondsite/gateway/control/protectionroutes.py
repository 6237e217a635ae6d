"""The control API's part about what this gateway protects, and the seeds of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from secondsite.gateway.control.services import Roles
from secondsite.gateway.messages.answers import Table, call, read_body
from secondsite.gateway.messages.gateway import ChallengeReply, ProtectionStatus, ProtectRequest
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedImportRequest

POINT_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class ProtectionRoutes:
    """Their handlers."""

    roles: Roles

    def table(self) -> Table:
        """Method, path and handler."""
        return [
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
        ]

    async def challenge(self, _request: Request) -> Response:
        """A question for the holder of the recovery key."""
        return await call(self._challenge)

    def _challenge(self) -> ChallengeReply:
        if self.roles.services.recovery_key is None:
            raise self.roles.missing("vault key")
        return self.roles.services.recovery_key.challenge()

    async def protection(self, request: Request) -> Response:
        """One protection."""

        def find() -> ProtectionStatus:
            machine = self.roles.protected(request)
            return next(status for status in self.roles.protections().statuses() if status.machine == machine)

        return await call(find)

    async def protect(self, request: Request) -> Response:
        """Check the proof of the recovery key, then protect."""
        body = await read_body(request, ProtectRequest)

        def run() -> ProtectionStatus:
            service = self.roles.protections()
            pairs = [(machine.id, machine.name) for machine in self.roles.fabric().machines()]
            machine = self.roles.resolve(request, pairs, "machine")
            if self.roles.services.recovery_key is None:
                raise self.roles.missing("vault key")
            self.roles.services.recovery_key.check(body.nonce, body.proof, body.key_file)
            return service.protect(machine, body)

        return await call(run)

    async def unprotect(self, request: Request) -> Response:
        """End a protection."""
        return await call(lambda: self.roles.protections().unprotect(self.roles.protected(request)))

    async def take_point(self, request: Request) -> Response:
        """An application-consistent point, now."""
        return await call(
            lambda: self.roles.protections().take_point(
                self.roles.protected(request), seconds_max=POINT_SECONDS_MAX
            )
        )

    async def deep_verify(self, request: Request) -> Response:
        """Begin a deep verification; ask with GET how far it is."""
        return await call(lambda: self.roles.protections().deep_verify(self.roles.protected(request)), 202)

    async def deep_verification(self, request: Request) -> Response:
        """The deep verification that runs, or the last one."""
        return await call(lambda: self.roles.protections().deep_verification(self.roles.protected(request)))

    # offline seeding

    async def export_seed(self, request: Request) -> Response:
        """Begin to write the first copy to media; ask with GET how far it is."""
        body = await read_body(request, SeedExportRequest)
        return await call(
            lambda: self.roles.protections().export_seed(self.roles.protected(request), body), 202
        )

    async def seed_export(self, request: Request) -> Response:
        """Where the seed of a machine stands."""
        return await call(lambda: self.roles.protections().seed_export(self.roles.protected(request)))

    async def cancel_seed(self, request: Request) -> Response:
        """No seed after all."""
        return await call(lambda: self.roles.protections().cancel_seed(self.roles.protected(request)))

    async def import_seed(self, request: Request) -> Response:
        """Begin to take what is on media into the store; ask with GET how far it is."""
        body = await read_body(request, SeedImportRequest)
        return await call(lambda: self.roles.seed_imports().start(Path(body.directory)), 202)

    async def seed_import(self, _request: Request) -> Response:
        """The import that runs, or the last one."""
        return await call(lambda: self.roles.seed_imports().show())
