"""KVM and QEMU through libvirt: one hypervisor host. See `fabrics.base` for the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Fabric, Recovered, RecoverySpec
from secondsite.fabrics.errors import MachineUnknown, Unprotectable
from secondsite.fabrics.libvirt import inventory, networks, places, recover, space
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.errors import HostUnready, translated
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.quiesce import Guard
from secondsite.fabrics.libvirt.source import Hands, LibvirtSource
from secondsite.model.events import EventSink
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Host, Machine, Network, Pool


class LibvirtFabric(Fabric):
    """One host's libvirt daemon.

    Args:
        uri: of the daemon, e.g. ``qemu:///system``. The host is this one: sockets, scratch and overlays are
            reached as local paths (architecture's rule 16).
        scratch_dir: where QEMU keeps what is overwritten during a backup; never beside guest disks.
        socket_dir: where the sockets lie that QEMU serves or connects to.
        guard: ends jobs and freezes if we do not; None: nothing can be protected, all else works.
        clock: for deadlines and instants.
        events: where lowered consistency and jobs ended for others are told.
    """

    def __init__(
        self,
        uri: str,
        *,
        scratch_dir: Path | str,
        socket_dir: Path | str,
        guard: Guard | None,
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._connection = Connection(uri)
        self._places = Places(Path(scratch_dir), Path(socket_dir))
        self._guard = guard
        self._clock = clock
        self._events = events

    def hosts(self) -> Sequence[Host]:
        """Its one host."""
        with translated("describe itself"):
            return [inventory.host(self._connection.get())]

    def machines(self) -> Sequence[Machine]:
        """Every machine, by name, protectable or not (with the reasons)."""
        with translated("list its machines"):
            connection = self._connection.get()
            everything = inventory.look_all(connection)
            users, pools = inventory.image_users(everything), inventory.pools(connection)
            name = connection.getHostname()
            found = [
                inventory.machine(item, host_name=name, known_pools=pools, users=users) for item in everything
            ]
            return sorted(found, key=lambda machine: machine.name)

    def networks(self) -> Sequence[Network]:
        """Its virtual networks."""
        with translated("list its networks"):
            return inventory.networks(self._connection.get())

    def pools(self) -> Sequence[Pool]:
        """Its storage pools."""
        with translated("list its pools"):
            return inventory.pools(self._connection.get())

    def open_source(
        self, machine: MachineId, disks: Sequence[DiskId] | None = None, *, taken: bool = False
    ) -> LibvirtSource:
        """See `Fabric.open_source`.

        Raises:
            MachineUnknown, Unprotectable: as the contract says.
            HostUnready: directories, AppArmor or the guard are not set up on this host.
        """
        if self._guard is None:
            raise HostUnready(
                why="no guard is configured, and no guest is put at risk without one",
                remedy="Start `secondsite guard` on this host and name its socket in the configuration.",
            )
        with translated("open the machine", machine=machine):
            connection = self._connection.get()
            found = self._find(connection, machine)
            everything = inventory.look_all(connection)
            users = inventory.image_users(everything)
            described = inventory.machine(
                found,
                host_name=connection.getHostname(),
                known_pools=inventory.pools(connection),
                users=users,
                chosen=disks,
            )
            places.prepare(self._places, connection)
        missing = sorted(set(disks or ()) - {disk.id for disk in described.disks})
        reasons = list(described.unprotectable)
        reasons += [f"it has no disk {name} of its own" for name in missing]
        reasons += space.scratch_reasons(self._places.scratch_dir, users)
        if reasons and not taken:
            raise Unprotectable(machine=described.name, reasons="; ".join(reasons))
        hands = Hands(self._connection, self._places, self._guard, self._clock, self._events)
        return LibvirtSource(hands, machine, described.name, disks)

    def _find(self, connection: Any, machine: MachineId) -> inventory.Found:
        try:
            return inventory.look(connection, connection.lookupByUUIDString(machine))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise MachineUnknown(machine=machine, host=connection.getHostname()) from None
            raise

    def make_isolated_network(self, name: str) -> Network:
        """See `Fabric.make_isolated_network`."""
        with translated(f"make the network {name}"):
            return networks.make_isolated(self._connection.get(), name)

    def remove_network(self, name: str) -> None:
        """See `Fabric.remove_network`."""
        with translated(f"remove the network {name}"):
            networks.remove(self._connection.get(), name)

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        """See `Fabric.start_recovered`."""
        with translated(f"start {spec.name}"):
            return recover.start(self._connection.get(), spec)

    def recovered(self) -> Sequence[Recovered]:
        """See `Fabric.recovered`."""
        with translated("list recovered machines"):
            return recover.existing(self._connection.get())

    def resume_stopped(self, recovered: Recovered) -> bool:
        """See `Fabric.resume_stopped`."""
        with translated(f"resume {recovered.name}"):
            return recover.resume_stopped(self._connection.get(), recovered)

    def remove_recovered(self, recovered: Recovered) -> None:
        """See `Fabric.remove_recovered`."""
        with translated(f"remove {recovered.name}"):
            recover.remove(self._connection.get(), recovered)

    def close(self) -> None:
        """Drop connections."""
        self._connection.close()
