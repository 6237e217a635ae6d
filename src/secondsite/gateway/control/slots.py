"""What the control API is a face of, where more than one thing can stand behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from secondsite.gateway.messages.gateway import DeepVerification, PointTaken, ProtectionStatus, ProtectRequest
from secondsite.gateway.messages.keys import DataKeysRenewed
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportStatus
from secondsite.model.events import Event
from secondsite.model.ids import DiskId, MachineId


class ProtectionService(Protocol):
    """The source side: what this gateway protects. Calls may block; thread-safe."""

    def statuses(self) -> Sequence[ProtectionStatus]:
        """Every protection as of now."""

    def protect(self, machine: MachineId, request: ProtectRequest) -> ProtectionStatus:
        """Take it under protection or change how; the key was proved already. Idempotent."""

    def unprotect(self, machine: MachineId) -> None:
        """End it and remove everything of ours from the machine and its host. Points stay at the target."""

    def take_point(self, machine: MachineId, *, seconds_max: float) -> PointTaken:
        """Make an application-consistent point now and wait until it is committed."""

    def renew_data_keys(self, machine: MachineId, disks: Sequence[DiskId] | None) -> DataKeysRenewed:
        """Seal with new data keys from now on. disks: those alone. Raises NotProtected, InvalidInput."""

    def deep_verify(self, machine: MachineId) -> DeepVerification:
        """Begin to compare everything with the points it becomes. Raises VerifyRunning."""

    def deep_verification(self, machine: MachineId) -> DeepVerification:
        """How far that has come, or what the last one found."""

    def export_seed(self, machine: MachineId, request: SeedExportRequest) -> SeedExportStatus:
        """Write the first copy to media. Raises SeedNotPossible, SeedPathRefused."""

    def seed_export(self, machine: MachineId) -> SeedExportStatus:
        """How far that has come."""

    def cancel_seed(self, machine: MachineId) -> SeedExportStatus:
        """Copy over the network after all."""


class EventReader(Protocol):
    """The gateway's recent events, numbered from 1."""

    def since(self, number: int, limit: int) -> Sequence[tuple[int, Event]]:
        """Events with a number above `number`, oldest first, at most `limit`."""
