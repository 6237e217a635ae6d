"""One cycle: one instant of a machine captured into one sealed shipment.

    capture -> changed extents -> read -> encode -> close the capture -> seal

The capture closes as soon as its bytes were read; encoding and sending go on without it. A cycle that fails
leaves nothing: its side logs, shipment and checkpoint go, and the next one counts from where it did.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.fabrics.base import Capture, DiskCapture, Instant, Quiesce, Source
from secondsite.gateway.encode import DiskTrack, Encoder
from secondsite.gateway.subblocks import SideLog, SubBlockTable
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.journal.manifest import seal_definition
from secondsite.model.events import EventSink
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.points import DiskState, PointProposal
from secondsite.transfer.shipping import Shipment, Shipper

AFTER_CAPTURE = mark("cycle.after-capture")
BEFORE_SEAL = mark("cycle.before-seal")
AFTER_SEAL = mark("cycle.after-seal")

READ_BYTES = 1 * MIB


@dataclass(eq=False)
class Bench:
    """What every cycle of one machine works with."""

    machine: MachineId
    name: str
    source: Source
    shipper: Shipper
    vault: VaultKey
    keys: Mapping[DiskId, DiskKey]
    tables: Mapping[DiskId, SubBlockTable]
    clock: Clock
    events: EventSink
    level: int = 1
    mapping: SiteMapping | None = None
    _sealed: tuple[Definition, bytes] | None = None

    def definition(self) -> bytes:
        """The machine's definition, sealed; the same bytes while it does not change."""
        found = msgspec.structs.replace(self.source.definition(), mapping=self.mapping)
        if self._sealed is None or self._sealed[0] != found:
            self._sealed = (found, seal_definition(found, self.vault, self.machine))
        return self._sealed[1]


@dataclass(eq=False)
class Logs:
    """The side logs of one cycle, by disk."""

    tables: Mapping[DiskId, SubBlockTable]
    logs: dict[DiskId, SideLog] = field(default_factory=dict)

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
            self.tables[disk].fold(log, epoch=epoch, point=point)


@dataclass(eq=False)
class Captured:
    """A sealed instant on its way; `logs` is None for one an earlier process captured."""

    shipment: Shipment
    proposal: PointProposal
    logs: Logs | None
    sent_bytes: int = 0
    seconds: float = 0.0
    note: str = ""  # why its consistency is less than was asked for

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


def fit_tables(bench: Bench, capture: Capture) -> None:
    """A resize voids a disk's table (rule 1): its sub-blocks are others now."""
    for disk in capture.disks:
        table = bench.tables[disk.id]
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

    A disk that grew reads as zeros in its new part, which the target must learn (rule 12).
    """
    size = disk.size_bytes
    changed = disk.changed().align(SUB_BLOCK_BYTES, size)
    counted = changed.total_bytes
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
) -> PointProposal:
    """What the target is asked to commit."""
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
        disks=tuple(DiskState(id=t.id, size_bytes=t.size_bytes, key_id=t.key.id) for t in tracks),
        segments=shipment.refs,
        definition=bench.definition(),
        changed_bytes=changed_bytes,
        frozen_seconds=instant.frozen_seconds,
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
    shipment = bench.shipper.begin(bench.machine, epoch)
    encoder = Encoder(shipment, machine=bench.machine, level=bench.level, wait=wait, cancel=cancel)
    logs = Logs(bench.tables)
    try:
        with bench.source.capture(since=since, checkpoint=checkpoint, quiesce=quiesce) as capture:
            crash_point(AFTER_CAPTURE)
            fit_tables(bench, capture)
            logs.begin()
            tracks = tracks_of(bench, capture, logs)
            changed = 0
            for track, disk in zip(tracks, capture.disks, strict=True):
                changed += read_increment(encoder, track, disk, parent_sizes.get(disk.id))
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
        )
        shipment.seal(proposal)
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
    )
