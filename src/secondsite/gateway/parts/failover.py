"""A gateway's parts for recovering machines and failing over, made from its configuration."""

from __future__ import annotations

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.resolving import Unresolved
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.former import Former
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.recovery.exports import Exports, qemu_access
from secondsite.gateway.recovery.injecting import Injector, Records
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.source.handles import Handles
from secondsite.gateway.source.plannedstop import PlannedStops
from secondsite.gateway.target.journals import OpenJournals
from secondsite.gateway.target.pins import Pins
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink


def open_recovery(
    config: GatewayConfig,
    store: ObjectStore,
    vault: VaultKey,
    *,
    fabric: Fabric | None,
    former: Former | None,
    clock: Clock,
    events: EventSink,
    names: Unresolved,
) -> tuple[Recovery, Failovers]:
    """The target's, both resumed: exports first, then what stands on them. Close both, failovers first."""
    # one of them for all that a failover does: a point that comes while a long chain is read anew would have
    # the claim made again and again
    journals = OpenJournals(store, vault)
    exports = Exports(
        directory=config.state_dir / "exports",
        store_url=store.url,
        store_credentials=config.store_credentials,
        key_file=config.vault_key,
        pins=Pins(store, vault, journals.of),
        access=qemu_access(),
        clock=clock,
        events=events,
    )
    socket_dir = config.fabric.socket_dir if config.fabric else config.state_dir / "sockets"
    if config.fabric is None:  # a fabric makes its own, open to the hypervisor's user
        socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    recovery = Recovery(
        store=store,
        vault=vault,
        exports=exports,
        state_dir=config.state_dir,
        socket_dir=socket_dir,
        fabric=fabric,
        mapping=config.mapping.mapping(),
        clock=clock,
        events=events,
        policies=config.retention.policies() if config.listen is not None else None,
        journals=journals,
    )
    failovers = Failovers(
        us=config.name,
        store=store,
        vault=vault,
        exports=exports,
        recovery=recovery,
        state_dir=config.state_dir,
        socket_dir=socket_dir,
        fabric=fabric,
        mapping=config.mapping.mapping(),
        clock=clock,
        events=events,
        base_dir=config.base_dir,
        former=former,
        names=names,
    )
    recovery.look_after(failovers)
    recovery.resume()
    failovers.resume()
    if fabric is not None:
        books = (recovery.test_guests, Records(failovers.settings_guests, failovers.note_injection))
        failovers.injector = Injector(fabric, books, clock, events)
        failovers.injector.start()
    return recovery, failovers


def make_fencing(
    config: GatewayConfig, vault: VaultKey, fabric: Fabric, clock: Clock, events: EventSink
) -> Fencing:
    """The source's; `start_source` once what is protected is known."""
    return Fencing(
        us=config.name,
        fabric=fabric,
        vault=vault,
        state_dir=config.state_dir,
        clock=clock,
        events=events,
        autostart=_owns_autostart(config),
    )


def start_source(
    config: GatewayConfig,
    fencing: Fencing,
    handles: Handles,
    *,
    fabric: Fabric,
    clock: Clock,
    events: EventSink,
) -> PlannedStops:
    """Begin to isolate what is held, and go on with stops. Before the protections' loops begin."""
    stops = PlannedStops(
        handles,
        fabric,
        us=config.name,
        state_dir=config.state_dir,
        autostart=_owns_autostart(config),
        clock=clock,
        events=events,
    )
    stops.held = fencing.get
    fencing.start(handles.ways, handles.begin_again)
    stops.resume()
    return stops


def _owns_autostart(config: GatewayConfig) -> bool:
    return config.fabric is not None and config.fabric.own_autostart
