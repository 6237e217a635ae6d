"""Offline seeding at the source: the first copy goes to media, and replication goes on once they arrived.

A record in the state directory says that a machine's first copy is wanted on media; while it is there, the
replication's capturing thread hands its first copy to `takes`. Slices, notes and increments
are those of `seed`, so that a killed gateway goes on with the next slice. Once the manifest is on the media
the machine waits for them to be imported at the target: from then on the point is there, and the next cycle
counts from the checkpoint the seed ends with; if that was lost meanwhile, a compare finds the differences.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB, format_bytes
from secondsite.gateway.common.seedmedia import (
    ROOT,
    MediaShipment,
    MediaShipper,
    SeedManifest,
    SeedMediaMissing,
    encode_manifest,
)
from secondsite.gateway.common.seedpath import check_path
from secondsite.gateway.messages.gateway import ProtectionStatus
from secondsite.gateway.messages.seeding import SeedExportRequest, SeedExportState, SeedExportStatus
from secondsite.gateway.source import plan
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.cycle import Bench
from secondsite.gateway.source.firstcopying import Progress, Seed, read_note
from secondsite.gateway.source.status import Board
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.machines import Machine
from secondsite.model.points import PointProposal
from secondsite.model.states import ItemEvent, ItemState
from secondsite.transfer.protocols import TargetHead
from secondsite.transfer.spool import Spool

BEFORE_MANIFEST = mark("seed-export.before-manifest")
AFTER_MANIFEST = mark("seed-export.after-manifest")

# How often the target is asked whether the media were imported.
AWAIT_SECONDS = 5.0
# Media have no limit of ours: a full file system says so itself.
_LIMIT_BYTES = 1 << 62
_RECORD_BYTES_MAX = 64 * KIB


class SeedNotPossible(SecondsiteError):
    """The machine has points at its target already."""

    code = "seed.not-possible"
    outcome = Outcome.REFUSED
    happened = "{machine} needs no seed: its newest recovery point at {peer} is {point}."
    cause = "Its first copy is done."
    action = "None; changes travel over the network."


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Kept while a seed is wanted or on its way."""

    directory: str
    exported_at: str | None = None
    checkpoint: str = ""
    stored_bytes: int = 0


@dataclass(frozen=True)
class _Work:
    """Of the replication that runs."""

    bench: Bench
    checkpoints: Checkpoints
    wrapped: Mapping[KeyId, bytes]
    board: Board
    cancel: threading.Event


class SeedExport:
    """One machine's. The capturing thread calls `takes`; everything else may come from any."""

    def __init__(
        self,
        machine: MachineId,
        name: str,
        record_path: Path,
        *,
        us: str,
        vault: VaultKey,
        clock: Clock,
        events: EventSink,
    ) -> None:
        """us: this gateway's name, who claims the epoch."""
        self._machine = machine
        self._name = name
        self._path = record_path
        self._us = us
        self._vault = vault
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._record = self._load()
        self._progress: Progress | None = None
        self._work: _Work | None = None

    @property
    def wanted(self) -> bool:
        """Whether the first copy goes by media."""
        return self._record is not None

    def begin(self, directory: Path) -> None:
        """Want it, durably. The path was checked before (`check_path`). Again for the same path: as it is."""
        with self._lock:
            record = self._record
            if record is not None and record.directory == str(directory) and record.exported_at is None:
                return
            # what was begun on other media, or exported before, is begun anew
            remove_file(self._identity)
            self._keep(_Record(directory=str(directory)))

    def cancel(self) -> None:
        """Want it no longer: the first copy goes over the network. What is on the media stays there."""
        with self._lock:
            remove_file(self._path)
            remove_file(self._identity)
            self._record = None

    def show(self) -> SeedExportStatus:
        """Where it stands."""
        record, progress = self._record, self._progress
        if record is None:
            return SeedExportStatus(machine=self._machine, name=self._name, state=SeedExportState.NONE)
        exported = record.exported_at is not None
        return SeedExportStatus(
            machine=self._machine,
            name=self._name,
            state=SeedExportState.EXPORTED if exported else SeedExportState.COPYING,
            directory=record.directory,
            exported_at=record.exported_at,
            stored_bytes=record.stored_bytes,
            done_bytes=progress.done_bytes if progress else 0,
            total_bytes=progress.total_bytes if progress else 0,
            bytes_per_second=progress.bytes_per_second if progress else 0.0,
            seconds_left=progress.seconds_left if progress else None,
        )

    # -- the capturing thread -----------------------------------------------------------------------

    def attach(
        self,
        bench: Bench,
        checkpoints: Checkpoints,
        wrapped: Mapping[KeyId, bytes],
        board: Board,
        cancel: threading.Event,
    ) -> None:
        """What the replication that is about to begin works with."""
        self._work = _Work(bench, checkpoints, wrapped, board, cancel)

    def takes(self, step: plan.Step, head: TargetHead) -> bool:
        """Do the step if it is a first copy that goes by media, or wait for those to arrive; else False.

        Raises what the source and the media raise.
        """
        if head.point is not None:
            self.arrived()
        record, work = self._record, self._work
        if record is None or work is None or not isinstance(step, plan.Copy) or step.resync:
            return False
        board = work.board
        if board.progress is None:
            board.move(ItemEvent.FIRST_COPY_BEGUN)
        if record.exported_at is None:
            for shipment in work.bench.shipper.shipments(self._machine):
                shipment.discard()  # begun over the network before
            self._finish(record, self._export(record, work, head.epoch), work.wrapped)
            board.progress = None
        text = (
            f"The first copy of {self._name} is on media; it goes on once they are imported at {board.peer}."
        )
        board.warn("seed.awaited", text)
        self._clock.wait(work.cancel, AWAIT_SECONDS)
        return True

    def arrived(self) -> None:
        """The target has a point: the seed did its work, or is not needed any more."""
        with self._lock:
            record = self._record
        if record is None:
            return
        self.cancel()
        if self._work is not None and self._work.board.state is ItemState.INITIAL_REPLICATION:
            self._work.board.move(ItemEvent.POINT_COMMITTED)
        text = f"the target has the first copy of {self._name}: changes travel over the network from now on"
        self._events.emit("seed.arrived", Severity.INFORMATION, text, machine=self._machine)

    def _export(self, record: _Record, work: _Work, epoch: int) -> MediaShipment:
        """The whole copy on the media, sealed; goes on with what an earlier process began there."""
        checkpoints = work.checkpoints
        shipper = self._open(record)
        shipment = self._usable(shipper, epoch, checkpoints)
        if shipment is not None and shipment.proposal is not None:
            return shipment
        self._progress = work.board.progress = Progress(self._clock)
        if shipment is None:
            checkpoints.drop_all()
        seed = Seed(
            dataclasses.replace(work.bench, shipper=shipper),
            epoch=epoch,
            fresh=True,
            name_checkpoint=lambda: checkpoints.next_name(epoch),
            progress=self._progress,
            cancel=work.cancel,
            on_wait=lambda waits: None,  # noqa: ARG005 - media do not make it wait
        )
        captured = seed.run(shipment)
        if captured.logs is not None:
            captured.logs.abandon()  # it is committed by another process, much later
        assert isinstance(captured.shipment, MediaShipment)
        return captured.shipment

    def _finish(self, record: _Record, shipment: MediaShipment, wrapped: Mapping[KeyId, bytes]) -> None:
        assert shipment.proposal is not None
        crash_point(BEFORE_MANIFEST)
        shipment.write_manifest(self._manifest(shipment.proposal, wrapped))
        crash_point(AFTER_MANIFEST)
        self._exported(record, shipment)

    def _usable(self, shipper: MediaShipper, epoch: int, checkpoints: Checkpoints) -> MediaShipment | None:
        """What an earlier process began and this one can go on with; everything else is dropped."""
        found = None
        usable = checkpoints.usable()
        for shipment in shipper.seeds(self._machine):
            note = read_note(shipment)
            checkpoint = note.checkpoint if note is not None else ""
            if shipment.proposal is not None:
                checkpoint = shipment.proposal.checkpoint
            if shipment.epoch == epoch and checkpoint in usable:
                found = shipment
            else:
                shipment.discard()
        checkpoints.seen(usable)
        return found

    def _exported(self, record: _Record, shipment: MediaShipment) -> None:
        assert shipment.proposal is not None
        stored = sum(ref.stored_bytes for ref in shipment.proposal.segments)
        with self._lock:
            if self._record is not record:
                return  # cancelled meanwhile
            self._keep(
                _Record(
                    directory=record.directory,
                    exported_at=self._clock.utc().isoformat(timespec="seconds"),
                    checkpoint=shipment.proposal.checkpoint,
                    stored_bytes=stored,
                )
            )
        text = (
            f"the first copy of {self._name} is on the media at {record.directory} ({format_bytes(stored)}): "
            "unmount them, carry them to the target and import them there"
        )
        self._events.emit("seed.exported", Severity.INFORMATION, text, machine=self._machine)

    def _manifest(self, proposal: PointProposal, wrapped: Mapping[KeyId, bytes]) -> bytes:
        used = {disk.key_id for disk in proposal.disks}
        used |= {segment.key_id for segment in proposal.segments if segment.key_id is not None}
        manifest = SeedManifest(
            machine=self._machine,
            machine_name=self._name,
            writer=self._us,
            created_at=self._clock.utc().isoformat(timespec="seconds"),
            keys={key: data for key, data in wrapped.items() if key in used},
            proposal=proposal,
        )
        return encode_manifest(manifest, self._vault)

    def _open(self, record: _Record) -> MediaShipper:
        """The media, if they are those the seed was begun on. Raises SeedMediaMissing."""
        directory = Path(record.directory)
        root = directory / ROOT
        here = root / "cache.id"
        try:
            if self._identity.exists() and (
                not here.exists() or here.read_bytes() != self._identity.read_bytes()
            ):
                raise SeedMediaMissing(
                    machine=self._name, path=directory, why="they are others, or unmounted"
                )
            if not directory.is_dir():
                raise SeedMediaMissing(machine=self._name, path=directory, why="there is no such directory")
            spool = Spool(root, limit_bytes=_LIMIT_BYTES, identity=self._identity, events=self._events)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise SeedMediaMissing(machine=self._name, path=directory, why=why) from error
        return MediaShipper(spool, directory)

    # -- the record ---------------------------------------------------------------------------------

    @property
    def _identity(self) -> Path:
        return self._path.with_suffix(".media")

    def _load(self) -> _Record | None:
        try:
            return msgspec.json.decode(
                read_limited(self._path, size_bytes_max=_RECORD_BYTES_MAX), type=_Record
            )
        except FileNotFoundError:
            return None
        except JSON_ERRORS:
            return None

    def _keep(self, record: _Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, msgspec.json.encode(record))
        self._record = record


class SourceSeeds:
    """The seeds of a source gateway. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        *,
        us: str,
        vault: VaultKey,
        ours: Sequence[Path],
        clock: Clock,
        events: EventSink,
    ) -> None:
        """directory: of the records. ours: directories no seed should share a file system with."""
        self._directory = directory
        self._us = us
        self._vault = vault
        self._ours = tuple(ours)
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._seeds: dict[MachineId, SeedExport] = {}

    def of(self, machine: MachineId, name: str) -> SeedExport:
        """A machine's; the same object each time."""
        with self._lock:
            found = self._seeds.get(machine)
            if found is None:
                found = self._seeds[machine] = SeedExport(
                    machine,
                    name,
                    self._directory / f"{machine}.json",
                    us=self._us,
                    vault=self._vault,
                    clock=self._clock,
                    events=self._events,
                )
            return found

    def check(self, machine: Machine, request: SeedExportRequest, status: ProtectionStatus) -> None:
        """Raise unless a seed can be written there now: SeedNotPossible, SeedPathRefused."""
        if status.last_point is not None:
            raise SeedNotPossible(machine=status.name, peer=status.peer, point=status.last_point)
        check_path(Path(request.directory), machine, self._ours, anywhere=request.anywhere)

    def drop(self, machine: MachineId) -> None:
        """The protection ended."""
        self.of(machine, "").cancel()
        with self._lock:
            self._seeds.pop(machine, None)
