"""The typed client's part for failovers and held machines."""

from __future__ import annotations

from urllib.parse import quote

from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.messages.failover import (
    CancelTimer,
    ChangePoint,
    CommitFailover,
    Decide,
    FailoverPreview,
    FailoverStatus,
    HeldMachine,
    LookAtFailover,
    PlannedStop,
    PlannedStopStatus,
    RemoveFormer,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.messages.reverse import (
    CompleteMigration,
    RetireReplica,
    ReversePreview,
    ReverseRequest,
    ReverseStatus,
)
from secondsite.model.recovered import RecoveredSettings


class FailoverClient(GatewayClient):
    """One connection to one gateway; see `GatewayClient`."""

    def preview_failover(
        self,
        machine: str,
        *,
        point: str = "latest",
        network: str = "mapped",
        name: str | None = None,
        settings: RecoveredSettings | None = None,
    ) -> FailoverPreview:
        """What it would do and cost now."""
        asked = LookAtFailover(point=point, network=network, name=name, settings=settings)
        path = f"/v1/machines/{quote(machine, safe='')}/failover/check"
        return self._request("POST", path, FailoverPreview, asked)

    def start_failover(self, machine: str, request: StartFailover) -> FailoverStatus:
        """Begin; poll `failover` with the operation's number."""
        path = f"/v1/machines/{quote(machine, safe='')}/failover"
        return self._request("POST", path, FailoverStatus, request)

    def failovers(self) -> list[FailoverStatus]:
        """Standing and past ones."""
        return self._request("GET", "/v1/failovers", list[FailoverStatus])

    def failover(self, identity: str) -> FailoverStatus:
        """One of them."""
        return self._request("GET", f"/v1/failovers/{quote(identity, safe='')}", FailoverStatus)

    def change_point(self, identity: str, request: ChangePoint) -> FailoverStatus:
        """Run on another point; poll `failover`."""
        path = f"/v1/failovers/{quote(identity, safe='')}/change-point"
        return self._request("POST", path, FailoverStatus, request)

    def commit_failover(self, identity: str, request: CommitFailover) -> FailoverStatus:
        """Keep it; poll `failover`."""
        path = f"/v1/failovers/{quote(identity, safe='')}/commit"
        return self._request("POST", path, FailoverStatus, request)

    def roll_back(self, identity: str, request: RollBackFailover) -> FailoverStatus:
        """Undo it; poll `failover`."""
        path = f"/v1/failovers/{quote(identity, safe='')}/roll-back"
        return self._request("POST", path, FailoverStatus, request)

    def cancel_timer(self, identity: str, request: CancelTimer) -> FailoverStatus:
        """Leave its end to people."""
        path = f"/v1/failovers/{quote(identity, safe='')}/cancel-timer"
        return self._request("POST", path, FailoverStatus, request)

    def remove_former(self, identity: str, request: RemoveFormer) -> FailoverStatus:
        """Give up what it wrote on former points."""
        path = f"/v1/failovers/{quote(identity, safe='')}/remove-former"
        return self._request("POST", path, FailoverStatus, request)

    def held(self) -> list[HeldMachine]:
        """Sources that are held here, or were."""
        return self._request("GET", "/v1/held", list[HeldMachine])

    def release_held(self, machine: str, request: Decide) -> HeldMachine:
        """Let it run again."""
        return self._request("POST", f"/v1/held/{quote(machine, safe='')}/release", HeldMachine, request)

    def discard_held(self, machine: str, request: Decide) -> HeldMachine:
        """Shut it off for good."""
        return self._request("POST", f"/v1/held/{quote(machine, safe='')}/discard", HeldMachine, request)

    def retire_replica(self, identity: str, request: RetireReplica) -> FailoverStatus:
        """Begin; poll `failover` for what became of it (`kept`)."""
        path = f"/v1/failovers/{quote(identity, safe='')}/retire"
        return self._request("POST", path, FailoverStatus, request)

    def complete_migration(self, identity: str, request: CompleteMigration) -> FailoverStatus:
        """It stays for good."""
        path = f"/v1/failovers/{quote(identity, safe='')}/complete-migration"
        return self._request("POST", path, FailoverStatus, request)

    # protecting the other way round

    def preview_reverse(self, machine: str) -> ReversePreview:
        """What it would do, and what would be in its way."""
        return self._request("GET", f"/v1/held/{quote(machine, safe='')}/reverse/preview", ReversePreview)

    def reverse(self, machine: str, request: ReverseRequest) -> ReverseStatus:
        """Begin; poll `reversal`."""
        return self._request("POST", f"/v1/held/{quote(machine, safe='')}/reverse", ReverseStatus, request)

    def reversal(self, machine: str) -> ReverseStatus:
        """How far it has come."""
        return self._request("GET", f"/v1/held/{quote(machine, safe='')}/reverse", ReverseStatus)

    def take_back(self, machine: str) -> ReverseStatus:
        """Hold the machine as before; poll `reversal`."""
        return self._request("DELETE", f"/v1/held/{quote(machine, safe='')}/reverse", ReverseStatus)

    # stopping a source in order

    def stop_in_order(self, machine: str, request: PlannedStop) -> PlannedStopStatus:
        """Begin; poll `planned_stop`."""
        path = f"/v1/protections/{quote(machine, safe='')}/planned-stop"
        return self._request("POST", path, PlannedStopStatus, request)

    def planned_stop(self, machine: str) -> PlannedStopStatus:
        """How far it has come, or the last one."""
        path = f"/v1/protections/{quote(machine, safe='')}/planned-stop"
        return self._request("GET", path, PlannedStopStatus)

    def cancel_stop(self, machine: str) -> PlannedStopStatus:
        """Let it run again."""
        path = f"/v1/protections/{quote(machine, safe='')}/planned-stop"
        return self._request("DELETE", path, PlannedStopStatus)
