"""A server's services on a database, with gateways that are known and told of sites, but run nowhere."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from secondsite.base.clock import FakeClock
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Disk, Host, Machine, Network, Nic, Pool, PowerState
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateway_contacts, gateways
from secondsite.server.database.values import fresh_id
from secondsite.server.identity.service import Identity
from secondsite.server.inventory.service import Inventories, Told
from secondsite.server.mappings.topology import Topology
from secondsite.server.topology.machines import Protectable
from secondsite.server.topology.placing import enrolled
from secondsite.server.topology.records import Cloud

LAN = Network(name="lan", active=True, isolated=False, subnets=("192.0.2.0/24",))
IMAGES = Pool(name="images", path="/i", active=True, capacity_bytes=1 << 40, free_bytes=1 << 39)


@dataclass
class Catalogue:
    """Clouds, pairs and mappings without a process beside them."""

    database: Database
    clock: FakeClock
    identity: Identity
    inventories: Inventories
    topology: Topology
    vault: str

    @classmethod
    @contextlib.contextmanager
    def open(cls, database: Database, directory: Path) -> Iterator[Catalogue]:
        clock = FakeClock()
        database.clock = clock
        identity = Identity.open(
            database, master_key=directory / "master.key", url="https://server.example", clock=clock
        )
        inventories = Inventories(database)
        topology = Topology.open(database, identity, inventories)
        vault = identity.vaults.create("North").id
        yield cls(database, clock, identity, inventories, topology, vault)
        database.close()

    def gateway(self, name: str, site: str, *, published: bool = True) -> str:
        """Registered and connected; its id."""
        made, now = fresh_id(self.clock), self.database.now()
        with self.database.write() as connection:
            connection.execute(
                sa.insert(gateways).values(
                    id=made,
                    name=name,
                    friendly_name=name,
                    vault_id=self.vault,
                    site=site,
                    state="Registered",
                    state_reason="",
                    state_since=now,
                    version="0.1.0",
                    registered_at=now,
                    key_id="0" * 32,
                    refresh_number=0,
                )
            )
            connection.execute(
                sa.insert(gateway_contacts).values(
                    gateway_id=made,
                    last_contact=now,
                    address="192.0.2.7",
                    version="0.1.0",
                    clock_seconds=0.0,
                    refreshed=0,
                    protected=0,
                    points=0,
                    health="Normal",
                )
            )
            enrolled(connection, self.clock, made, published=published)
        return made

    @staticmethod
    def id_of(machine: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, machine))

    def told(
        self,
        gateway: str,
        *,
        host: str,
        machines: Sequence[str] = (),
        networks: Sequence[Network] = (LAN,),
        pools: Sequence[Pool] = (IMAGES,),
    ) -> None:
        """An inventory: machines have one disk of 1 GiB in the first pool, on the first network."""
        self.inventories.record(
            gateway,
            Told(
                hosts=(Host(name=host, hypervisor="QEMU", memory_bytes=1 << 34, cpus=8),),
                machines=tuple(self._machine(name, host, networks, pools) for name in machines),
                networks=tuple(networks),
                pools=tuple(pools),
            ),
        )

    def _machine(self, name: str, host: str, networks: Sequence[Network], pools: Sequence[Pool]) -> Machine:
        pool = pools[0].name if pools else None
        disk = Disk(id=DiskId("vda"), size_bytes=1 << 30, format="raw", location="/i/a", pool=pool)
        nic = Nic(mac="52:54:00:00:00:01", network=networks[0].name if networks else None)
        return Machine(
            id=MachineId(self.id_of(name)),
            name=name,
            host=host,
            power=PowerState.RUNNING,
            disks=(disk,),
            nics=(nic,),
        )

    def clouds(self) -> list[Cloud]:
        return self.topology.clouds.list(self.vault)

    def protectable(self) -> list[Protectable]:
        return self.topology.machines.page([cloud.id for cloud in self.clouds()], limit=1000)

    def pair(self, primary: str, target: str) -> str:
        """Pair two clouds without asking anybody; the pair's id."""
        pairs = self.topology.pairs
        return self.database.run(
            lambda connection: pairs.insert(connection, self.vault, primary, target, actor="maria").id
        )
