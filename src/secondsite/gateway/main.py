"""The gateway's process: everything a site's gateway does, put together from one configuration.

What a gateway does follows from what its configuration names: a store and an address to listen on make it a
target, a fabric and peers make it a source, both make it both.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.base.memory import give_back_large_buffers
from secondsite.base.units import MIB
from secondsite.fabrics.base import Fabric
from secondsite.gateway.adopt import Adoptions
from secondsite.gateway.adoptroom import TargetSite
from secondsite.gateway.basehost import end_idle
from secondsite.gateway.bases import base_opener, bases_under
from secondsite.gateway.calls import Uplink, over_socket
from secondsite.gateway.certificates import CertificateWatch
from secondsite.gateway.config import FabricSettings, GatewayConfig, load_config
from secondsite.gateway.control import ControlServices
from secondsite.gateway.controlserver import serve_control
from secondsite.gateway.digestservice import DigestService
from secondsite.gateway.enrolgate import Gate, open_gate
from secondsite.gateway.enrolkeeper import ServerKeeper, facts_of
from secondsite.gateway.events import EventLog
from secondsite.gateway.exports import Exports, qemu_access
from secondsite.gateway.fences import Fences
from secondsite.gateway.fingerprints import Fingerprints
from secondsite.gateway.holds import Holds
from secondsite.gateway.keyrotation import KeyRotation
from secondsite.gateway.pins import Pins
from secondsite.gateway.receive import GatewayReceiver, PeerRule
from secondsite.gateway.recover import Recovery
from secondsite.gateway.recoverykey import RecoveryKeyGuard
from secondsite.gateway.repair import Repairs
from secondsite.gateway.retention import Retention
from secondsite.gateway.retention_report import RetentionReports
from secondsite.gateway.runtime import Protections, Route
from secondsite.gateway.scrub import Scrubs
from secondsite.gateway.seedimport import SeedImports
from secondsite.gateway.signals import SignalsWatch
from secondsite.gateway.storecheck import open_checked
from secondsite.gateway.uplink import EnrolledClients, ServerCalls
from secondsite.gateway.views import load_key
from secondsite.journal.chain import Journal, machines
from secondsite.journal.store import ObjectStore
from secondsite.journal.stores import local_directory
from secondsite.model.events import EventSink
from secondsite.model.ids import machine_id
from secondsite.model.points import Point
from secondsite.transfer.bandwidth import TokenBucket
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool

log = logging.getLogger(__name__)

# Segments waiting in memory for the link; with encoders and Python itself below 200 MiB.
SHIP_MEMORY_BYTES = 48 * MIB


class Gateway:
    """Every part of one gateway, started in order and stopped in the reverse."""

    def __init__(
        self, config: GatewayConfig, *, fabric: Fabric | None = None, clock: Clock | None = None
    ) -> None:
        """fabric: instead of the configured one (tests)."""
        self._config = config
        self.clock = clock or SystemClock()
        self.events = EventLog(self.clock)
        self._fabric = fabric
        self._vault = load_key(config.vault_key)
        self._signals = SignalsWatch(clock=self.clock, events=self.events)
        self._repairs = Repairs(
            config.state_dir / "repairs", vault=self._vault, clock=self.clock, events=self.events
        )
        self._stop = contextlib.ExitStack()
        self._reloads: list[Callable[[], None]] = []  # of everything that uses the certificate
        self.protections: Protections | None = None
        self.address: tuple[str, int] | None = None

    def start(self) -> None:
        """Everything up, the control socket last. What was started is stopped again when a part fails."""
        config = self._config
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config.cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            fabric = self._open_fabric()
            store = open_checked(config, clock=self.clock, events=self.events)
            recovery = holds = reports = scrubs = seed_imports = adoptions = None
            if store is not None:
                self._stop.callback(store.close)
                recovery = self._open_recovery(store, fabric)
                scrubs = self._open_scrubs(store)
                retention = self._open_retention(store, scrubs)
                holds = self._open_holds(recovery, retention)
                if retention is not None:
                    reports = RetentionReports(recovery.journal, retention, clock=self.clock)
                    adoptions = self._open_adoptions(store, fabric)
                    seed_imports = self._open_target(store, retention, adoptions)
            if fabric is not None and config.peers:
                self.protections = self._open_source(fabric)
            watch = CertificateWatch(config.tls.files(), self._reloads, clock=self.clock, events=self.events)
            watch.start()
            self._stop.callback(watch.close)
            guard = RecoveryKeyGuard(
                self._vault,
                own_file=config.vault_key,
                store_root=local_directory(config.store) if config.store else None,
                clock=self.clock,
            )
            services = ControlServices(
                name=config.name,
                site=config.site,
                clock=self.clock,
                events=self.events,
                fabric=fabric,
                protections=self.protections,
                recovery_key=guard,
                key_rotation=self._open_rotation(store, guard),
                recovery=recovery,
                holds=holds,
                signals=self._signals if store is not None else None,
                reports=reports,
                scrubs=scrubs,
                seed_imports=seed_imports,
                adoptions=adoptions,
                gate=self._open_server(),
            )
            server = serve_control(services, config.control_socket)
            self._stop.callback(server.stop)
            self._open_uplink()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Everything down; machines, exports and test failovers go on without us."""
        self._stop.close()

    def _open_server(self) -> Gate:
        """Stay in touch with the server this gateway belongs to, where there is one."""
        settings = self._config.server
        if settings is None:
            return open_gate
        protections = self.protections
        keeper = ServerKeeper(
            settings.directory,
            clock=self.clock,
            events=self.events,
            chance=random.Random(),  # noqa: S311 - spreads renewals, guards nothing
            facts=lambda: facts_of(protections.statuses() if protections else ()),
        )
        keeper.start()
        self._stop.callback(keeper.close)
        return keeper.check_may_work

    def _open_uplink(self) -> None:
        """Do what the server asks for, on the control API, which answers from now on."""
        if self._config.server is None:
            return
        clients = EnrolledClients(self._config.server.directory)
        uplink = Uplink(
            ServerCalls(clients.open, clients.serial),
            over_socket(self._config.control_socket),
            Fences(self._config.state_dir / "fences.json"),
            self.clock,
        )
        uplink.start()
        self._stop.callback(uplink.close)

    def _open_fabric(self) -> Fabric | None:
        settings = self._config.fabric
        if self._fabric is None and settings is not None:
            self._fabric = open_libvirt(settings, self._config.state_dir, self.clock, self.events)
        if self._fabric is not None:
            self._stop.callback(self._fabric.close)
        return self._fabric

    def _open_recovery(self, store: ObjectStore, fabric: Fabric | None) -> Recovery:
        config = self._config
        exports = Exports(
            directory=config.state_dir / "exports",
            store_url=store.url,
            store_credentials=config.store_credentials,
            key_file=config.vault_key,
            pins=Pins(store, self._vault),
            access=qemu_access(),
            clock=self.clock,
            events=self.events,
        )
        socket_dir = config.fabric.socket_dir if config.fabric else config.state_dir / "sockets"
        if config.fabric is None:  # a fabric makes its own, open to the hypervisor's user
            socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        recovery = Recovery(
            store=store,
            vault=self._vault,
            exports=exports,
            state_dir=config.state_dir,
            socket_dir=socket_dir,
            fabric=fabric,
            mapping=config.mapping.mapping(),
            clock=self.clock,
            events=self.events,
            policies=config.retention.policies() if config.listen is not None else None,
        )
        recovery.resume()
        self._stop.callback(recovery.close)
        return recovery

    def _open_scrubs(self, store: ObjectStore) -> Scrubs:
        """Verification: on demand wherever there is a store, on a schedule where points are received."""
        config = self._config
        every = config.scrub.every_hours * 3600 if config.listen is not None else 0
        scrubs = Scrubs(
            store,
            self._vault,
            state_dir=config.state_dir,
            work_dir=config.cache_dir,
            clock=self.clock,
            events=self.events,
            every_seconds=every or None,
            bytes_per_second=config.scrub.bytes_per_second,
            on_report=self._repairs.found,
        )
        scrubs.start()
        self._stop.callback(scrubs.close)
        return scrubs

    def _open_retention(self, store: ObjectStore, scrubs: Scrubs) -> Retention | None:
        """The journals' upkeep, where points are received; None where they are not."""
        config = self._config
        if config.listen is None:
            return None
        end_idle()
        retention = Retention(
            store,
            config.retention.policies(),
            vault=self._vault,
            open_base=bases_under(config.base_dir, config.base_format) if config.base_dir else None,
            clock=self.clock,
            events=self.events,
            verified=scrubs.verified,
            bytes_per_second=config.retention.bytes_per_second,
        )
        retention.start()
        self._stop.callback(retention.close)
        return retention

    def _open_rotation(self, store: ObjectStore | None, guard: RecoveryKeyGuard) -> KeyRotation:
        """Once nothing else changes how things are sealed; a gateway without a store only tells its key."""
        rotation = KeyRotation(
            self._vault,
            store if self._config.listen is not None else None,
            guard=guard,
            name=self._config.name,
            state_dir=self._config.state_dir,
            clock=self.clock,
            events=self.events,
        )
        rotation.start()
        self._stop.callback(rotation.close)
        return rotation

    def _open_holds(self, recovery: Recovery, retention: Retention | None) -> Holds:
        return Holds(
            recovery.journal,
            clock=self.clock,
            events=self.events,
            served=lambda machine: [export.holder for export in recovery.exports(machine)],
            released=retention.look_now if retention else lambda: None,
        )

    def _open_adoptions(self, store: ObjectStore, fabric: Fabric | None) -> Adoptions:
        config = self._config
        volumes = (local_directory(store.url), config.base_dir)
        adoptions = Adoptions(
            store,
            vault=self._vault,
            state_dir=config.state_dir,
            cache_dir=config.cache_dir,
            site=TargetSite(
                fabric.machines if fabric is not None else list, [path for path in volumes if path]
            ),
            clock=self.clock,
            events=self.events,
        )
        adoptions.start()
        self._stop.callback(adoptions.close)
        return adoptions

    def _open_target(self, store: ObjectStore, retention: Retention, adoptions: Adoptions) -> SeedImports:
        config = self._config
        assert config.listen is not None

        def committed(journal: Journal, point: Point) -> None:
            fingerprints.committed(journal, point)
            self._signals.committed(journal, point)
            retention.committed(journal, point)
            self._repairs.committed(journal, point)

        fingerprints = Fingerprints(
            config.cache_dir / "fingerprints",
            vault=self._vault,
            bases_of=base_opener,
            clock=self.clock,
            events=self.events,
        )
        fingerprints.let_go(Journal(store, machine, self._vault) for machine in machines(store))
        self._stop.callback(fingerprints.close)
        receiver = GatewayReceiver(
            store,
            vault=self._vault,
            peers=_peer_rules(config),
            clock=self.clock,
            events=self.events,
            fingerprints=fingerprints.of,
            on_commit=committed,
            digests=DigestService(fingerprints, vault=self._vault, bases_of=base_opener, clock=self.clock),
            repairs=self._repairs.wanted,
            adoptions=adoptions,
        )
        server = IngestServer(
            receiver,
            config.tls.files(),
            (config.listen.host, config.listen.port),
            name=config.name,
            clock=self.clock,
            events=self.events,
        )
        try:
            self.address = server.start()
        except OSError as error:
            where = f"{config.listen.host}:{config.listen.port}"
            raise InvalidInput(what=f"the address {where}", why=str(error)) from error
        self._stop.callback(server.close)
        self._reloads.append(server.reload)
        imports = SeedImports(receiver, vault=self._vault, clock=self.clock, events=self.events)
        self._stop.callback(imports.close)
        return imports

    def _open_source(self, fabric: Fabric) -> Protections:
        config = self._config
        bandwidth = TokenBucket(config.bandwidth_bytes_per_second, self.clock)
        routes = {peer: self._route(peer, url, bandwidth) for peer, url in config.peers.items()}
        protections = Protections(
            name=config.name,
            fabric=fabric,
            routes=routes,
            vault=self._vault,
            state_dir=config.state_dir,
            cache_dir=config.cache_dir,
            clock=self.clock,
            events=self.events,
        )
        self._stop.callback(protections.close)
        protections.start()
        return protections

    def _route(self, peer: str, url: str, bandwidth: TokenBucket) -> Route:
        config = self._config
        link = HttpsLink(
            url,
            peer,
            config.tls.files(),
            clock=self.clock,
            connections=config.connections + 1,  # one is for questions and commits
            bandwidth=bandwidth,
        )
        self._stop.callback(link.close)
        self._reloads.append(link.reload)
        spool = Spool(
            config.cache_dir / "spool" / peer,
            limit_bytes=config.cache_limit_bytes // len(config.peers),
            identity=config.state_dir / f"spool-{peer}.id",
            events=self.events,
        )
        shipper = LinkShipper(
            link,
            spool,
            clock=self.clock,
            chance=random.Random(),  # noqa: S311 - spreads retries, guards nothing
            events=self.events,
            connections=config.connections,
            memory_bytes_max=SHIP_MEMORY_BYTES,
        )
        self._stop.callback(shipper.close)
        return Route(link, shipper)


def open_libvirt(settings: FabricSettings, state_dir: Path, clock: Clock, events: EventSink) -> Fabric:
    """The libvirt host with its guard running beside us."""
    from secondsite.fabrics.libvirt.fabric import LibvirtFabric  # noqa: PLC0415 - loads libvirt's library
    from secondsite.fabrics.libvirt.guard_client import GuardClient, GuardSettings  # noqa: PLC0415

    guard = GuardClient(
        GuardSettings(
            uri=settings.uri,
            socket=settings.guard_socket or settings.socket_dir / "guard.sock",
            scratch_dir=settings.scratch_dir,
            socket_dir=settings.socket_dir,
            event_log=state_dir / "guard-events.jsonl",
        ),
        clock,
    )
    guard.ensure()
    return LibvirtFabric(
        settings.uri,
        scratch_dir=settings.scratch_dir,
        socket_dir=settings.socket_dir,
        guard=guard,
        clock=clock,
        events=events,
    )


def _peer_rules(config: GatewayConfig) -> dict[str, PeerRule]:
    rules = {}
    for peer in {*config.peers, *config.peer_machines}:
        listed = config.peer_machines.get(peer)
        rules[peer] = PeerRule(None if listed is None else frozenset(machine_id(text) for text in listed))
    return rules


def serve(gateway: Gateway) -> int:
    """Run until SIGTERM or SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    gateway.start()
    log.info("gateway runs")
    ended.wait()
    gateway.stop()
    return 0


def run(config: Path) -> int:
    """``secondsite gateway``: read the configuration and serve. Raises InvalidInput for a wrong one."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    give_back_large_buffers()
    return serve(Gateway(load_config(config)))
