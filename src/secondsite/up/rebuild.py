"""A server made anew from replica stores alone, when neither it nor any backup of it is left.

A store says which machines are in it, what they are, who wrote them and up to when. It does not say who the
people were, nor a retention policy: gateways have that in their own configuration and state. So a rebuild
makes a vault and a key for gateways to enrol with again; what they protect and keep they then report, and the
server takes it over as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import create_file
from secondsite.gateway.recovery.rescue import Rescue, StoreEmpty
from secondsite.gateway.target.receive import WRITER_BYTES_MAX, writer_name
from secondsite.journal.chain import Journal
from secondsite.journal.manifest import open_definition
from secondsite.journal.store import ObjectMissing
from secondsite.model.ids import MachineId
from secondsite.server.config import ServerConfig
from secondsite.server.main import Server
from secondsite.server.people.roles import THE_SERVER
from secondsite.transfer.backups import STORE_PREFIX

PLAN_VERSION = 1


class ServerNotNew(SecondsiteError):
    """A rebuild never mixes with what is there."""

    code = "rebuild.server-not-new"
    outcome = Outcome.REFUSED
    happened = "The server's database {where} has vaults already."
    cause = "It is in use, or was rebuilt or restored before."
    action = (
        "Rebuild into a new one, or go on with the one that is there; nothing was changed. "
        "RUNBOOK.md, server rebuilt from the stores."
    )


class PlannedDisk(msgspec.Struct, frozen=True, rename="camel"):
    """One disk of a machine at its newest point."""

    id: str
    size_bytes: int
    base: str  # where its base image is; empty: all is in the journal


class PlannedMachine(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One machine of a store. problem: why nothing more is known of it."""

    machine: str
    name: str = ""
    store: str
    source: str = ""  # the gateway that writes it, by its claim
    epoch: int = 0
    points: int = 0
    newest: int = 0
    newest_at: str = ""
    disks: tuple[PlannedDisk, ...] = ()
    definition: str = ""  # its format; empty: not readable
    networks: dict[str, str] = {}
    pools: dict[str, str] = {}
    problem: str = ""


class Plan(msgspec.Struct, frozen=True, rename="camel"):
    """What the stores tell. backups: of a server, which would bring back more than a rebuild."""

    version: int
    stores: tuple[str, ...]
    gateways: tuple[str, ...]
    machines: tuple[PlannedMachine, ...]
    backups: int


def plan(stores: Sequence[str], key_file: Path, credentials: Path | None = None) -> Plan:
    """Read the stores; changes nothing. Raises StoreEmpty (no machine is in any of them), KeyFileInvalid."""
    machines: list[PlannedMachine] = []
    backups = 0
    for url in stores:
        rescue = Rescue(url, key_file, credentials)
        try:
            backups += sum(1 for _ in rescue.store.list(STORE_PREFIX))
            with contextlib.suppress(StoreEmpty):
                machines += [_machine(rescue, replica.machine, url) for replica in rescue.replicas()]
        finally:
            rescue.store.close()
    if not machines:
        raise StoreEmpty(store=", ".join(stores))
    writers = sorted({one.source for one in machines if one.source})
    return Plan(PLAN_VERSION, tuple(stores), tuple(writers), tuple(machines), backups)


def _machine(rescue: Rescue, machine: MachineId, url: str) -> PlannedMachine:
    journal = Journal(rescue.store, machine, rescue.vault)
    try:
        head, points, state = journal.head(), journal.points(), journal.state()
        if head.claim is not None:
            source = head.claim.claimant
        else:
            source = ""
            with contextlib.suppress(ObjectMissing):
                name = writer_name(machine, head.epoch)
                source = rescue.store.get(name, size_bytes_max=WRITER_BYTES_MAX).decode()
        if not points:
            return PlannedMachine(
                machine=machine, store=url, source=source, epoch=head.epoch, problem="it has no point"
            )
        newest = points[-1]
        definition = open_definition(newest.definition, rescue.vault, machine)
    except SecondsiteError as error:
        return PlannedMachine(machine=machine, store=url, problem=str(error))
    disks = []
    for disk in newest.disks:
        base = state.base(disk.id)
        disks.append(PlannedDisk(disk.id, disk.size_bytes, base.locator if base is not None else ""))
    mapping = definition.mapping
    return PlannedMachine(
        machine=machine,
        name=newest.machine_name,
        store=url,
        source=source,
        epoch=head.epoch,
        points=len(points),
        newest=newest.number,
        newest_at=newest.given_at,
        disks=tuple(disks),
        definition=definition.format,
        networks=mapping.networks if mapping is not None else {},
        pools=mapping.pools if mapping is not None else {},
    )


class Rebuilt(msgspec.Struct, frozen=True, rename="camel"):
    """A new server that gateways can enter."""

    vault: str
    registration_key: str  # the file it is in
    gateways: tuple[str, ...]
    machines: int


def rebuild(found: Plan, config: ServerConfig, *, vault: str, key_out: Path, clock: Clock) -> Rebuilt:
    """Make the vault in a server that has none, and a registration key for its gateways.

    Raises ServerNotNew, InvalidInput, or what opening the server raises.
    """
    server = Server(config, clock=clock)
    services = server.open()
    try:
        assert services.identity is not None
        identity = services.identity
        if identity.vaults.all():
            raise ServerNotNew(where=services.database.where)
        made = identity.vaults.create(vault, description="Rebuilt from its replica stores")
        key, _ = identity.keys.create(made.id, url=config.reached_at(), by=THE_SERVER.name)
        create_file(key_out, key.text().encode() + b"\n", mode=0o600)

        detail: dict[str, str | int | bool | None] = {
            "stores": ", ".join(found.stores)[:500],
            "machines": len(found.machines),
        }
        services.database.run(
            lambda connection: services.audit.append(
                connection, THE_SERVER, "server.rebuild", made.friendly_name, vault=made.id, detail=detail
            )
        )
        return Rebuilt(made.friendly_name, str(key_out), found.gateways, len(found.machines))
    finally:
        server.stop()
