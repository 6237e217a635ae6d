"""The in-memory twin's part of failing over: recovered machines that live, and sources that are isolated."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.fabrics import errors
from secondsite.fabrics.base import Ended, Flattening, KeptFile, Life, Recovered, RecoverySpec
from secondsite.fabrics.memory_guest import MemoryGuests
from secondsite.model.ids import MachineId, machine_id
from secondsite.model.machines import PowerState

# Of the whole, in one call of `flatten`: three calls show progress, the fourth its end.
FLATTENED_A_CALL = 3
# What an overlay is said to take up once it is kept.
OVERLAY_BYTES = 4096


class MemoryFailover(MemoryGuests):
    """Of `fabrics.base.Fabric` what failing over needs."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__(chunk_bytes)
        self._recovered: dict[MachineId, tuple[Recovered, RecoverySpec]] = {}
        self._stopped: set[MachineId] = set()
        self._running: set[MachineId] = set()  # of the recovered
        self._ended: dict[MachineId, Ended] = {}  # of those that are off
        self.run_fails = ""  # why a recovered machine cannot be started, while it is set
        self._flattened: dict[MachineId, int] = {}  # calls so far
        self._settled: dict[MachineId, bool] = {}  # of the recovered once: whether it starts with its host
        self._flatten_fails: str | SecondsiteError = ""
        self._removal_fails = ""
        self.aside: dict[str, int] = {}  # kept overlays of machines that were removed, with their bytes
        self.deaf: set[MachineId] = set()  # guests that do not shut down when they are asked

    # what tests see and do

    def runs(self, machine: MachineId) -> bool:
        """Whether a copy of the machine executes here and reaches others: it may be the authority only."""
        with self._lock:
            found = self._machines.get(machine)
            if found is not None:
                with found.lock:
                    standing = found.power is not PowerState.RUNNING or found.paused
                    return not standing and found.isolated is None
            return machine in self._running or machine in self._settled

    def switch_off_recovered(self, machine: MachineId) -> None:
        """Somebody, or its guest, switches a recovered machine off."""
        with self._lock:
            self._running.discard(machine)
            self._ended[machine] = Ended.IN_ORDER

    def restart_host(self) -> None:
        """All recovered machines end, and none starts by itself."""
        with self._lock:
            self._ended = dict.fromkeys(self._recovered, Ended.LOST)  # it does not know better any more
            self._running.clear()
            self._stopped.clear()

    def fail_removal(self, why: str) -> None:
        """The next `remove_recovered` fails with this."""
        self._removal_fails = why

    def fail_flattening(self, why: str | SecondsiteError) -> None:
        """The next `flatten` stops with this, or raises it."""
        self._flatten_fails = why

    def settled(self, machine: MachineId) -> bool | None:
        """Whether a machine that was settled starts with its host; None: it was not settled."""
        return self._settled.get(machine)

    # recovered machines

    def _identity_of(self, spec: RecoverySpec) -> MachineId:
        if spec.keep_identity:
            try:
                return machine_id(str(json.loads(spec.definition.text)["id"]))
            except (ValueError, KeyError, InvalidInput):
                pass
        return machine_id(str(uuid.uuid4()))

    def run_recovered(self, recovered: Recovered) -> bool:
        """See `Fabric`."""
        with self._lock:
            if recovered.id not in self._recovered:
                return False
            if self.run_fails and recovered.id not in self._running:
                raise errors.RecoveryFailed(machine=recovered.name, why=self.run_fails)
            self._running.add(recovered.id)
            return True

    def remove_recovered(self, recovered: Recovered) -> None:
        """See `Fabric`."""
        with self._lock:
            why, self._removal_fails = self._removal_fails, ""
            if why:
                raise errors.SourceGone(machine=recovered.name, why=why)
            self._recovered.pop(recovered.id, None)
            self._stopped.discard(recovered.id)
            self._running.discard(recovered.id)
            self._flattened.pop(recovered.id, None)

    def keep_overlays(self, recovered: Recovered, label: str) -> Sequence[KeptFile]:
        """See `Fabric`."""
        names = [f"{overlay}.{label}.kept" for overlay in recovered.overlays]
        with self._lock:
            if recovered.id in self._recovered:
                self.aside.update(dict.fromkeys(names, OVERLAY_BYTES))
        self.remove_recovered(recovered)
        return [KeptFile(name, self.aside[name]) for name in names if name in self.aside]

    def remove_kept(self, paths: Sequence[str]) -> None:
        """See `Fabric`."""
        with self._lock:
            for path in paths:
                self.aside.pop(path, None)

    def life_of(self, recovered: Recovered) -> Life:
        """See `Fabric`."""
        with self._lock:
            runs = recovered.id in self._running or recovered.id in self._settled
            paused = recovered.id in self._stopped
            ended = None if runs or paused else self._ended.get(recovered.id)
        power = PowerState.PAUSED if paused else PowerState.RUNNING if runs else PowerState.OFF
        return Life(power=power, console=runs, agent=runs, ended=ended)

    def flatten(self, recovered: Recovered, *, bytes_per_second: int | None) -> Flattening:  # noqa: ARG002
        """See `Fabric`."""
        with self._lock:
            if recovered.id not in self._running:
                raise errors.SourceOff(machine=recovered.name, why="it is off")
            total = sum(disk.size_bytes for disk in self._recovered[recovered.id][1].disks)
            calls = self._flattened.get(recovered.id, 0)
            why, self._flatten_fails = self._flatten_fails, ""
            if isinstance(why, SecondsiteError):
                raise why
            if why:
                return Flattening(total * calls // FLATTENED_A_CALL, total, finished=False, error=why)
            self._flattened[recovered.id] = calls = min(calls + 1, FLATTENED_A_CALL)
            done = total * calls // FLATTENED_A_CALL
            return Flattening(done, total, finished=calls == FLATTENED_A_CALL)

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        """See `Fabric`."""
        with self._lock:
            if self._recovered.pop(recovered.id, None) is not None:
                self._settled[recovered.id] = autostart

    # sources

    def isolate(self, machine: MachineId, *, why: str, autostart: bool) -> bool:
        """See `Fabric`. One that was recovered stands still, which is all that is known of its state."""
        self._check_daemon()
        with self._lock:
            if machine in self._recovered:
                ran = machine in self._running
                self._running.discard(machine)
                return ran
        found = self._find(machine)
        with found.lock:
            changed = found.isolated is None or not (found.paused or found.power is PowerState.OFF)
            if found.isolated is None:
                found.isolated, found.autostarted = why, found.autostart
            found.paused = found.power is PowerState.RUNNING
            if autostart:
                changed |= found.autostart
                found.autostart = False
            return changed

    def isolated(self, machine: MachineId) -> str | None:
        """See `Fabric`."""
        self._check_daemon()
        with self._lock:
            found = self._machines.get(machine)
        return found.isolated if found is not None else None

    def lift_isolation(self, machine: MachineId, *, run: bool) -> None:
        """See `Fabric`."""
        self._check_daemon()
        with self._lock:
            found = self._machines.get(machine)
        if found is None:
            return
        with found.lock:
            if found.isolated is None:
                return
            found.isolated, found.autostart = None, found.autostarted
            if run:
                found.power, found.paused = PowerState.RUNNING, False

    def ask_to_shut_down(self, machine: MachineId, *, agent: bool) -> None:
        """See `Fabric`."""
        found = self._find(machine)
        if agent and not found.agent:
            raise errors.SourceBusy(machine=found.name, why="it has no guest agent")
        if machine not in self.deaf:
            self.set_power(machine, PowerState.OFF)

    def power_off(self, machine: MachineId) -> None:
        """See `Fabric`."""
        self.set_power(machine, PowerState.OFF)

    def hold_open(self, machine: MachineId) -> None:
        """See `Fabric`."""
        found = self._find(machine)
        with found.lock:
            if found.power is PowerState.OFF:
                found.power, found.paused = PowerState.RUNNING, True

    def remove_machine(self, machine: MachineId, *, disks: bool) -> Sequence[str]:
        """See `Fabric`."""
        self._check_daemon()
        with self._lock:
            found = self._machines.get(machine)
            if found is None:
                return ()
            if found.isolated is None:
                raise errors.NotIsolated(machine=found.name)
            self.set_power(machine, PowerState.OFF)
            del self._machines[machine]
            return () if disks else tuple(disk.location for disk in found.disks.values())
