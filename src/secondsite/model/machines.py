"""Machines, disks, networks and pools as every fabric describes them."""

from __future__ import annotations

import enum

import msgspec

from secondsite.model.ids import DiskId, MachineId


class PowerState(enum.Enum):
    """What the hypervisor says the machine is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    UNKNOWN = "unknown"


class Disk(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One disk of a machine. `location` is the fabric's own name of where it lies (a path, for libvirt)."""

    id: DiskId
    size_bytes: int
    format: str  # "qcow2" or "raw"
    location: str
    pool: str | None = None  # the storage pool that holds it, where one does


class Nic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One network adapter; `network` is None when it is attached to nothing."""

    mac: str
    network: str | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A machine as a fabric lists it; `unprotectable` gives the reasons it cannot be protected."""

    id: MachineId
    name: str
    host: str
    power: PowerState
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...] = ()
    memory_bytes: int = 0
    cpus: int = 0
    firmware: str = "bios"  # "bios" or "uefi"
    agent: bool = False  # a guest agent channel is configured
    unprotectable: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All disks together."""
        return sum(disk.size_bytes for disk in self.disks)


class Network(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A virtual network of a site."""

    name: str
    active: bool
    isolated: bool  # no way out of the host
    subnets: tuple[str, ...] = ()


class Pool(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A place for disks (a storage class or pool)."""

    name: str
    path: str
    active: bool
    capacity_bytes: int
    free_bytes: int


class Host(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A hypervisor host."""

    name: str
    hypervisor: str  # e.g. "QEMU 7.2.22, libvirt 9.0.0"
    memory_bytes: int
    cpus: int


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """Where things of the source go at the target; what is not named is attached to nothing."""

    networks: dict[str, str] = {}
    pools: dict[str, str] = {}
    default_pool: str | None = None


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to define the machine again elsewhere; travels sealed inside every point."""

    format: str  # "libvirt-domain" or "memory"
    text: str  # the fabric's own description, e.g. domain XML with its secrets
    firmware_variables: bytes | None = None  # UEFI variable store
    tpm_state: bytes | None = None
    # As asked for when it was protected, so that a site with only the store knows it too.
    mapping: Mapping | None = None
