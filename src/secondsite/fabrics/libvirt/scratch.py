"""The guard's watch over the scratch file system: ballast, alarm, and guests that stopped because of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import libvirt

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import reserve_file
from secondsite.base.units import MIB, format_bytes
from secondsite.fabrics.libvirt import rescue
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.space import free_bytes
from secondsite.model.events import Severity
from secondsite.model.ids import MachineId

BALLAST_NAME = "secondsite-ballast"
# Room that is given back in an emergency: a guest that writes 200 MB/s fills it in more than a second, and
# a job ends in about 30 ms.
BALLAST_BYTES_MAX = 256 * MIB
BALLAST_SHARE = 10
# The alarm comes while there is room left: half a ballast, but what a fast guest writes in one tick.
ALARM_BYTES_MIN = 4 * MIB
# How long after an alarm a guest found stopped by a disk error is taken for stopped by it.
BLAME_SECONDS = 10.0
# The same alarm is told again only after this, when jobs cannot be ended because libvirt does not answer.
TOLD_SECONDS = 30.0

Emit = Callable[[str, Severity, str, MachineId | None], None]


class ScratchWatch:
    """One scratch directory. `look` is called about four times a second and at each disk error."""

    def __init__(self, connection: Connection, places: Places, clock: Clock, emit: Emit) -> None:
        self._connection = connection
        self._places = places
        self._clock = clock
        self._emit = emit
        self._ballast = places.scratch_dir / BALLAST_NAME
        self._blamed: dict[MachineId, float] = {}
        self._told_at = -TOLD_SECONDS

    @property
    def ballast_bytes(self) -> int:
        """How large the ballast file should be on this file system."""
        status = os.statvfs(self._places.scratch_dir)
        return min(BALLAST_BYTES_MAX, status.f_blocks * status.f_frsize // BALLAST_SHARE)

    def look(self, holders: Iterable[MachineId]) -> None:
        """Compare free space with the alarm; end jobs and let guests run again as needed.

        holders: machines with a job that is held by a lease.
        """
        try:
            ballast = self.ballast_bytes
            free = free_bytes(self._places.scratch_dir)
        except OSError:
            return  # the file system is being taken away or made: nothing of ours can be on it
        machines = set(holders)
        if free < max(ALARM_BYTES_MIN, ballast // 2) and self._jobs_use_it():
            self._sound(free, machines)
        elif not self._ballast.exists() and free > 3 * ballast:
            with contextlib.suppress(OSError):
                reserve_file(self._ballast, ballast)
        self._resume_blamed()

    def blame(self, machine: MachineId) -> None:
        """A write of this guest found no space while our job was open, or just had been."""
        self._blamed[machine] = self._clock.monotonic()

    def remove_ballast(self) -> None:
        """Give the reserved room back."""
        self._ballast.unlink(missing_ok=True)

    def _jobs_use_it(self) -> bool:
        return any(self._places.scratch_dir.glob("*.scratch"))

    def _sound(self, free: int, holders: set[MachineId]) -> None:
        directory: Path = self._places.scratch_dir
        text = (
            f"The scratch directory {directory} has {format_bytes(free)} left: its ballast is given back "
            f"and open backup jobs end."
        )
        if self._clock.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = self._clock.monotonic()
            self._emit("guard.scratch-alarm", Severity.WARNING, text, None)
        self.remove_ballast()
        try:
            machines = holders | set(rescue.machines_with_our_job(self._connection.get(), self._places))
        except (libvirt.libvirtError, SecondsiteError):
            machines = holders
        for machine in sorted(machines):
            # before the job ends: it was open while the space ran out
            self.blame(machine)
            try:
                done = rescue.end_job(self._connection.get(), self._places, machine, self._clock)
            except (rescue.NotYet, SecondsiteError) as error:
                done = f"not yet done, trying again: {error}"
            if done:
                text = f"The backup job of {machine} filled the scratch directory: {done}."
                self._emit("guard.job-ended", Severity.WARNING, text, machine)

    def _resume_blamed(self) -> None:
        for machine, since in list(self._blamed.items()):
            if self._clock.monotonic() - since > BLAME_SECONDS:
                del self._blamed[machine]
                continue
            try:
                done = rescue.resume(self._connection.get(), machine)
            except (rescue.NotYet, SecondsiteError):
                continue  # asked again with the next look
            if done:
                self._emit("guard.guest-resumed", Severity.WARNING, f"Machine {machine}: {done}.", machine)
                del self._blamed[machine]
