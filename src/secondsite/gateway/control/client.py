"""A typed client of a gateway's control API.

`http.client` over the unix socket, not httpx: a command must start fast, and importing httpx alone took
250 ms where this takes 20. Every error the gateway answers with becomes a `RemoteError` with its sentences.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.base.kept import drop_if_closed
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.messages.adoption import AdoptionStatus, AdoptRequest
from secondsite.gateway.messages.gateway import (
    ChallengeReply,
    DeepVerification,
    DismissRequest,
    Doubt,
    EventEntry,
    ExportRequest,
    ExportStatus,
    GatewayStatus,
    HeldPoint,
    HoldRequest,
    Inventory,
    PointSummary,
    PointTaken,
    ProtectionStatus,
    ProtectRequest,
)
from secondsite.gateway.messages.items import ByWhom, Deletion, KeyProofRequest, KeyState, ResyncRequest
from secondsite.gateway.messages.keys import DataKeysRenewed, FinishRotation, KeyStatus, RenewDataKeys
from secondsite.gateway.messages.retention import RetentionReport
from secondsite.gateway.messages.seeding import (
    SeedExportRequest,
    SeedExportStatus,
    SeedImportRequest,
    SeedImportStatus,
)
from secondsite.gateway.messages.testfailover import (
    CleanUp,
    InjectionStatus,
    StartTestFailover,
    TestFailoverStatus,
)
from secondsite.gateway.messages.unixconnection import UnixConnection
from secondsite.gateway.messages.verdicts import VerificationStatus, VerifyRequest

_T = TypeVar("_T")
# A status with thousands of points stays below a few megabytes; more is not an answer of ours.
ANSWER_BYTES_MAX = 64 * 1024 * 1024


class GatewayUnreachable(SecondsiteError):
    """Nobody answers on the control socket."""

    code = "gateway.unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "No gateway answers at {socket}: {why}."
    cause = "It is not running, or it listens on another socket, or this user may not open the socket."
    action = (
        "Start it with `secondsite gateway --config FILE`, or name its socket with --gateway or "
        "SECONDSITE_GATEWAY; the socket belongs to the user the gateway runs as. "
        "If its host is gone: RUNBOOK.md, gateway lost."
    )


class GatewayAnswerUnknown(SecondsiteError):
    """The answer does not parse."""

    code = "gateway.answer-unknown"
    happened = "The gateway at {socket} answered in a way this command does not understand: {why}."
    cause = "The command and the gateway are of different versions."
    action = "Compare `secondsite --version` at both ends and update the older one."


class GatewayClient:
    """One connection to one gateway; not thread-safe. Methods raise RemoteError or GatewayUnreachable."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._connection = UnixConnection(socket_path)

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, method: str, path: str, kind: type[_T], body: object = None) -> _T:
        data = b"" if body is None else msgspec.json.encode(body)
        drop_if_closed(self._connection)
        try:
            self._connection.request(method, path, data, {"content-type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise GatewayUnreachable(socket=self._path, why=why) from None
        try:
            if answer.status >= 400:
                raise RemoteError(msgspec.json.decode(text, type=dict[str, Any]))
            return msgspec.json.decode(text, type=kind)
        except JSON_ERRORS as error:
            raise GatewayAnswerUnknown(socket=self._path, why=error) from None

    # the gateway

    def status(self) -> GatewayStatus:
        """Everything the gateway knows of itself."""
        return self._request("GET", "/v1/status", GatewayStatus)

    def key(self) -> KeyStatus:
        """The gateway's vault key, and where its rotation stands."""
        return self._request("GET", "/v1/key", KeyStatus)

    def renew_data_keys(self, machine: str, request: RenewDataKeys) -> DataKeysRenewed:
        """Seal what is captured from now on with new data keys."""
        path = f"/v1/protections/{quote(machine, safe='')}/data-keys"
        return self._request("POST", path, DataKeysRenewed, request)

    def finish_rotation(self, request: FinishRotation) -> KeyStatus:
        """Let go of the old key; poll `key`."""
        return self._request("POST", "/v1/key/rotation", KeyStatus, request)

    def inventory(self) -> Inventory:
        """Hosts, machines, networks and pools."""
        return self._request("GET", "/v1/inventory", Inventory)

    def events(self, *, after: int = 0, limit: int = 1000) -> list[EventEntry]:
        """Events after a number, oldest first."""
        return self._request("GET", f"/v1/events?after={after}&limit={limit}", list[EventEntry])

    # the recovery key

    def recovery_key(self) -> KeyState:
        """Whether it was proved to be kept elsewhere."""
        return self._request("GET", "/v1/recovery-key", KeyState)

    def prove_recovery_key(self, request: KeyProofRequest) -> KeyState:
        """Prove it, once for each key."""
        return self._request("POST", "/v1/recovery-key/proof", KeyState, request)

    # protections

    def challenge(self) -> ChallengeReply:
        """The question to answer with the recovery key."""
        return self._request("GET", "/v1/challenge", ChallengeReply)

    def protection(self, machine: str) -> ProtectionStatus:
        """One protection, by the machine's name or id."""
        return self._request("GET", f"/v1/protections/{quote(machine, safe='')}", ProtectionStatus)

    def protect(self, machine: str, request: ProtectRequest) -> ProtectionStatus:
        """Protect, or change how."""
        return self._request("PUT", f"/v1/protections/{quote(machine, safe='')}", ProtectionStatus, request)

    def unprotect(self, machine: str) -> None:
        """End a protection."""
        self._request("DELETE", f"/v1/protections/{quote(machine, safe='')}", type(None))

    def pause(self, machine: str, *, by: str) -> ProtectionStatus:
        """Capture nothing until `resume`."""
        path = f"/v1/protections/{quote(machine, safe='')}/pause"
        return self._request("POST", path, ProtectionStatus, ByWhom(by=by))

    def resume(self, machine: str, *, by: str) -> ProtectionStatus:
        """Capture again."""
        path = f"/v1/protections/{quote(machine, safe='')}/resume"
        return self._request("POST", path, ProtectionStatus, ByWhom(by=by))

    def resync(self, machine: str, request: ResyncRequest) -> ProtectionStatus:
        """Compare everything with the target; done once `resynced` has come to `resync`."""
        path = f"/v1/protections/{quote(machine, safe='')}/resync"
        return self._request("POST", path, ProtectionStatus, request)

    def take_point(self, machine: str) -> PointTaken:
        """An application-consistent point, now."""
        return self._request("POST", f"/v1/protections/{quote(machine, safe='')}/point", PointTaken)

    def deep_verify(self, machine: str) -> DeepVerification:
        """Begin to compare everything with the source; poll `deep_verification`."""
        path = f"/v1/protections/{quote(machine, safe='')}/deep-verify"
        return self._request("POST", path, DeepVerification)

    def deep_verification(self, machine: str) -> DeepVerification:
        """The one that runs, or the last one."""
        return self._request(
            "GET", f"/v1/protections/{quote(machine, safe='')}/deep-verify", DeepVerification
        )

    # offline seeding

    def export_seed(self, machine: str, request: SeedExportRequest) -> SeedExportStatus:
        """Begin to write the first copy to media; poll `seed_export`."""
        path = f"/v1/protections/{quote(machine, safe='')}/seed-export"
        return self._request("POST", path, SeedExportStatus, request)

    def seed_export(self, machine: str) -> SeedExportStatus:
        """Where the seed of a machine stands."""
        return self._request(
            "GET", f"/v1/protections/{quote(machine, safe='')}/seed-export", SeedExportStatus
        )

    def cancel_seed(self, machine: str) -> SeedExportStatus:
        """No seed after all."""
        return self._request(
            "DELETE", f"/v1/protections/{quote(machine, safe='')}/seed-export", SeedExportStatus
        )

    def import_seed(self, request: SeedImportRequest) -> SeedImportStatus:
        """Begin to take what is on media into the store; poll `seed_import`."""
        return self._request("POST", "/v1/seed-import", SeedImportStatus, request)

    def seed_import(self) -> SeedImportStatus:
        """The import that runs, or the last one."""
        return self._request("GET", "/v1/seed-import", SeedImportStatus)

    # adopting an existing copy

    def adopt(self, machine: str, request: AdoptRequest) -> AdoptionStatus:
        """Begin a machine's first copy with images that are there; poll `adoption`."""
        return self._request("POST", f"/v1/adoptions/{quote(machine, safe='')}", AdoptionStatus, request)

    def adoption(self, machine: str) -> AdoptionStatus:
        """A machine's adoption, or its last one."""
        return self._request("GET", f"/v1/adoptions/{quote(machine, safe='')}", AdoptionStatus)

    def adoptions(self) -> list[AdoptionStatus]:
        """All of them."""
        return self._request("GET", "/v1/adoptions", list[AdoptionStatus])

    def cancel_adoption(self, machine: str) -> AdoptionStatus:
        """Give it up."""
        return self._request("DELETE", f"/v1/adoptions/{quote(machine, safe='')}", AdoptionStatus)

    # replicas

    def points(self, machine: str) -> list[PointSummary]:
        """Recovery points, oldest first."""
        return self._request("GET", f"/v1/machines/{quote(machine, safe='')}/points", list[PointSummary])

    def retention(self, machine: str, policy: str | None = None) -> RetentionReport:
        """What is kept of a machine and what that costs; with `policy`, what that one would do."""
        asked = f"?policy={quote(policy, safe='')}" if policy is not None else ""
        path = f"/v1/machines/{quote(machine, safe='')}/retention{asked}"
        return self._request("GET", path, RetentionReport)

    def hold(self, machine: str, request: HoldRequest) -> HeldPoint:
        """Keep a point until a time."""
        return self._request("POST", f"/v1/machines/{quote(machine, safe='')}/holds", HeldPoint, request)

    def release(self, machine: str, hold: str) -> list[HeldPoint]:
        """Let go of a hold by its name, or of a point's by its number."""
        path = f"/v1/machines/{quote(machine, safe='')}/holds/{quote(hold, safe='')}"
        return self._request("DELETE", path, list[HeldPoint])

    def release_lost(self, machine: str) -> list[HeldPoint]:
        """Let go of points held for exports the gateway does not know."""
        return self._request("DELETE", f"/v1/machines/{quote(machine, safe='')}/lost-holds", list[HeldPoint])

    def dismiss(self, machine: str, request: DismissRequest) -> Doubt:
        """The points in doubt are sound; what was in doubt."""
        return self._request("POST", f"/v1/machines/{quote(machine, safe='')}/dismissal", Doubt, request)

    def delete_replica(self, machine: str, *, confirm: str, by: str) -> Deletion:
        """Delete all that is kept of a machine; poll `deletions` until it is not among them."""
        asked = urlencode({"confirm": confirm, "by": by})
        return self._request("DELETE", f"/v1/machines/{quote(machine, safe='')}/replica?{asked}", Deletion)

    def deletions(self) -> list[Deletion]:
        """Replicas that are being deleted."""
        return self._request("GET", "/v1/deletions", list[Deletion])

    def exports(self, machine: str) -> list[ExportStatus]:
        """What is served now."""
        return self._request("GET", f"/v1/machines/{quote(machine, safe='')}/exports", list[ExportStatus])

    def start_export(self, machine: str, request: ExportRequest) -> ExportStatus:
        """Serve a point."""
        return self._request("POST", f"/v1/machines/{quote(machine, safe='')}/exports", ExportStatus, request)

    def end_export(self, machine: str, export: str) -> None:
        """Stop serving a point."""
        self._request("DELETE", f"/v1/machines/{quote(machine, safe='')}/exports/{export}", type(None))

    def start_test_failover(self, machine: str, request: StartTestFailover) -> TestFailoverStatus:
        """Begin; poll `operation` with the id."""
        return self._request(
            "POST", f"/v1/machines/{quote(machine, safe='')}/test-failover", TestFailoverStatus, request
        )

    def clean_up(self, machine: str, request: CleanUp) -> TestFailoverStatus:
        """Begin a clean-up; poll `operation` with the id."""
        return self._request(
            "DELETE", f"/v1/machines/{quote(machine, safe='')}/test-failover", TestFailoverStatus, request
        )

    def verify(self, machine: str, request: VerifyRequest) -> VerificationStatus:
        """Begin to verify a replica; poll `verification`."""
        return self._request("POST", _verification(machine), VerificationStatus, request)

    def verification(self, machine: str) -> VerificationStatus:
        """The verification that waits or runs, or the last one."""
        return self._request("GET", _verification(machine), VerificationStatus)

    def cancel_verification(self, machine: str) -> None:
        """Stop it; none is fine."""
        self._request("DELETE", _verification(machine), type(None))

    def test_failovers(self) -> list[TestFailoverStatus]:
        """Running and past ones."""
        return self._request("GET", "/v1/test-failovers", list[TestFailoverStatus])

    def operation(self, identity: str) -> TestFailoverStatus:
        """How far a test failover or its clean-up has come."""
        return self._request("GET", f"/v1/operations/{quote(identity, safe='')}", TestFailoverStatus)

    def apply_settings(self, identity: str) -> InjectionStatus:
        """Bring what was set into the guest of a failover or a test failover once more."""
        path = f"/v1/operations/{quote(identity, safe='')}/settings"
        return self._request("POST", path, InjectionStatus)


def _verification(machine: str) -> str:
    return f"/v1/machines/{quote(machine, safe='')}/verification"
