"""One adoption in a target's process: its record, its tables, and what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from secondsite.base.clock import Clock
from secondsite.gateway.adopt.record import AdoptionRecord, RecordFile
from secondsite.gateway.messages.adoption import ENDED, AdoptedImage, AdoptionState, AdoptionStatus
from secondsite.gateway.source.tables import DigestTable
from secondsite.model.ids import DiskId
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.protocols import AdoptedDisk, Adoption, AdoptionTerms


class BegunAnew(Exception):
    """The source came with other keys: everything is sealed anew."""


@dataclass(eq=False)
class Run:
    """One machine's adoption in this process. `lock` guards record and tables, also during a commit."""

    file: RecordFile
    record: AdoptionRecord
    lock: threading.RLock = field(default_factory=threading.RLock)
    cancel: threading.Event = field(default_factory=threading.Event)
    tables: dict[DiskId, DigestTable] | None = None
    not_before: float = 0.0  # after something failed that may pass
    waits_for: str = ""
    began: tuple[float, int] | None = None  # when this process went on, and from where

    @property
    def ended(self) -> bool:
        """Whether nothing of it will become a point any more, or has."""
        return self.record.state in ENDED

    def keep(self, **changes: object) -> AdoptionRecord:
        """Change the record, durable. Under the lock."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self.file.keep(self.record)
        return self.record

    def drop_tables(self) -> None:
        """Under the lock."""
        for table in (self.tables or {}).values():
            table.drop()
        self.tables = None


def status_of(run: Run, clock: Clock) -> AdoptionStatus:
    """As the control API says it."""
    record, began = run.record, run.began
    rate, left = 0.0, None
    if began is not None and record.state is AdoptionState.SEALING:
        seconds = clock.monotonic() - began[0]
        rate = (record.done_bytes - began[1]) / seconds if seconds > 0 else 0.0
        left = (record.total_bytes - record.done_bytes) / rate if rate > 0 else None
    return AdoptionStatus(
        machine=record.machine,
        name=record.name,
        state=record.state,
        images=tuple(
            AdoptedImage(disk=disk, path=image.path, format=image.format, size_bytes=image.size_bytes)
            for disk, image in record.images.items()
        ),
        begun_at=record.begun_at,
        done_bytes=record.done_bytes,
        total_bytes=record.total_bytes,
        stored_bytes=record.stored_bytes,
        bytes_per_second=rate,
        seconds_left=left,
        point=record.point,
        sent_bytes=record.sent_bytes,
        note=run.waits_for,
        error=record.error,
    )


def offer_of(run: Run) -> Adoption:
    """As a source is told of it."""
    record = run.record
    return Adoption(
        id=record.id,
        disks=tuple(
            AdoptedDisk(id=disk, size_bytes=image.size_bytes, key_id=record.keys.get(disk))
            for disk, image in record.images.items()
        ),
        ready=run.tables is not None,
        done_bytes=record.done_bytes,
        total_bytes=record.total_bytes,
    )


def noter(run: Run, attempt: int) -> Callable[[int, int, int, int], None]:
    """Notes of an attempt at sealing; raises once another has begun, or none is wanted."""

    def note(disk: int, offset: int, log_bytes: int, stored_bytes: int) -> None:
        with run.lock:
            if run.ended:
                raise TransferCancelled(what=f"the copy of {run.record.name}")
            if run.record.attempt != attempt:
                raise BegunAnew
            run.waits_for = ""
            run.keep(disk=disk, offset=offset, log_bytes=log_bytes, stored_bytes=stored_bytes)

    return note


def misfit(record: AdoptionRecord, terms: AdoptionTerms) -> str:
    """Why the images are not of these disks; empty when they are."""
    sizes: Mapping[DiskId, int] = {disk.id: disk.size_bytes for disk in terms.disks}
    for disk, image in record.images.items():
        if disk not in sizes:
            return f"the machine has no disk {disk}; it has {', '.join(sorted(sizes))}"
        if sizes[disk] != image.size_bytes:
            return f"disk {disk} has {sizes[disk]} bytes at its site, {image.path} has {image.size_bytes}"
    return ""
