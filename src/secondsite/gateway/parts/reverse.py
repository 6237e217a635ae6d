"""A gateway's parts for protecting machines the other way round, made from its configuration."""

from __future__ import annotations

from collections.abc import Callable

from secondsite.fabrics.base import Fabric
from secondsite.gateway.parts.common import Parts
from secondsite.gateway.parts.target import Target
from secondsite.gateway.reverse.checks import Looker, Volumes
from secondsite.gateway.reverse.kept import Kept
from secondsite.gateway.reverse.service import Reversals
from secondsite.gateway.source.handles import Handles
from secondsite.gateway.source.runtime import Protections
from secondsite.journal.stores import local_directory
from secondsite.model.ids import MachineId
from secondsite.transfer.protocols import Peer


def open_kept(parts: Parts, target: Target | None, protections: Protections | None) -> None:
    """What follows a commit, where there is a store; goes on with what an earlier process had begun."""
    failovers = parts.failing_over.failovers
    if target is None or failovers is None:
        return
    kept = parts.failing_over.kept = Kept(
        us=parts.config.name,
        records=failovers.records,
        journal=target.recovery.journal,
        protections=protections.statuses if protections is not None else tuple,
        forget=_forget(target),
        delete_points=failovers.delete_points,
        clock=parts.clock,
        events=parts.events,
    )
    kept.resume()
    parts.stop.callback(kept.close)


def _forget(target: Target) -> Callable[[MachineId], None]:
    def forget(machine: MachineId) -> None:
        for each in target.deletions.forgotten_by:
            each(machine)

    return forget


def open_reversals(parts: Parts, fabric: Fabric, target: Target | None, handles: Handles) -> None:
    """Where points are received as well; goes on with what an earlier process had begun."""
    failing_over = parts.failing_over
    if target is None or target.received is None or failing_over.fencing is None:
        return
    receiver = target.received.receiver

    def may_write(name: str, machine: MachineId) -> None:
        receiver.authorise(Peer(name=name), machine)

    config = parts.config
    volumes = Volumes(local_directory(target.store.url), config.base_dir, config.cache_dir)
    reversals = failing_over.reversals = Reversals(
        fabric=fabric,
        fencing=failing_over.fencing,
        protecting=handles,
        adoptions=target.received.adoptions,
        journal=target.recovery.journal,
        forget=_forget(target),
        looker=Looker(fabric, volumes, may_write, parts.clock),
        base_dir=config.base_dir,
        state_dir=config.state_dir,
        clock=parts.clock,
        events=parts.events,
    )
    reversals.resume()
    parts.stop.callback(reversals.close)
