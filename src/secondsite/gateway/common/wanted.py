"""Taking what a server wants into the desired state: what may be, what is refused and why.

A document is taken item by item. An item's revision only grows here, also over its end: a server that was
restored from an old backup overwrites nothing, and learns what this gateway has from its report. A machine
that was protected at the gateway itself becomes the server's, without a new copy. What is not named in a
document is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from secondsite.base.crash import crash_point, mark
from secondsite.gateway.common.desired import DesiredState, Everything, Protection
from secondsite.model.ids import MachineId, disk_id, machine_id
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.transfer.desired import ITEMS_MAX, Desired, Peer, WantedProtection, WantedReplica

BEFORE_TAKEN = mark("wanted.before-taken")
AFTER_TAKEN = mark("wanted.after-taken")

SERVER = "the server"


@dataclass
class Taken:
    """What a document changed. refused: item -> sentences."""

    changed: list[tuple[Protection | None, Protection]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    generation: int = 0


def is_old(now: Everything, document: Desired, server: str) -> bool:
    """Whether a document is older than what was taken of the same server."""
    return now.server == server and document.generation < now.generation


def take(state: DesiredState, document: Desired, server: str, refused: Mapping[str, str]) -> Taken:
    """Take a document in one durable write. refused: items that cannot be taken, for reasons found before.

    Nothing changes for a document that is old.
    """
    taken = Taken()

    def apply(now: Everything) -> Everything:
        if is_old(now, document, server):
            taken.generation, taken.peers = now.generation, now.peers
            return now
        if now.server != server:  # another server counts its items and revisions anew
            now = _of_nobody(now, server)
        taken.refused |= refused
        protections, ended = dict(now.protections), dict(now.ended)
        for wanted in document.protections:
            _take_protection(now, wanted, protections, ended, taken)
        replicas = dict(now.replicas)
        for replica in document.replicas:
            _take_replica(replica, replicas, taken)
        _forget_turned_back(replicas, document)
        taken.generation, taken.peers = document.generation, peers_after(now, document)
        return dataclasses.replace(
            now,
            generation=document.generation,
            protections=protections,
            replicas=_bounded(replicas, document.replicas),
            peers=taken.peers,
            ended=dict(list(ended.items())[-ITEMS_MAX:]),
        )

    crash_point(BEFORE_TAKEN)
    state.change(apply)
    crash_point(AFTER_TAKEN)
    return taken


def _of_nobody(now: Everything, server: str) -> Everything:
    """What is protected goes on as if by this gateway itself, for the new server to take over."""
    freed = {
        machine: msgspec.structs.replace(protection, item="", revision=0, paused=False)
        for machine, protection in now.protections.items()
    }
    return Everything(protections=freed, replicas={}, peers=now.peers, server=server)


def _take_protection(
    now: Everything,
    wanted: WantedProtection,
    protections: dict[MachineId, Protection],
    ended: dict[str, int],
    taken: Taken,
) -> None:
    machine = machine_id(wanted.machine)
    before = protections.get(machine)
    why = taken.refused.get(wanted.item) or why_not(now, before, wanted)
    if why:
        taken.refused[wanted.item] = why
        return
    if before is None and not wanted.enabled:
        # it never came, or is gone already
        ended[wanted.item] = max(wanted.revision, ended.pop(wanted.item, 0))
        return
    made = merged(before, wanted)
    if made != before:
        protections[machine] = made
        taken.changed.append((before, made))


def why_not(now: Everything, before: Protection | None, wanted: WantedProtection) -> str:
    """Why an item cannot be taken over what is there, in sentences; empty: it can."""
    ended_at = now.ended.get(wanted.item)
    # that it is to end is true already, whoever says it: a restored server may count from far below
    if ended_at is not None and wanted.enabled and wanted.revision <= ended_at:
        return f"Revision {wanted.revision} is older than {ended_at}, with which the item was ended here."
    if before is None:
        return ""
    if not wanted.enabled and before.item != wanted.item:
        return f"{before.name} is protected here, but not as this item; it is left alone."
    if not before.enabled and wanted.enabled:
        return f"The protection of {before.name} is being ended; it can begin again once that is through."
    if before.item == wanted.item:
        if wanted.revision < before.revision:
            return f"Revision {wanted.revision} is older than {before.revision}, which this gateway has."
        if wanted.revision == before.revision and not _says_the_same(before, wanted):
            return (
                f"Revision {wanted.revision} says otherwise than the one of the same number that was taken."
            )
    elif before.item:
        return f"{before.name} is protected here as the item {before.item} of the server already."
    if wanted.enabled and before.peer != wanted.peer:
        return (
            f"{before.name} is protected at {before.peer}, and not moved to {wanted.peer}: end its "
            "protection first. Its points there stay."
        )
    return ""


def _says_the_same(before: Protection, wanted: WantedProtection) -> bool:
    """`resync` may be above the server's: somebody here may have asked."""
    ours = before.as_wanted()
    return wanted.model_copy(update={"resync": ours.resync, "name": ours.name}) == ours


def merged(before: Protection | None, wanted: WantedProtection) -> Protection:
    """What a protection becomes.

    A pause by a person here stays until the server says something else about pausing than before, and a
    comparison that was done here is not done again.
    """
    mapping = wanted.mapping
    made = Protection(
        machine=machine_id(wanted.machine),
        name=wanted.name,
        peer=wanted.peer,
        disks=None if wanted.disks is None else tuple(disk_id(disk) for disk in wanted.disks),
        left_out=tuple(disk_id(disk) for disk in wanted.left_out),
        policy=wanted.policy,
        policy_id=wanted.policy_id,
        policy_name=wanted.policy_name,
        mapping=SiteMapping(
            networks=mapping.networks, pools=mapping.pools, default_pool=mapping.default_pool
        ),
        item=wanted.item,
        revision=wanted.revision,
        paused=wanted.paused,
        paused_by=SERVER if wanted.paused else "",
        resync=wanted.resync,
        enabled=wanted.enabled,
    )
    if before is None:
        return made
    paused_by = before.paused_by
    if wanted.paused != before.paused:
        paused_by = (before.paused_by or SERVER) if wanted.paused else ""
    return msgspec.structs.replace(
        made,
        name=before.name,
        paused_by=paused_by,
        resync=max(before.resync, wanted.resync),
        resynced=before.resynced,
        enabled=wanted.enabled and before.enabled,
    )


def _take_replica(wanted: WantedReplica, replicas: dict[MachineId, WantedReplica], taken: Taken) -> None:
    machine = machine_id(wanted.machine)
    before = replicas.get(machine)
    if before is not None and before.item == wanted.item and wanted.revision < before.revision:
        taken.refused[wanted.item] = (
            f"Revision {wanted.revision} of the replica is older than {before.revision}, "
            "which this gateway has."
        )
        return
    replicas[machine] = wanted


def _forget_turned_back(replicas: dict[MachineId, WantedReplica], document: Desired) -> None:
    """Drop what is over of machines that are to be copied from here (again), and that nobody names.

    The way back was begun and taken back, or was another time's: kept, it would close this site to the next.
    """
    named = {machine_id(replica.machine) for replica in document.replicas}
    for wanted in document.protections:
        machine = machine_id(wanted.machine)
        over = replicas.get(machine)
        if wanted.enabled and machine not in named and over is not None and not over.enabled:
            del replicas[machine]


def _bounded(
    replicas: dict[MachineId, WantedReplica], named: Sequence[WantedReplica]
) -> dict[MachineId, WantedReplica]:
    """Without the oldest of those that are over and that nobody names, where there are too many."""
    kept = {machine_id(replica.machine) for replica in named}
    over = [machine for machine, replica in replicas.items() if machine not in kept and not replica.enabled]
    for machine in over[: max(0, len(replicas) - ITEMS_MAX)]:
        del replicas[machine]
    return replicas


def peers_after(now: Everything, document: Desired) -> tuple[Peer, ...]:
    """Those of the document, and those it no longer names that are still written to."""
    named = {peer.name for peer in document.peers}
    used = {protection.peer for protection in now.protections.values()}
    return (*document.peers, *(peer for peer in now.peers if peer.name in used - named))
