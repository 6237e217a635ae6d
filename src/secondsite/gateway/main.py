"""The gateway's process: everything a site's gateway does, put together from one configuration.

What a gateway does follows from what its configuration names: a store and an address to listen on make it a
target, a fabric and peers make it a source, both make it both.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from pathlib import Path

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.logs import log_json_lines
from secondsite.base.memory import give_back_large_buffers
from secondsite.base.parse import prepare_structs
from secondsite.base.uploads import UploadFigures, Uploads
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.certificates import CertificateWatch
from secondsite.gateway.common.config import GatewayConfig, load_config
from secondsite.gateway.common.desired import DESIRED, DesiredState
from secondsite.gateway.common.enrolgate import open_gate
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.common.fabrics import open_libvirt
from secondsite.gateway.common.limits import PolicyLimits
from secondsite.gateway.control.monitoring import open_metrics_port
from secondsite.gateway.control.readiness import open_checks
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard, open_guard
from secondsite.gateway.keys.rotation import KeyRotation
from secondsite.gateway.parts.common import Parts
from secondsite.gateway.parts.failover import make_fencing
from secondsite.gateway.parts.reverse import open_kept, open_reversals
from secondsite.gateway.parts.server import ServerParts
from secondsite.gateway.parts.source import open_source
from secondsite.gateway.parts.target import Target, open_target
from secondsite.gateway.source.runtime import Protections
from secondsite.gateway.target.repair import Repairs
from secondsite.gateway.target.signals import SignalsWatch
from secondsite.gateway.target.storecheck import open_checked
from secondsite.gateway.target.views import load_key
from secondsite.gateway.uplink.link import ServerLink
from secondsite.gateway.uplink.names import names_of
from secondsite.journal.store import ObjectStore

log = logging.getLogger(__name__)


class Gateway:
    """Every part of one gateway, started in order and stopped in the reverse."""

    def __init__(
        self, config: GatewayConfig, *, fabric: Fabric | None = None, clock: Clock | None = None
    ) -> None:
        """fabric: instead of the configured one (tests)."""
        self._config = config
        self.clock = clock or SystemClock()
        # kept for the server, where there is one
        self._event_files = EventFiles(config.state_dir / "events") if config.server else None
        self.events = EventLog(self.clock, files=self._event_files)
        self._fabric = fabric
        self._vault = load_key(config.vault_key)
        self._stop = contextlib.ExitStack()
        self._server: ServerParts | None = None
        self.parts: Parts | None = None  # once it was started
        self.protections: Protections | None = None
        self.address: tuple[str, int] | None = None  # where points are received

    @property
    def link(self) -> ServerLink | None:
        """To the server."""
        return self._server.link if self._server is not None else None

    def start(self) -> None:
        """Everything up, the control socket last. What was started is stopped again when a part fails."""
        config = self._config
        prepare_structs()
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config.cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            parts = self.parts = self._make_parts()
            fabric = self._open_fabric()
            prepare_structs()  # with those of the fabric's modules
            store = open_checked(config, clock=self.clock, events=self.events)
            target = None
            if fabric is not None and (config.peers or config.server is not None):
                # before what was failed over is gone on with, which may take its place
                parts.failing_over.fencing = make_fencing(
                    config, self._vault, fabric, self.clock, self.events
                )
            if store is not None:
                self._stop.callback(store.close)
                target = open_target(parts, store, fabric)
                self.address = target.received.address if target.received is not None else None
            if fabric is not None and parts.failing_over.fencing is not None:
                self.protections = open_source(parts, fabric, parts.failing_over.fencing, target)
                open_reversals(parts, fabric, target, self.protections.handles)
            open_kept(parts, target, self.protections)
            self._watch_certificate(parts)
            guard = open_guard(config, self._vault, self.clock)
            services = self._services(parts, fabric, target, guard)
            self._answer(services)
            if self._server is not None:
                self._server.follow(
                    self.protections,
                    target,
                    guard,
                    gate=services.gate,
                    failing_over=services.failing_over,
                )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Everything down; machines, exports and test failovers go on without us."""
        self._stop.close()

    def _make_parts(self) -> Parts:
        config, clock, events = self._config, self.clock, self.events
        parts = Parts(
            config=config,
            clock=clock,
            events=events,
            vault=self._vault,
            desired=DesiredState(config.state_dir / DESIRED),
            limits=PolicyLimits(clock, events),
            signals=SignalsWatch(clock=clock, events=events),
            repairs=Repairs(config.state_dir / "repairs", vault=self._vault, clock=clock, events=events),
            stop=self._stop,
        )
        parts.forget.extend([parts.signals.forget, parts.repairs.forget])
        if config.server is not None and self._event_files is not None:
            self._server = ServerParts(parts, config.server, self._event_files)
        return parts

    def _services(
        self, parts: Parts, fabric: Fabric | None, target: Target | None, guard: RecoveryKeyGuard
    ) -> ControlServices:
        """What the control API is a face of."""
        config, server, protections = self._config, self._server, self.protections
        store = target.store if target is not None else None
        received = target.received if target is not None else None
        return ControlServices(
            name=config.name,
            site=config.site,
            clock=self.clock,
            events=self.events,
            fabric=fabric,
            protections=protections,
            verbs=protections.verbs if protections is not None else None,
            recovery_key=guard,
            deletions=target.deletions if target is not None else None,
            key_rotation=self._open_rotation(store, guard),
            recovery=target.recovery if target is not None else None,
            failing_over=parts.failing_over,
            holds=target.holds if target is not None else None,
            signals=parts.signals if target is not None else None,
            reports=received.reports if received is not None else None,
            scrubs=target.scrubs if target is not None else None,
            seed_imports=received.seed_imports if received is not None else None,
            adoptions=received.adoptions if received is not None else None,
            checks=open_checks(
                config, fabric, store, self.clock, names_of(config, parts.desired, self.clock)
            ),
            server_backups=server.backups(store) if server is not None and store is not None else None,
            gate=server.keep(protections) if server is not None else open_gate,
            uploads=lambda: _uploads(protections, store),
        )

    def _answer(self, services: ControlServices) -> None:
        """On the control socket, to Prometheus, and what the server asks for."""
        server = serve_control(services, self._config.control_socket)
        self._stop.callback(server.stop)
        if self._config.metrics.listen is not None:
            self._stop.callback(open_metrics_port(services, self._config.metrics.listen).close)
        if self._server is not None:
            self._server.answer()

    def _watch_certificate(self, parts: Parts) -> None:
        files, clock, events = self._config.tls.files(), self.clock, self.events
        watch = CertificateWatch(files, parts.reloads, clock=clock, events=events)
        watch.start()
        self._stop.callback(watch.close)

    def _open_fabric(self) -> Fabric | None:
        settings = self._config.fabric
        if self._fabric is None and settings is not None:
            self._fabric = open_libvirt(settings, self._config.state_dir, self.clock, self.events)
        if self._fabric is not None:
            self._stop.callback(self._fabric.close)
        return self._fabric

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


def _uploads(protections: Protections | None, store: ObjectStore | None) -> dict[str, UploadFigures]:
    found = protections.uploads() if protections is not None else {}
    sent = getattr(store, "uploads", None)  # of an object store, which is not imported for its name here
    return {**found, store.url: sent.figures} if store is not None and isinstance(sent, Uploads) else found


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
    log_json_lines()
    give_back_large_buffers()
    return serve(Gateway(load_config(config)))
