"""A gateway's parts as a target, made from its configuration: its store, and all that reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass

from secondsite.fabrics.base import Fabric
from secondsite.gateway.adopt.room import TargetSite
from secondsite.gateway.adopt.service import Adoptions
from secondsite.gateway.common.listenport import cannot_listen
from secondsite.gateway.common.room import free_bytes
from secondsite.gateway.parts.common import Parts
from secondsite.gateway.parts.failover import open_recovery
from secondsite.gateway.recovery.deletion import Deletions
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.basehost import end_idle
from secondsite.gateway.target.bases import base_opener, bases_under
from secondsite.gateway.target.digestservice import DigestService
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.holds import Holds
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.gateway.target.retention import Retention
from secondsite.gateway.target.retention_report import RetentionReports
from secondsite.gateway.target.retention_source import policies_of
from secondsite.gateway.target.scrub import Scrubs
from secondsite.gateway.target.seedimport import SeedImports
from secondsite.gateway.uplink.names import names_of
from secondsite.gateway.uplink.serverside import peer_rules
from secondsite.journal.chain import Journal, machines
from secondsite.journal.store import ObjectStore
from secondsite.journal.stores import local_directory
from secondsite.model.points import Claim, Point
from secondsite.transfer.ingest import IngestServer


@dataclass(frozen=True)
class Received:
    """Of a target that listens for points."""

    receiver: GatewayReceiver
    address: tuple[str, int]
    reports: RetentionReports
    adoptions: Adoptions
    seed_imports: SeedImports


@dataclass(frozen=True)
class Target:
    """Of a gateway with a store; `received` is None where it does not listen."""

    store: ObjectStore
    recovery: Recovery
    scrubs: Scrubs
    holds: Holds
    received: Received | None
    deletions: Deletions


def open_target(parts: Parts, store: ObjectStore, fabric: Fabric | None) -> Target:
    """All of it, running."""
    config = parts.config
    recovery = _open_recovery(parts, store, fabric)
    scrubs = _open_scrubs(parts, store)
    received = retention = None
    if config.listen is not None:
        retention = _open_retention(parts, store, scrubs, recovery)
        received = _open_received(parts, store, fabric, recovery, retention)
    holds = Holds(
        recovery.journal,
        clock=parts.clock,
        events=parts.events,
        served=lambda machine: [export.holder for export in recovery.exports(machine)],
        released=retention.look_now if retention is not None else lambda: None,
    )
    deletions = _open_deletions(parts, store, recovery, received.receiver if received is not None else None)
    deletions.is_gone = lambda claim: fabric is not None and _is_gone(parts, fabric, claim)
    deletions.start()
    return Target(store, recovery, scrubs, holds, received, deletions)


def _open_recovery(parts: Parts, store: ObjectStore, fabric: Fabric | None) -> Recovery:
    recovery, failovers = open_recovery(
        parts.config,
        store,
        parts.vault,
        fabric=fabric,
        former=parts.failing_over.fencing,
        clock=parts.clock,
        events=parts.events,
        names=names_of(parts.config, parts.desired, parts.clock),
    )
    parts.stop.callback(recovery.close)
    parts.stop.callback(failovers.close)
    parts.failing_over.failovers = failovers
    return recovery


def _open_scrubs(parts: Parts, store: ObjectStore) -> Scrubs:
    """Verification: on demand wherever there is a store, on a schedule where points are received."""
    config = parts.config
    every = config.scrub.every_hours * 3600 if config.listen is not None else 0
    scrubs = Scrubs(
        store,
        parts.vault,
        state_dir=config.state_dir,
        work_dir=config.cache_dir,
        clock=parts.clock,
        events=parts.events,
        every_seconds=every or None,
        bytes_per_second=config.scrub.bytes_per_second,
        on_report=parts.repairs.found,
    )
    parts.forget.append(scrubs.forget)
    scrubs.start()
    parts.stop.callback(scrubs.close)
    return scrubs


def _open_retention(parts: Parts, store: ObjectStore, scrubs: Scrubs, recovery: Recovery) -> Retention:
    """The journals' upkeep, where points are received."""
    config = parts.config
    end_idle()
    retention = Retention(
        store,
        policies_of(config.retention.policies(), parts.desired),
        vault=parts.vault,
        open_base=bases_under(config.base_dir, config.base_format) if config.base_dir else None,
        clock=parts.clock,
        events=parts.events,
        verified=scrubs.verified,
        bytes_per_second=config.retention.bytes_per_second,
    )
    recovery.policies = retention.policies
    parts.forget.append(retention.forget)
    retention.start()
    parts.stop.callback(retention.close)
    return retention


def _open_received(
    parts: Parts,
    store: ObjectStore,
    fabric: Fabric | None,
    recovery: Recovery,
    retention: Retention,
) -> Received:
    """What takes points in, listening once all of it is there."""
    config = parts.config
    adoptions = _open_adoptions(parts, store, fabric)
    fingerprints = _open_fingerprints(parts, store)

    def committed(journal: Journal, point: Point) -> None:
        fingerprints.committed(journal, point)
        parts.signals.committed(journal, point)
        retention.committed(journal, point)
        parts.repairs.committed(journal, point)

    receiver = GatewayReceiver(
        store,
        vault=parts.vault,
        peers=peer_rules(config),
        clock=parts.clock,
        events=parts.events,
        fingerprints=fingerprints.of,
        on_commit=committed,
        digests=DigestService(fingerprints, vault=parts.vault, bases_of=base_opener, clock=parts.clock),
        repairs=parts.repairs.wanted,
        adoptions=adoptions,
    )
    address = _listen(parts, store, receiver)
    imports = SeedImports(receiver, vault=parts.vault, clock=parts.clock, events=parts.events)
    parts.stop.callback(imports.close)
    reports = RetentionReports(recovery.journal, retention, clock=parts.clock)
    return Received(receiver, address, reports, adoptions, imports)


def _open_adoptions(parts: Parts, store: ObjectStore, fabric: Fabric | None) -> Adoptions:
    config = parts.config
    volumes = (local_directory(store.url), config.base_dir)
    adoptions = Adoptions(
        store,
        vault=parts.vault,
        state_dir=config.state_dir,
        cache_dir=config.cache_dir,
        site=TargetSite(fabric.machines if fabric is not None else list, [path for path in volumes if path]),
        clock=parts.clock,
        events=parts.events,
    )
    adoptions.start()
    parts.stop.callback(adoptions.close)
    return adoptions


def _open_fingerprints(parts: Parts, store: ObjectStore) -> Fingerprints:
    fingerprints = Fingerprints(
        parts.config.cache_dir / "fingerprints",
        vault=parts.vault,
        bases_of=base_opener,
        clock=parts.clock,
        events=parts.events,
    )
    fingerprints.let_go(Journal(store, machine, parts.vault) for machine in machines(store))
    parts.forget.append(fingerprints.forget)
    parts.stop.callback(fingerprints.close)
    return fingerprints


def _listen(parts: Parts, store: ObjectStore, receiver: GatewayReceiver) -> tuple[str, int]:
    config, listen = parts.config, parts.config.listen
    assert listen is not None, "only then points are received"
    server = IngestServer(
        receiver,
        config.tls.files(),
        (listen.host, listen.port),
        name=config.name,
        clock=parts.clock,
        events=parts.events,
        room=lambda: free_bytes(path for path in (local_directory(store.url), config.base_dir) if path),
    )
    try:
        address = server.start()
    except OSError as error:
        raise cannot_listen(listen.host, listen.port, error) from error
    parts.stop.callback(server.close)
    parts.reloads.append(server.reload)
    return address


def _open_deletions(
    parts: Parts, store: ObjectStore, recovery: Recovery, receiver: GatewayReceiver | None
) -> Deletions:
    """What is being deleted is not listed or written any more."""
    deletions = Deletions(
        store,
        recovery,
        parts.config.state_dir / "deletions",
        base_dir=parts.config.base_dir,
        desired=parts.desired,
        clock=parts.clock,
        events=parts.events,
    )
    recovery.hidden = deletions.under_way
    if receiver is not None:
        receiver.closed = deletions.why_closed
        if parts.failing_over.failovers is not None:
            receiver.committed = parts.failing_over.failovers.is_committed
        deletions.forgotten_by.append(receiver.forget)
    deletions.forgotten_by += parts.forget
    parts.stop.callback(deletions.close)
    return deletions


def _is_gone(parts: Parts, fabric: Fabric, claim: Claim) -> bool:
    """Whether this site took a machine over and committed that, and has nothing of it any more.

    Raises what the fabric raises: what it cannot tell may be there.
    """
    failovers = parts.failing_over.failovers
    if failovers is None or claim.claimant != parts.config.name or not failovers.is_committed(claim):
        return False
    if parts.desired.get(claim.machine) is not None:  # it can be made from its points at another site
        return False
    return all(found.id != claim.machine for found in fabric.machines())
