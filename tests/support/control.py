"""A gateway's control socket with made-up roles behind it, and the real command run against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from secondsite.base.clock import SystemClock
from secondsite.gateway.messages.gateway import (
    DeepVerification,
    DifferingRange,
    FirstCopy,
    Health,
    PointTaken,
    ProtectionState,
    ProtectionStatus,
    ProtectRequest,
)
from secondsite.gateway.messages.keys import DataKeysRenewed
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportState, SeedExportStatus
from secondsite.model.events import Event, Severity
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.model.points import Consistency
from secondsite.nbd.client import NbdClient

COMMAND_SECONDS_MAX = 60


class Events:
    """An event log in memory: sink and reader."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.all: list[Event] = []

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        event = Event(
            at=SystemClock().utc().isoformat(),
            code=code,
            severity=severity,
            text=text,
            machine=machine,
            data=data,
        )
        with self._lock:
            self.all.append(event)

    def since(self, number: int, limit: int) -> Sequence[tuple[int, Event]]:
        with self._lock:
            return list(enumerate(self.all, 1))[number : number + limit]

    def codes(self) -> list[str]:
        with self._lock:
            return [event.code for event in self.all]


@dataclass
class Protections:
    """A source role that copies in made-up steps: each look brings it a quarter further."""

    names: dict[MachineId, str]
    peers: tuple[str, ...] = ("b",)
    fail_with: str = ""
    deep: DeepVerification | None = None
    differing: tuple[DifferingRange, ...] = ()
    seed: SeedExportStatus | None = None
    requests: list[ProtectRequest] = field(default_factory=list)
    _statuses: dict[MachineId, ProtectionStatus] = field(default_factory=dict)

    def statuses(self) -> Sequence[ProtectionStatus]:
        for machine, status in self._statuses.items():
            self._statuses[machine] = self._further(status)
        return list(self._statuses.values())

    def _further(self, status: ProtectionStatus) -> ProtectionStatus:
        if status.first_copy is None or status.state is not ProtectionState.INITIAL_REPLICATION:
            return status
        if self.fail_with:
            return msgspec.structs.replace(status, state=ProtectionState.FAILED, note=self.fail_with)
        done = status.first_copy.done_bytes + 256
        if done <= 1024:
            copy = FirstCopy(done_bytes=done, total_bytes=1024, bytes_per_second=512.0, seconds_left=1.0)
            return msgspec.structs.replace(status, first_copy=copy)
        return msgspec.structs.replace(
            status,
            state=ProtectionState.PROTECTED,
            last_point=2,
            last_point_at="2026-05-04T12:00:00+00:00",
            rpo_seconds=1.5,
        )

    def protect(self, machine: MachineId, request: ProtectRequest) -> ProtectionStatus:
        self.requests.append(request)
        self._statuses[machine] = ProtectionStatus(
            machine=machine,
            name=self.names[machine],
            peer=request.peer,
            state=ProtectionState.INITIAL_REPLICATION,
            health=Health.NORMAL,
            copy_frequency_seconds=request.copy_frequency_seconds,
            first_copy=FirstCopy(done_bytes=0, total_bytes=1024, bytes_per_second=0.0),
        )
        return self._statuses[machine]

    def unprotect(self, machine: MachineId) -> None:
        del self._statuses[machine]

    def renew_data_keys(self, machine: MachineId, disks: Sequence[DiskId] | None) -> DataKeysRenewed:
        keys = {disk: KeyId("ab" * 16) for disk in disks or (DiskId("vda"), DiskId("vdb"))}
        return DataKeysRenewed(machine=machine, name=self.names[machine], keys=keys)

    def deep_verify(self, machine: MachineId) -> DeepVerification:
        self.deep = DeepVerification(
            machine=machine, name=self.names[machine], started_at="2026-05-04T12:00:05+00:00", total_bytes=4
        )
        return self.deep

    def deep_verification(self, machine: MachineId) -> DeepVerification:
        """Each look brings it to its end."""
        if self.deep is None:
            return DeepVerification(machine=machine, name=self.names[machine])
        ended = "2026-05-04T12:00:09+00:00"
        self.deep = msgspec.structs.replace(
            self.deep,
            finished_at=ended,
            done_bytes=self.deep.total_bytes,
            first_point=3,
            last_point=4,
            differing=self.differing,
            differing_bytes=sum(part.length for part in self.differing),
        )
        return self.deep

    def export_seed(self, machine: MachineId, request: SeedExportRequest) -> SeedExportStatus:
        self.seed = SeedExportStatus(
            machine=machine,
            name=self.names[machine],
            state=SeedExportState.COPYING,
            directory=request.directory,
            done_bytes=1024,
            total_bytes=2048,
        )
        return self.seed

    def seed_export(self, machine: MachineId) -> SeedExportStatus:
        if self.seed is None:
            return SeedExportStatus(machine=machine, name=self.names[machine], state=SeedExportState.NONE)
        shown = self.seed
        self.seed = msgspec.structs.replace(
            shown, state=SeedExportState.EXPORTED, stored_bytes=1000, done_bytes=2048
        )
        return shown

    def cancel_seed(self, machine: MachineId) -> SeedExportStatus:
        self.seed = None
        return self.seed_export(machine)

    def take_point(self, machine: MachineId, *, seconds_max: float) -> PointTaken:
        assert seconds_max > 0
        if self.fail_with:
            return PointTaken(
                number=3, at="2026-05-04T12:00:05+00:00", consistency=Consistency.CRASH, note=self.fail_with
            )
        return PointTaken(
            number=3, at="2026-05-04T12:00:05+00:00", consistency=Consistency.APPLICATION, frozen_seconds=0.2
        )


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command_environment(**more: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SECONDSITE_")}
    return {**environment, "COLUMNS": "200", "NO_COLOR": "1", **more}


def run_command(*arguments: str | Path, gateway: Path | None = None, **environment: str) -> Ran:
    """The real command in a process of its own, without a terminal."""
    if gateway is not None:
        environment["SECONDSITE_GATEWAY"] = str(gateway)
    done = subprocess.run(
        [sys.executable, "-m", "secondsite", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS_MAX,
        env=command_environment(**environment),
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def read_uri(uri: str) -> bytes:
    """The whole disk behind ``nbd+unix:///NAME?socket=PATH``."""
    parts = urlsplit(uri)
    assert parts.scheme == "nbd+unix"
    client = NbdClient.connect_unix(parse_qs(parts.query)["socket"][0], parts.path.removeprefix("/"))
    try:
        return bytes(client.read(0, client.size_bytes))
    finally:
        client.close()
