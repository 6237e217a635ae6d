"""What surrounds a comparison of everything: whether it can be done, and what is told before and after.

Compared is a resynchronisation with the target's newest point, and a first copy with what the target adopted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.gateway.messages.adopterrors import AdoptionGone, AdoptionOffered, AdoptionRefused
from secondsite.gateway.source import plan
from secondsite.gateway.source.compare import Compared, RemoteDisk, Traffic, open_compare
from secondsite.gateway.source.cycle import Bench, Captured
from secondsite.gateway.source.firstcopying import Progress
from secondsite.gateway.source.status import Board
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState
from secondsite.model.states import ItemEvent, ItemState
from secondsite.transfer.errors import DigestsNotReady
from secondsite.transfer.protocols import (
    Adoption,
    AdoptionTerms,
    CommittedPoint,
    Link,
    TargetHead,
    error_code,
)

# How often a target is asked whether the copy it adopts is ready.
AWAIT_SECONDS = 1.0


def open_compared(
    bench: Bench,
    link: Link,
    board: Board,
    head: TargetHead,
    step: plan.Copy,
    *,
    committed: CommittedPoint | None,
    cancel: threading.Event,
) -> Compared | None:
    """What a copy is compared with; None: with nothing. committed: the point the tables speak of, if known.

    Raises what the link raises.
    """
    if head.point is None:
        return None if head.adoption is None else open_adopted(bench, link, board, head.adoption, cancel)
    if not step.resync:
        return None
    known = committed == head.point or bench.expect_tables(head.point)
    return open_resync(bench, link, board, head.point, step, known=known, cancel=cancel)


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
        {disk: key.origin for disk, key in bench.keys.items()},
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


# -- adopted copies -------------------------------------------------------------------------------


def come_to_terms(
    bench: Bench, link: Link, board: Board, adoption: Adoption, cancel: threading.Event
) -> bool:
    """Have the target make the copy ready, and wait a moment; False when there is none to wait for.

    The keys must be there. Raises what the link raises.
    """
    disks = tuple(
        DiskState(id=disk.id, size_bytes=disk.size_bytes, key_id=bench.keys[disk.id].origin)
        for disk in bench.source.machine.disks
        if disk.id in bench.keys
    )
    try:
        now = link.adopt(AdoptionTerms(machine=bench.machine, id=adoption.id, disks=disks))
    except SecondsiteError as error:
        if error_code(error) not in {AdoptionRefused.code, AdoptionGone.code}:
            raise
        text = f"{error} The first copy of {bench.name} goes over the network."
        bench.events.emit(error_code(error), Severity.WARNING, text, machine=bench.machine)
        return False
    if board.state is not ItemState.INITIAL_REPLICATION:
        board.move(ItemEvent.FIRST_COPY_BEGUN)
    if not now.ready:
        done = f"{format_bytes(now.done_bytes)} of {format_bytes(now.total_bytes)}"
        board.warn(
            "replicate.adoption-awaited",
            f"{board.peer} takes over the copy that {bench.name} begins with: {done}.",
        )
        bench.clock.wait(cancel, AWAIT_SECONDS)
    return True


def open_adopted(
    bench: Bench, link: Link, board: Board, adoption: Adoption, cancel: threading.Event
) -> Compared:
    """The copy to compare with, which is ready. Raises what the link raises, DigestsNotReady."""
    known = {disk.id: disk for disk in adoption.disks}
    if any(disk in bench.keys and bench.keys[disk].origin != known[disk].key_id for disk in known):
        come_to_terms(bench, link, board, adoption, cancel)  # sealed with keys of before: anew
        raise DigestsNotReady(disk=", ".join(known), point=0, why="the copy is sealed with other keys")
    traffic = Traffic()
    disks: dict[DiskId, RemoteDisk] = {}
    for disk in adoption.disks:
        if disk.key_id is not None:
            state = DiskState(id=disk.id, size_bytes=disk.size_bytes, key_id=disk.key_id)
            disks[disk.id] = RemoteDisk(link, bench.machine, state, 0, traffic=traffic)
    board.well()
    text = (
        f"the first copy of {bench.name} is compared with a copy of {', '.join(disks)} that {board.peer} has "
        f"({format_bytes(adoption.total_bytes)}), and only differences are sent"
    )
    bench.events.emit("replicate.adopting", Severity.INFORMATION, text, machine=bench.machine)
    return Compared(disks, traffic, adopted=adoption.id)


def look_for_adoption(bench: Bench, link: Link, head: TargetHead) -> Callable[[], None]:
    """To be called between slices: raises AdoptionOffered when the target got a copy to begin with meanwhile.

    head: as the copy began.
    """
    known = head.adoption.id if head.adoption is not None else ""

    def look() -> None:
        if head.point is not None:
            return
        try:
            now = link.head(bench.machine)
        except SecondsiteError:
            return  # the link is down: the copy goes on into the cache
        if now.point is None and now.adoption is not None and now.adoption.id != known:
            raise AdoptionOffered(machine=bench.name)

    return look


def tell_compared(bench: Bench, progress: Progress, captured: Captured, compared: Compared | None) -> None:
    """What a comparison came to; nothing of a copy that is compared with nothing."""
    if compared is None or progress.differed_bytes is None:
        return
    kind = "first copy over an adopted one" if compared.adopted else "resync"
    text = (
        f"{kind}: {format_bytes(progress.differed_bytes)} of {format_bytes(progress.done_bytes)} differed "
        f"on {bench.name}; {format_bytes(captured.sent_bytes)} were sent, and "
        f"{format_bytes(compared.traffic.bytes)} of digests read"
    )
    bench.events.emit(
        "replicate.adopted" if compared.adopted else "replicate.resynced",
        Severity.INFORMATION,
        text,
        machine=bench.machine,
        differed_bytes=progress.differed_bytes,
        read_bytes=progress.done_bytes,
        sent_bytes=captured.sent_bytes,
        digest_bytes=compared.traffic.bytes,
    )
