"""Gathering what the plan of a replication rests on, from the cache, the source and the target's answer."""

from __future__ import annotations

from collections.abc import Sequence

from secondsite.gateway.source import plan
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.cycle import Bench
from secondsite.gateway.source.firstcopying import read_note
from secondsite.gateway.source.healing import Healing
from secondsite.model.events import Severity
from secondsite.transfer.protocols import TargetHead
from secondsite.transfer.shipping import Shipment


def gather(
    us: str,
    bench: Bench,
    head: TargetHead,
    sealed: Sequence[Shipment],
    *,
    healing: Healing,
    known: Checkpoints,
    ordered: str = "",
) -> plan.Facts:
    """The facts now. A cycle that was not sealed is dropped: it is captured again.

    `sealed`: shipments that only wait for their commit, oldest first. A checkpoint the plan needs is looked
    for where the host lists it no more. ordered: why somebody wants everything compared.
    """
    if bench.fence is not None:
        bench.fence.saw(bench.machine, bench.name, head)
    seeding = None
    for shipment in bench.shipper.shipments(bench.machine):
        note = read_note(shipment)
        if note is not None:
            seeding = plan.Seeding(shipment.epoch, note.checkpoint, note.resync, note.adopted)
        elif shipment.proposal is None:
            shipment.discard()
    pending = [
        plan.Pending(s.epoch, s.proposal.checkpoint, s.proposal.parent_checkpoint)
        for s in sealed
        if s.proposal is not None
    ]
    newest = head.point.checkpoint if head.point else ""
    if not plan.is_held(us, head):  # what another writer committed is nothing this source could count from
        healing.find(pending[-1].checkpoint if pending else newest)
    floor = 0
    if bench.fence is not None and head.point_in_epoch is None and not plan.is_held(us, head):
        floor = bench.fence.floor(bench.machine, head)
    taken = bench.fence.elsewhere(bench.machine) if bench.fence is not None else None
    checkpoints = known.usable()
    known.seen([*checkpoints, *(p.checkpoint for p in pending), newest])
    return plan.Facts(
        us,
        head,
        checkpoints,
        pending,
        seeding,
        lost=healing.lost,
        too_much=healing.too_much,
        ordered=ordered,
        floor=floor,
        taken=taken,
    )


def drop_sealed(bench: Bench, sealed: Sequence[Shipment], why: str) -> None:
    """Give up shipments that can never be committed."""
    text = f"{len(sealed)} captured instants of {bench.name} are given up: {why}"
    bench.events.emit("replicate.abandoned", Severity.WARNING, text, machine=bench.machine)
    for shipment in reversed(sealed):
        shipment.discard()


def drop_copy(bench: Bench, why: str) -> None:
    """Give up an interrupted copy."""
    text = f"the copy of {bench.name} begins again: {why}"
    bench.events.emit("replicate.copy-restarted", Severity.WARNING, text, machine=bench.machine)
    for shipment in bench.shipper.shipments(bench.machine):
        if read_note(shipment) is not None:
            shipment.discard()
