"""A gateway's parts as a source, made from its configuration: what is protected, and ways to peers."""

from __future__ import annotations

import random

from secondsite.base.units import MIB
from secondsite.fabrics.base import Fabric
from secondsite.gateway.failover.claim import hand_over, taken_here
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.parts.common import Parts
from secondsite.gateway.parts.failover import start_source
from secondsite.gateway.parts.target import Target
from secondsite.gateway.source.runtime import Protections
from secondsite.gateway.source.ways import Route, Routes
from secondsite.model.ids import MachineId
from secondsite.transfer.bandwidth import TokenBucket
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool

# Segments waiting in memory for the link; with encoders and Python itself below 200 MiB.
SHIP_MEMORY_BYTES = 48 * MIB


def open_source(parts: Parts, fabric: Fabric, fencing: Fencing, target: Target | None) -> Protections:
    """All of it, running. target: this gateway's own store, where it has one."""
    config, clock, events = parts.config, parts.clock, parts.events
    bandwidth = TokenBucket(config.bandwidth_bytes_per_second, clock)
    routes = Routes(
        config.peers,
        lambda peer, url: _open_route(parts, peer, url, bandwidth),
        cache_limit_bytes=config.cache_limit_bytes,
    )
    if config.server is not None:
        routes.tell({peer.name: peer.url for peer in parts.desired.everything().peers})
    parts.stop.callback(routes.close)
    parts.reloads.append(routes.reload)
    failing_over = parts.failing_over
    if target is not None:
        fencing.epoch_here = lambda machine, theirs: _epoch_here(target, machine, theirs)
        fencing.hand_over = lambda held: hand_over(
            target.recovery.journal(held.machine), held, us=config.name, clock=clock
        )
        fencing.taken_here = lambda machine: taken_here(target.recovery.journal(machine), config.name)
    protections = Protections(
        name=config.name,
        fabric=fabric,
        routes=routes,
        vault=parts.vault,
        state_dir=config.state_dir,
        cache_dir=config.cache_dir,
        clock=clock,
        events=events,
        desired=parts.desired,
        limits=parts.limits,
        fence=fencing,
        of_server=config.server is not None,
    )
    fencing.unprotect = protections.handles.end
    if failing_over.failovers is not None:
        protections.require_settled = failing_over.failovers.require_settled
        failing_over.failovers.before_each_run(protections.give_way)
    parts.stop.callback(failing_over.close_source)
    failing_over.stops = start_source(
        config, fencing, protections.handles, fabric=fabric, clock=clock, events=events
    )
    parts.stop.callback(protections.close)
    protections.start()
    return protections


def _epoch_here(target: Target, machine: MachineId, theirs: str) -> int:
    head = target.recovery.journal(machine).head()
    return head.epoch if head.hash != theirs else 0


def _open_route(parts: Parts, peer: str, url: str, bandwidth: TokenBucket) -> Route:
    config = parts.config
    link = HttpsLink(
        url,
        peer,
        config.tls.files(),
        clock=parts.clock,
        connections=config.connections + 1,  # one is for questions and commits
        bandwidth=bandwidth,
        limits=parts.limits,
    )
    spool = Spool(
        config.cache_dir / "spool" / peer,
        limit_bytes=config.cache_limit_bytes,
        identity=config.state_dir / f"spool-{peer}.id",
        events=parts.events,
    )
    shipper = LinkShipper(
        link,
        spool,
        clock=parts.clock,
        chance=random.Random(),  # noqa: S311 - spreads retries, guards nothing
        events=parts.events,
        limits=parts.limits,
        connections=config.connections,
        memory_bytes_max=SHIP_MEMORY_BYTES,
    )
    return Route(link, shipper, spool, url)
