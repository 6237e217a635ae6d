"""Imaginary hosts whose machines outlive the gateway's process, as a real one's do, and who ran when.

``runs.log`` has a line each time a machine begins or ceases to execute: the time (both sites have one clock),
the site, whether it runs, and whose the machine was by then, as the store said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.files import replace_file
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Machine, PowerState
from support.file_fabric import FileFabric
from support.guest_log import MACHINE, ReplayedFabric


@dataclass(frozen=True)
class Ran:
    """A line of ``runs.log``."""

    at: str
    site: str
    runs: bool
    claimant: str
    reason: str
    epoch: int


class RunLog:
    """Appended to by both sites' processes; a line is whole or not there."""

    def __init__(self, path: Path, store: Path) -> None:
        self._path, self._store = path, store

    def note(self, site: str, *, runs: bool) -> None:
        head = Journal(LocalStore(self._store), MachineId(MACHINE), None).head()
        claim = head.claim
        words: list[str | bool | int] = [SystemClock().utc().isoformat(), site, runs]
        words += [claim.claimant, claim.reason, claim.epoch] if claim else ["", "", 0]
        line = json.dumps(words) + "\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def read(self) -> list[Ran]:
        if not self._path.exists():
            return []
        return [Ran(*json.loads(line)) for line in self._path.read_text().splitlines()]


class SourceHost(ReplayedFabric):
    """Site A's: whether its machine runs, and why it is isolated, is kept in a file."""

    def __init__(self, directory: Path, log: RunLog, clock: Clock) -> None:
        super().__init__(directory, clock)
        self._life, self._log, self._ran = directory / "life.json", log, True
        if self._life.exists():
            kept = json.loads(self._life.read_text())
            found = self._find(self.identity)
            found.power, found.paused = PowerState(kept["power"]), kept["paused"]
            found.isolated, self._ran = kept["isolated"], kept["ran"]
            found.autostart, found.autostarted = kept["autostart"], kept["autostarted"]

    def _keep(self) -> None:
        found, runs = self._find(self.identity), self.runs(self.identity)
        if not runs and self._ran:
            self._log.note("A", runs=False)
        if runs and not self._ran:
            self._log.note("A", runs=True)
        self._ran = runs
        kept = {
            "power": found.power.value,
            "paused": found.paused,
            "isolated": found.isolated,
            "autostart": found.autostart,
            "autostarted": found.autostarted,
            "ran": runs,
        }
        replace_file(self._life, json.dumps(kept).encode())

    def write_between(self) -> None:
        """See `ReplayedFabric`; a guest that stands still writes nothing."""
        if self.runs(self.identity):
            super().write_between()

    def machines(self) -> list[Machine]:
        """While it stands still its disks are image files."""
        return [
            msgspec.structs.replace(
                found,
                disks=tuple(
                    msgspec.structs.replace(disk, format="raw", location=str(self._image(disk.id)))
                    for disk in found.disks
                ),
            )
            for found in super().machines()
        ]

    def _write_images(self, machine: MachineId) -> None:
        self.replay()
        for disk in self._find(machine).disks.values():
            replace_file(self._image(disk.id), disk.content())

    def _image(self, disk: DiskId) -> Path:
        return self.directory / f"{disk}.raw"

    def isolate(self, machine: MachineId, *, why: str, autostart: bool) -> bool:
        changed = super().isolate(machine, why=why, autostart=autostart)
        if changed:
            self._write_images(machine)
        self._keep()
        return changed

    def lift_isolation(self, machine: MachineId, *, run: bool) -> None:
        super().lift_isolation(machine, run=run)
        self._keep()

    def set_power(self, machine: MachineId, power: PowerState) -> None:
        super().set_power(machine, power)
        if power is PowerState.OFF:
            self._write_images(machine)
        self._keep()

    def hold_open(self, machine: MachineId) -> None:
        super().hold_open(machine)
        self._keep()


class TargetHost(FileFabric):
    """Site B's: machines that were recovered keep their identity."""

    def __init__(self, path: Path, log: RunLog) -> None:
        super().__init__(path)
        self._log = log

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        made = super().start_recovered(spec)
        state = self._load()
        for machine in state["machines"]:
            if machine["id"] == made.id:
                machine["id"] = self._identity_of(spec)
        # it executes from here on, also if nobody ever hears of it
        self._log.note("B", runs=True)
        self._save(state)
        return next(each for each in self.recovered() if each.name == spec.name)

    def remove_recovered(self, recovered: Recovered) -> None:
        there = any(each.id == recovered.id for each in self.recovered())
        super().remove_recovered(recovered)
        if there:
            self._log.note("B", runs=False)
