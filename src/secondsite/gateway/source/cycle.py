"""One cycle: one instant of a machine captured into one sealed shipment.

    capture -> changed extents -> read -> encode -> close the capture -> seal

The capture closes as soon as its bytes were read; encoding and sending go on without it. A cycle that fails
leaves nothing: its side logs, shipment and checkpoint go, and the next one counts from where it did.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import GIB, MIB, SUB_BLOCK_BYTES
from secondsite.fabrics.base import Capture, DiskCapture, Instant, Quiesce, Source
from secondsite.fabrics.errors import Unprotectable
from secondsite.gateway.source.encode import DiskTrack, Encoder
from secondsite.gateway.source.findings import DiskFact, facts_of
from secondsite.gateway.source.mending import Mending, of_disk
from secondsite.gateway.source.subblocks import SideLog, SubBlockTable
from secondsite.gateway.source.tally import Tally
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.journal.manifest import seal_definition
from secondsite.model.events import EventSink
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.model.machines import Definition
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.points import DiskState, PointProposal
from secondsite.transfer.protocols import CommittedPoint, TargetHead
from secondsite.transfer.shipping import Shipment, Shipper

AFTER_CAPTURE = mark("cycle.after-capture")
BEFORE_SEAL = mark("cycle.before-seal")
AFTER_SEAL = mark("cycle.after-seal")

READ_BYTES = 1 * MIB


# What one capture may have to read of disks that are not tracked: some seconds. More is read in slices.
UNTRACKED_BYTES_MAX = 2 * GIB


class DisksAppeared(SecondsiteError):
    """A capture holds disks that keys and tables are to be made for first; nothing was captured."""

    code = "replicate.disks-appeared"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} has got disks: {names}."
    cause = "Somebody added them."
    action = "None: they are taken in, and the capture is repeated."

    def __init__(self, *, machine: str, disks: Sequence[DiskId]) -> None:
        self.disks = tuple(disks)
        super().__init__(machine=machine, names=", ".join(disks))


class TooMuchUntracked(SecondsiteError):
    """Disks that are to be read whole hold too much for one capture; nothing was captured."""

    code = "replicate.too-much-untracked"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} has disks that have to be read whole: {names}."
    cause = "They were added, or their images lost track of what changed."
    action = "None: they are read in slices."

    def __init__(self, *, machine: str, sizes: Mapping[DiskId, int]) -> None:
        self.sizes = dict(sizes)
        super().__init__(machine=machine, names=", ".join(sizes))


@dataclass(frozen=True)
class Rekeyed:
    """A disk's data key of before, taken back."""

    key: DiskKey
    wrapped: Mapping[KeyId, bytes]  # it and what seals from now on, as they travel


@dataclass(frozen=True)
class Furnished:
    """What a disk needs to be copied."""

    key: DiskKey
    wrapped: Mapping[KeyId, bytes]  # the key and those before it, as they travel
    table: SubBlockTable


class Beside(Protocol):
    """What makes use of a cycle's instant besides the cycle: verification. Never raises."""

    def read(self, capture: Capture, checkpoint: str) -> None:
        """The cycle has read what it needs; the capture is closed when this returns, so be quick."""

    def committed(self, point: CommittedPoint) -> None:
        """Its instant, or another, is a point now; must not block."""


class Fence(Protocol):
    """Who isolates the machine when it was taken over elsewhere. Never raises, never waits for long."""

    def saw(self, machine: MachineId, name: str, head: TargetHead) -> None:
        """What the target says of the machine's journal."""

    def committed(self, machine: MachineId) -> None:
        """The target took a point."""

    def floor(self, machine: MachineId, head: TargetHead) -> int:
        """The machine's highest epoch outside the journal with that head, as far as is known. May raise."""

    def elsewhere(self, machine: MachineId) -> tuple[str, int] | None:
        """Who took the machine over, and its epoch, while it is held here for that. May raise."""

    def unasked(self, machine: MachineId) -> str:
        """Why its target cannot be asked whether it was taken over, in sentences; empty: it can."""


@dataclass(eq=False)
class Bench:
    """What every cycle of one machine works with."""

    machine: MachineId
    name: str
    source: Source
    shipper: Shipper
    vault: VaultKey
    keys: dict[DiskId, DiskKey]
    tables: dict[DiskId, SubBlockTable]
    clock: Clock
    events: EventSink
    furnish: Callable[[DiskId], Furnished] | None = None  # for a disk the machine got later
    rekey: Callable[[DiskId, bytes], Rekeyed] | None = None  # keep a wrapped key instead of ours
    level: int | None = 1  # zstd's; None: what is sent is not compressed
    mapping: SiteMapping | None = None
    beside: Beside | None = None
    fence: Fence | None = None  # None: nobody isolates it (tests of other parts)
    mending: Mending = field(init=False)  # what the target asked to have again
    _sealed: tuple[Definition, bytes] | None = None
    _given: tuple[str, str] = ("", "")  # checkpoint and time of the newest instant

    def __post_init__(self) -> None:
        """What follows from the rest."""
        self.mending = Mending(self.machine, self.name, self.events)

    def definition(self) -> bytes:
        """The machine's definition, sealed; the same bytes while it does not change."""
        found = msgspec.structs.replace(self.source.definition(), mapping=self.mapping)
        if self._sealed is None or self._sealed[0] != found:
            self._sealed = (found, seal_definition(found, self.vault, self.machine))
        return self._sealed[1]

    def seconds_since(self, parent: str | None, checkpoint: str, given_at: str) -> float:
        """From the instant of `parent` to this one, which is remembered; 0.0 when it is not known."""
        (before, then), self._given = self._given, (checkpoint, given_at)
        if parent is None or parent != before:
            return 0.0
        return (datetime.fromisoformat(given_at) - datetime.fromisoformat(then)).total_seconds()

    def take_in(self, disks: Sequence[DiskId]) -> dict[KeyId, bytes]:
        """Make keys and tables for disks; returns the keys as they travel."""
        wrapped: dict[KeyId, bytes] = {}
        for disk in disks:
            assert self.furnish is not None, "made for a machine whose disks do not change"
            made = self.furnish(disk)
            self.keys[disk], self.tables[disk] = made.key, made.table
            made.table.void("")  # of whatever had its name before
            wrapped |= made.wrapped
        return wrapped

    def expect_tables(self, point: CommittedPoint) -> bool:
        """Keep the tables that speak of what the target holds at `point`, void the others; True: all were."""
        sizes = {disk.id: disk.size_bytes for disk in point.disks}
        for disk in self.tables.keys() - sizes.keys():
            self.tables[disk].void("")
        kept = [
            self.tables[disk].expect(epoch=point.epoch, point=point.number, size_bytes=size)
            for disk, size in sizes.items()
            if disk in self.tables
        ]
        return all(kept)

    def void_tables(self, why: str) -> None:
        """What the target holds is not known."""
        for table in self.tables.values():
            table.void(why)


@dataclass(eq=False)
class Logs:
    """The side logs of one cycle, by disk."""

    tables: Mapping[DiskId, SubBlockTable]
    logs: dict[DiskId, SideLog] = field(default_factory=dict)
    whole: bool = False  # the cycle carries everything there is

    def begin(self) -> None:
        """One for each table."""
        self.logs = {disk: table.begin() for disk, table in self.tables.items()}

    def abandon(self) -> None:
        """The cycle is not committed."""
        for disk, log in self.logs.items():
            self.tables[disk].abandon(log)

    def fold(self, *, epoch: int, point: int) -> None:
        """The cycle was committed."""
        for disk, log in self.logs.items():
            self.tables[disk].fold(log, epoch=epoch, point=point, whole=self.whole)


@dataclass(eq=False)
class Captured:
    """A sealed instant on its way; `logs` is None for one an earlier process captured."""

    shipment: Shipment
    proposal: PointProposal
    logs: Logs | None
    sent_bytes: int = 0
    seconds: float = 0.0
    note: str = ""  # why its consistency is less than was asked for
    disks: tuple[DiskFact, ...] = ()  # as captured; none for one an earlier process captured
    left_out: Mapping[DiskId, str] = field(default_factory=dict)

    def abandon(self) -> None:
        """It will not be committed."""
        if self.logs is not None:
            self.logs.abandon()
        self.shipment.discard()


def tracks_of(bench: Bench, capture: Capture, logs: Logs) -> list[DiskTrack]:
    """The disks of a capture with their keys, tables and logs."""
    return [
        DiskTrack(
            id=disk.id,
            size_bytes=disk.size_bytes,
            key=bench.keys[disk.id],
            table=bench.tables[disk.id],
            log=logs.logs.get(disk.id),
        )
        for disk in capture.disks
    ]


def require_known(bench: Bench, capture: Capture, parent: Collection[str]) -> None:
    """Raise unless a capture's disks can be copied as they are; `parent`: those of the instant before."""
    gone = {disk: why for disk, why in capture.left_out.items() if disk in parent}
    if gone:
        raise Unprotectable(machine=bench.name, reasons="; ".join(gone.values()))
    unknown = [disk.id for disk in capture.disks if disk.id not in bench.keys]
    if unknown:
        raise DisksAppeared(machine=bench.name, disks=unknown)


def _require_small(bench: Bench, capture: Capture) -> None:
    whole = {disk.id: disk.changed().total_bytes for disk in capture.disks if disk.untracked}
    if sum(whole.values()) > UNTRACKED_BYTES_MAX:
        raise TooMuchUntracked(machine=bench.name, sizes=whole)


def fit_tables(bench: Bench, capture: Capture, parent: Collection[DiskId] | None = None) -> None:
    """A resize voids a disk's table (rule 1): its sub-blocks are others now.

    So does its absence from the instant before (`parent`): what the target held of its name may be gone.
    """
    for disk in capture.disks:
        table = bench.tables[disk.id]
        if parent is not None and disk.id not in parent:
            table.void("", size_bytes=disk.size_bytes)
        if table.size_bytes != disk.size_bytes:
            why = f"the disk was resized from {table.size_bytes} to {disk.size_bytes} bytes"
            table.void(why if table.size_bytes else "", size_bytes=disk.size_bytes)


def read_extents(encoder: Encoder, track: DiskTrack, disk: DiskCapture, extents: Extents) -> None:
    """Feed everything in `extents`."""
    for offset, data in disk.read(extents.pieces(READ_BYTES)):
        encoder.feed(track, offset, data)


def read_increment(
    encoder: Encoder, track: DiskTrack, disk: DiskCapture, parent_size_bytes: int | None
) -> int:
    """Feed what changed on a disk since its parent; returns the bytes tracking counted.

    A disk that grew reads as zeros in its new part, which the target must learn (rule 12); of one that is not
    tracked everything is read, and its holes are zeros. What the target lost is read as well.
    """
    size = disk.size_bytes
    changed = disk.changed().align(SUB_BLOCK_BYTES, size)
    counted = changed.total_bytes
    changed = changed.union(track.repair)
    if disk.untracked:
        for start, end in Extents.of([(0, size)]).subtract(changed):
            encoder.zeros(track, start, end - start)
        read_extents(encoder, track, disk, changed)
        return counted
    if parent_size_bytes is not None and size > parent_size_bytes:
        edge = parent_size_bytes // SUB_BLOCK_BYTES * SUB_BLOCK_BYTES
        grown = -(-parent_size_bytes // SUB_BLOCK_BYTES) * SUB_BLOCK_BYTES
        # the sub-block that held the old end has a new length
        changed = changed.union(Extents.of([(edge, min(grown, size))]))
        for start, end in Extents.of([(grown, size)]).subtract(changed):
            encoder.zeros(track, start, end - start)
    read_extents(encoder, track, disk, changed)
    return counted


def propose(
    bench: Bench,
    shipment: Shipment,
    instant: Instant,
    tracks: list[DiskTrack],
    *,
    checkpoint: str,
    parent: str | None,
    changed_bytes: int,
    tally: Tally | None,
    fresh: bool | str = False,
) -> PointProposal:
    """What the target is asked to commit.

    tally: None: what is sent is not what the machine wrote. fresh: only where there is no point yet;
    a text: over that adopted copy.
    """
    seconds = bench.seconds_since(parent, checkpoint, instant.given_at)
    return PointProposal(
        machine=bench.machine,
        machine_name=bench.name,
        epoch=shipment.epoch,
        nonce=secrets.token_hex(16),
        checkpoint=checkpoint,
        parent_checkpoint=parent,
        asked_at=instant.asked_at,
        given_at=instant.given_at,
        consistency=instant.consistency,
        disks=tuple(DiskState(id=t.id, size_bytes=t.size_bytes, key_id=t.key.origin) for t in tracks),
        segments=shipment.refs,
        definition=bench.definition(),
        changed_bytes=changed_bytes,
        frozen_seconds=instant.frozen_seconds,
        signals=tally.signals(seconds=seconds) if tally is not None else msgspec.UNSET,
        fresh=fresh or msgspec.UNSET,
    )


def run_cycle(
    bench: Bench,
    *,
    since: str,
    parent: str,
    parent_sizes: Mapping[DiskId, int],
    epoch: int,
    checkpoint: str,
    quiesce: Quiesce,
    wait: bool,
    cancel: threading.Event,
    on_abandon: Callable[[int], None] | None = None,
) -> Captured:
    """Capture what changed since `since` as the state after `parent`.

    parent_sizes: of the disks at `parent`. wait: block while the cache is full, with the capture open; else
    CacheFull is raised at once. on_abandon: told how many bytes were encoded by a cycle that failed.

    Raises what the source and the shipper raise; nothing is left then.
    """
    started = bench.clock.monotonic()
    repair = bench.mending.next()
    shipment = bench.shipper.begin(bench.machine, epoch)
    encoder = Encoder(shipment, machine=bench.machine, level=bench.level, wait=wait, cancel=cancel)
    logs = Logs(bench.tables)
    try:
        with bench.source.capture(since=since, checkpoint=checkpoint, quiesce=quiesce) as capture:
            crash_point(AFTER_CAPTURE)
            require_known(bench, capture, parent_sizes)
            _require_small(bench, capture)
            fit_tables(bench, capture, parent_sizes)
            logs.begin()
            tracks, disks = tracks_of(bench, capture, logs), facts_of(capture)
            changed = 0
            for track, disk in zip(tracks, capture.disks, strict=True):
                track.repair = of_disk(repair, disk.id, disk.size_bytes)
                changed += read_increment(encoder, track, disk, parent_sizes.get(disk.id))
            if bench.beside is not None:
                bench.beside.read(capture, checkpoint)
        encoder.flush()
        crash_point(BEFORE_SEAL)
        proposal = propose(
            bench,
            shipment,
            capture.instant,
            tracks,
            checkpoint=checkpoint,
            parent=parent,
            changed_bytes=changed,
            tally=None if repair else encoder.tally,
        )
        shipment.seal(proposal)
        bench.mending.captured(checkpoint, repair)
        crash_point(AFTER_SEAL)
    except BaseException:
        logs.abandon()
        encoder.close()
        shipment.discard()
        if on_abandon is not None:
            on_abandon(encoder.sent_bytes)
        with contextlib.suppress(SecondsiteError):
            bench.source.forget(checkpoint)
        raise
    encoder.close()
    return Captured(
        shipment=shipment,
        proposal=proposal,
        logs=logs,
        sent_bytes=encoder.sent_bytes,
        seconds=bench.clock.monotonic() - started,
        note=capture.instant.note,
        disks=disks,
        left_out=capture.left_out,
    )
