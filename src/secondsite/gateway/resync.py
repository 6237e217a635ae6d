"""What surrounds a resynchronisation: whether it can be compared, and what is told before and after."""

from __future__ import annotations

import threading

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.gateway import plan
from secondsite.gateway.compare import Compared, open_compare
from secondsite.gateway.cycle import Bench, Captured
from secondsite.gateway.seed import Progress
from secondsite.gateway.status import Board
from secondsite.model.events import Severity
from secondsite.transfer.protocols import CommittedPoint, Link


def open_resync(
    bench: Bench,
    link: Link,
    board: Board,
    point: CommittedPoint,
    step: plan.Copy,
    *,
    known: bool,
    cancel: threading.Event,
) -> Compared:
    """Ask for the target's digests of its newest point, and tell what follows from the answer.

    known: the sub-block tables speak of that point, so that it need not wait for a target that makes its
    digests again. One that goes on after a restart was told before.
    """
    known = known and not step.resume  # what the earlier process sent is in no table

    def waits(error: SecondsiteError) -> None:
        board.warn(error.code, f"The resynchronisation of {bench.name} waits: {error}")

    compared = open_compare(
        link,
        bench.machine,
        point,
        {disk: key.id for disk, key in bench.keys.items()},
        clock=bench.clock,
        cancel=cancel,
        wait=not known,
        on_wait=waits,
    )
    if compared.disks:
        how = "it is compared with the target, and only differences are sent"
    elif known:
        how = "only what the table of the target's content does not know is sent"
    else:
        how = f"all of it is sent, since it cannot be compared with the target ({compared.why_not})"
    if not step.resume:
        text = f"everything of {bench.name} is read again, {how}; {step.why}; older points stay valid"
        bench.events.emit("replicate.resync", Severity.WARNING, text, machine=bench.machine)
    return compared


def tell_resynced(bench: Bench, progress: Progress, captured: Captured, compared: Compared | None) -> None:
    """What a resynchronisation came to; nothing of a first copy."""
    if compared is None or progress.differed_bytes is None:
        return
    text = (
        f"resync: {format_bytes(progress.differed_bytes)} of {format_bytes(progress.done_bytes)} differed "
        f"on {bench.name}; {format_bytes(captured.sent_bytes)} were sent, and "
        f"{format_bytes(compared.traffic.bytes)} of digests read"
    )
    bench.events.emit(
        "replicate.resynced",
        Severity.INFORMATION,
        text,
        machine=bench.machine,
        differed_bytes=progress.differed_bytes,
        read_bytes=progress.done_bytes,
        sent_bytes=captured.sent_bytes,
        digest_bytes=compared.traffic.bytes,
    )
