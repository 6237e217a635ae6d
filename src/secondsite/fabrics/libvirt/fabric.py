"""KVM and QEMU through libvirt: one hypervisor host. See `fabrics.base` for the contract."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import (
    Fabric,
    Flattening,
    GuestRun,
    KeptFile,
    Life,
    Recovered,
    RecoverySpec,
    Shape,
)
from secondsite.fabrics.errors import MachineUnknown, Unprotectable
from secondsite.fabrics.libvirt import (
    aside,
    flatten,
    inside,
    inventory,
    isolate,
    life,
    networks,
    outlook,
    places,
    recover,
    removal,
    space,
)
from secondsite.fabrics.libvirt import readiness as host
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.errors import HostUnready, translated
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.quiesce import Guard
from secondsite.fabrics.libvirt.source import Hands, LibvirtSource
from secondsite.model.events import EventSink
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Host, Machine, Network, Pool
from secondsite.model.outlook import Outlook
from secondsite.model.readiness import Check


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

    def readiness(self) -> Sequence[Check]:
        """See `Fabric.readiness`."""
        try:
            with translated("say what it lets us do"):
                return list(host.checks(self._connection.get(), self._places))
        except SecondsiteError as error:
            return [host.unreachable(error)]

    def open_source(
        self,
        machine: MachineId,
        disks: Sequence[DiskId] | None = None,
        *,
        left_out: Collection[DiskId] = (),
        taken: bool = False,
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
                chosen=inventory.Chosen(disks, left_out),
            )
            places.prepare(self._places, connection)
        missing = sorted(set(disks or ()) - {disk.id for disk in described.disks})
        reasons = list(described.unprotectable)
        reasons += [f"it has no disk {name} of its own" for name in missing]
        reasons += space.scratch_reasons(self._places.scratch_dir, users)
        if reasons and not taken:
            raise Unprotectable(machine=described.name, reasons="; ".join(reasons))
        hands = Hands(self._connection, self._places, self._guard, self._clock, self._events)
        return LibvirtSource(hands, machine, described.name, inventory.Chosen(disks, left_out))

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

    def outlook(self, spec: RecoverySpec) -> Outlook:
        """See `Fabric.outlook`."""
        with translated(f"look at what {spec.name or 'a machine'} would be"):
            connection = self._connection.get()
            return outlook.look(connection, spec, inventory.networks(connection))

    def apply_in_guest(self, recovered: Recovered) -> int:
        """See `Fabric.apply_in_guest`."""
        with translated(f"speak to the guest of {recovered.name}"):
            return inside.begin(self._connection.get(), recovered)

    def applied(self, recovered: Recovered, run: int) -> GuestRun | None:
        """See `Fabric.applied`."""
        with translated(f"speak to the guest of {recovered.name}"):
            return inside.ended(self._connection.get(), recovered, run)

    def addresses_of(self, recovered: Recovered) -> Sequence[str]:
        """See `Fabric.addresses_of`."""
        with translated(f"speak to the guest of {recovered.name}"):
            return inside.addresses(self._connection.get(), recovered)

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

    def keep_overlays(self, recovered: Recovered, label: str) -> Sequence[KeptFile]:
        """See `Fabric.keep_overlays`."""
        with translated(f"remove {recovered.name}"):
            return aside.keep(self._connection.get(), recovered, label)

    def remove_kept(self, paths: Sequence[str]) -> None:
        """See `Fabric.remove_kept`."""
        aside.remove(paths)

    def run_recovered(self, recovered: Recovered) -> bool:
        """See `Fabric.run_recovered`."""
        with translated(f"start {recovered.name}"):
            return life.run(self._connection.get(), recovered)

    def life_of(self, recovered: Recovered) -> Life:
        """See `Fabric.life_of`."""
        with translated(f"look at {recovered.name}"):
            return life.of(self._connection.get(), recovered)

    def shape_of(self, recovered: Recovered) -> Shape | None:
        """See `Fabric.shape_of`."""
        with translated(f"look at {recovered.name}"):
            return life.shape(self._connection.get(), recovered)

    def flatten(self, recovered: Recovered, *, bytes_per_second: int | None) -> Flattening:
        """See `Fabric.flatten`."""
        with translated(f"copy the disks of {recovered.name}", machine=recovered.name):
            return flatten.step(self._connection.get(), recovered, bytes_per_second)

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        """See `Fabric.settle_recovered`."""
        with translated(f"keep {recovered.name}", machine=recovered.name):
            flatten.settle(self._connection.get(), recovered, autostart=autostart)

    def isolate(self, machine: MachineId, *, why: str, autostart: bool) -> bool:
        """See `Fabric.isolate`."""
        with translated("isolate the machine", machine=machine):
            connection = self._connection.get()
            domain = self._find(connection, machine).domain
            return isolate.isolate(domain, why=why, autostart=autostart)

    def isolated(self, machine: MachineId) -> str | None:
        """See `Fabric.isolated`."""
        with translated("look at the machine", machine=machine):
            domain = life.lookup(self._connection.get(), machine)
            return isolate.why(domain) if domain is not None else None

    def lift_isolation(self, machine: MachineId, *, run: bool) -> None:
        """See `Fabric.lift_isolation`."""
        with translated("let the machine go on", machine=machine):
            domain = life.lookup(self._connection.get(), machine)
            if domain is not None:
                isolate.lift(domain, run=run)

    def ask_to_shut_down(self, machine: MachineId, *, agent: bool) -> None:
        """See `Fabric.ask_to_shut_down`."""
        with translated("shut the machine down", machine=machine):
            connection = self._connection.get()
            life.ask_to_shut_down(self._find(connection, machine).domain, agent=agent)

    def power_off(self, machine: MachineId) -> None:
        """See `Fabric.power_off`."""
        with translated("switch the machine off", machine=machine):
            connection = self._connection.get()
            life.power_off(self._find(connection, machine).domain)

    def hold_open(self, machine: MachineId) -> None:
        """See `Fabric.hold_open`."""
        with translated("start the machine without running it", machine=machine):
            connection = self._connection.get()
            life.hold_open(self._find(connection, machine).domain)

    def remove_machine(self, machine: MachineId, *, disks: bool) -> Sequence[str]:
        """See `Fabric.remove_machine`."""
        with translated("remove the machine", machine=machine):
            return removal.remove(self._connection.get(), machine, disks=disks)

    def close(self) -> None:
        """Drop connections."""
        self._connection.close()
