"""What the control API of one gateway is a face of: its services, and its roles, which may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.uploads import UploadFigures
from secondsite.fabrics.base import Fabric
from secondsite.gateway.adopt.service import Adoptions
from secondsite.gateway.common.enrolgate import Gate, open_gate
from secondsite.gateway.common.names import resolve
from secondsite.gateway.control.checkroutes import Checks
from secondsite.gateway.control.slots import EventReader, ProtectionService
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.keys.rotation import KeyRotation
from secondsite.gateway.recovery.deletion import Deletions
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.reverse.failingover import NO_FAILING_OVER, FailingOver
from secondsite.gateway.source.verbs import Verbs
from secondsite.gateway.target.holds import Holds
from secondsite.gateway.target.retention_report import RetentionReports
from secondsite.gateway.target.scrub import Scrubs
from secondsite.gateway.target.seedimport import SeedImports
from secondsite.gateway.target.signals import SignalsWatch
from secondsite.gateway.uplink.backups import ServerBackups
from secondsite.model.ids import MachineId


class RoleMissing(SecondsiteError):
    """This gateway was not configured for what was asked."""

    code = "gateway.role-missing"
    outcome = Outcome.REFUSED
    happened = "Gateway {name} has no {role}."
    cause = "Its configuration names none; the other site's gateway may be the one to ask."
    action = "Give that gateway's control socket with --gateway, or add the {role} to the configuration."


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
    checks: Checks | None = None
    server_backups: ServerBackups | None = None
    verbs: Verbs | None = None
    deletions: Deletions | None = None
    failing_over: FailingOver = NO_FAILING_OVER
    gate: Gate = open_gate
    uploads: Callable[[], Mapping[str, UploadFigures]] = dict  # by the peer's name, or the store's URL


@dataclass(frozen=True)
class Roles:
    """The services as handlers ask for them: each raises RoleMissing where this gateway has none."""

    services: ControlServices

    def missing(self, role: str) -> RoleMissing:
        """What to raise where a role is missing."""
        return RoleMissing(name=self.services.name, role=role)

    def fabric(self) -> Fabric:
        """The site's. Raises RoleMissing, as all of these."""
        if self.services.fabric is None:
            raise self.missing("fabric")
        return self.services.fabric

    def pools(self) -> list[Path]:
        """Where the storage pools of this site lie."""
        return [Path(pool.path) for pool in self.fabric().pools() if pool.active]

    def protections(self) -> ProtectionService:
        """What is protected."""
        if self.services.protections is None:
            raise self.missing("protection role (fabric and peers)")
        return self.services.protections

    def recovery(self) -> Recovery:
        """What is kept."""
        if self.services.recovery is None:
            raise self.missing("replica store")
        return self.services.recovery

    def signals(self) -> SignalsWatch:
        """What watches points for encryption."""
        if self.services.signals is None:
            raise self.missing("replica store")
        return self.services.signals

    def holds(self) -> Holds:
        """What people hold."""
        if self.services.holds is None:
            raise self.missing("replica store")
        return self.services.holds

    def reports(self) -> RetentionReports:
        """What retention costs."""
        if self.services.reports is None:
            raise self.missing("retention (a replica store and an address to listen on)")
        return self.services.reports

    def scrubs(self) -> Scrubs:
        """Verifications."""
        if self.services.scrubs is None:
            raise self.missing("replica store")
        return self.services.scrubs

    def seed_imports(self) -> SeedImports:
        """Media that are taken in."""
        if self.services.seed_imports is None:
            raise self.missing("replica store with a listener")
        return self.services.seed_imports

    def protected(self, request: Request) -> MachineId:
        """A request's machine, protected here. Raises NotFound."""
        pairs = [(status.machine, status.name) for status in self.protections().statuses()]
        return self.resolve(request, pairs, "protected machine")

    def replica(self, request: Request) -> MachineId:
        """A request's machine, kept here."""
        return self.resolve(request, self.recovery().machines(), "replica")

    def resolve(self, request: Request, candidates: Iterable[tuple[MachineId, str]], kind: str) -> MachineId:
        """A request's machine among these."""
        where = f"gateway {self.services.name}"
        return resolve(request.path_params["machine"], candidates, kind=kind, where=where)
