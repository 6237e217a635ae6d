"""The in-memory twin of a hypervisor: machines, writes of their guests, checkpoints, faults to order.

It passes the contract suite every fabric passes (tests/contract/test_fabrics.py), so that what is built on a
fabric can be tested without a hypervisor. Its machines are in `memory_machine`, what happens to them in
`memory_guest`; here is the contract.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.units import BLOCK_BYTES_MAX, GIB
from secondsite.fabrics import errors
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.fabrics.memory_machine import HOST, MemoryCapture, MemorySource, describe
from secondsite.fabrics.memory_settings import MemorySettings
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Host, Machine, Network, Pool
from secondsite.model.readiness import Check
from secondsite.model.recovered import NO_NETWORK

__all__ = ["HOST", "MemoryCapture", "MemoryFabric", "MemorySource"]


class MemoryFabric(MemorySettings):
    """One imaginary host."""

    def __init__(self, *, clock: Clock | None = None, chunk_bytes: int = BLOCK_BYTES_MAX) -> None:
        super().__init__(chunk_bytes)
        self._clock = clock or SystemClock()
        self._recovery_fails = ""

    def fail_recovery(self, why: str) -> None:
        """The next `start_recovered` fails with this."""
        self._recovery_fails = why

    def stop_recovered(self, recovered: Recovered) -> None:
        """Stop a recovered machine as the loss of its export does."""
        with self._lock:
            self._stopped.add(recovered.id)

    def hosts(self) -> Sequence[Host]:
        """See `Fabric`."""
        return [Host(name=HOST, hypervisor="memory", memory_bytes=GIB, cpus=1)]

    def machines(self) -> Sequence[Machine]:
        """See `Fabric`."""
        with self._lock:
            known = sorted(self._machines.values(), key=lambda machine: machine.name)
        return [describe(machine) for machine in known]

    def networks(self) -> Sequence[Network]:
        """See `Fabric`."""
        with self._lock:
            return list(self._networks.values())

    def pools(self) -> Sequence[Pool]:
        """See `Fabric`."""
        return [Pool(name="memory", path="", active=True, capacity_bytes=GIB, free_bytes=GIB)]

    def readiness(self) -> Sequence[Check]:
        """See `Fabric`."""
        return [Check(code="memory.define", title="machines may be defined", ok=True)]

    def open_source(
        self,
        machine: MachineId,
        disks: Sequence[DiskId] | None = None,
        *,
        left_out: Collection[DiskId] = (),
        taken: bool = False,
    ) -> MemorySource:
        """See `Fabric`."""
        self._check_daemon()
        found = self._find(machine)
        chosen = [name for name in found.disks if (disks is None or name in disks) and name not in left_out]
        reasons = list(found.unprotectable)
        reasons += [f"it has no disk {name}" for name in disks or () if name not in found.disks]
        if not taken and (reasons or not chosen):
            why = "; ".join(reasons) or "it has no disk to protect"
            raise errors.Unprotectable(machine=found.name, reasons=why)
        return MemorySource(found, disks, self._clock, self._check_daemon, left_out=left_out)

    def make_isolated_network(self, name: str) -> Network:
        """See `Fabric`."""
        with self._lock:
            return self._networks.setdefault(name, Network(name=name, active=True, isolated=True))

    def remove_network(self, name: str) -> None:
        """See `Fabric`."""
        with self._lock:
            found = self._networks.get(name)
            if found is not None and found.isolated:
                del self._networks[name]

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        """See `Fabric`."""
        with self._lock:
            why, self._recovery_fails = self._recovery_fails, ""
            if not why and spec.network is not None and spec.network not in self._networks:
                why = f"there is no network {spec.network}"
            for nic in spec.settings.nics if spec.attach_as_set and not why else ():
                if nic.network not in (None, NO_NETWORK, *self._networks):
                    why = f"there is no network {nic.network}"
            if not why and any(known.name == spec.name for known, _ in self._recovered.values()):
                why = "a machine of this name exists"
            if why:
                raise errors.RecoveryFailed(machine=spec.name, why=why)
            identity = self._identity_of(spec)
            if identity in self._recovered or identity in self._machines:
                raise errors.RecoveryFailed(machine=spec.name, why=f"a machine with the id {identity} exists")
            overlays = [f"memory:{identity}:{disk.id}" for disk in spec.disks]
            wanted = [f"{overlay}.{spec.goes_on}.kept" for overlay in overlays if spec.goes_on is not None]
            if any(name not in self.aside for name in wanted):
                raise errors.RecoveryFailed(machine=spec.name, why=f"{spec.goes_on} was not kept")
            made = Recovered(id=identity, name=spec.name, overlays=overlays, networks=[])
            self._recovered[identity] = (made, spec)
            self._running.add(identity)
            return made

    def recovered(self) -> Sequence[Recovered]:
        """See `Fabric`."""
        with self._lock:
            return [made for made, _ in self._recovered.values()]

    def recovered_spec(self, recovered: Recovered) -> RecoverySpec:
        """What a recovered machine was started with."""
        with self._lock:
            return self._recovered[recovered.id][1]

    def resume_stopped(self, recovered: Recovered) -> bool:
        """See `Fabric`."""
        with self._lock:
            stopped = recovered.id in self._stopped
            self._stopped.discard(recovered.id)
            return stopped

    def close(self) -> None:
        """See `Fabric`."""
