"""The encoder's threads."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.source import encode
from secondsite.gateway.source.encode import BATCH_BYTES, BATCHES, MORE_BATCHES, DiskTrack, Encoder
from secondsite.journal.keys import DiskKey
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import SegmentRef
from secondsite.transfer.shipping import Shipment

MACHINE = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")


class LateGate(threading.Condition):
    """A condition on which the second worker wakes only when the first has begun to wait again."""

    def __init__(self) -> None:
        super().__init__()
        self.late = threading.Event()
        self.waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        name = threading.current_thread().name
        if name == "encode-0":
            self.waits += 1
            if self.waits == 2:
                self.late.set()
        woken = super().wait(timeout)
        if name == "encode-1" and not self.late.is_set():
            self.release()
            self.late.wait(20)
            self.acquire()
        return woken


def test_a_worker_that_wakes_late_from_a_flush_does_not_sleep_through_the_next() -> None:
    shipment = cast("Shipment", SimpleNamespace(epoch=1, add=lambda *_, **__: None))
    cancel = threading.Event()
    encoder = Encoder(shipment, machine=MACHINE, level=1, wait=True, cancel=cancel)
    encoder._gate = LateGate()
    track = DiskTrack(id=DiskId("vda"), size_bytes=64 * MIB, key=DiskKey.create())
    for offset in range(0, 3 * BATCH_BYTES, MIB):
        encoder.feed(track, offset, memoryview(bytes(MIB)))
    alarm = threading.Timer(10, cancel.set)
    alarm.start()
    try:
        for _ in range(3):
            encoder.flush()
    finally:
        alarm.cancel()
        encoder.close()


class Kept:
    """A shipment that counts the guest bytes of what it is given."""

    epoch = 1

    def __init__(self) -> None:
        self.data_bytes = 0
        self._lock = threading.Lock()

    def add(self, ref: SegmentRef, *_: object, **__: object) -> None:
        with self._lock:
            self.data_bytes += ref.data_bytes


def track(name: str = "vda") -> DiskTrack:
    return DiskTrack(id=DiskId(name), size_bytes=256 * MIB, key=DiskKey.create())


def feed(encoder: Encoder, to: DiskTrack, size_bytes: int) -> None:
    data = memoryview(random.Random(1).randbytes(MIB))
    for offset in range(0, size_bytes, MIB):
        encoder.feed(to, offset, data)


def encoder_of(kept: Kept) -> Encoder:
    shipment = cast("Shipment", kept)
    return Encoder(shipment, machine=MACHINE, level=1, wait=True, cancel=threading.Event())


def test_ten_machines_at_once_share_what_one_would_take_for_itself() -> None:
    encoders = [encoder_of(Kept()) for _ in range(10)]
    try:
        disk = track()
        for encoder in encoders:
            feed(encoder, disk, 6 * BATCH_BYTES)
        made = [encoder._made for encoder in encoders]
        assert made[0] == BATCHES, "the first takes what it can use"
        assert sum(made) == len(encoders) + MORE_BATCHES
        assert made[-1] == 1
        for encoder in encoders:
            encoder.flush()
        assert [encoder.kept_bytes for encoder in encoders] == [6 * BATCH_BYTES] * 10
    finally:
        for encoder in encoders:
            encoder.close()
    again = encoder_of(Kept())
    feed(again, track(), 6 * BATCH_BYTES)
    assert again._made == BATCHES, "closing gave all of them back"
    again.close()


def test_a_machine_goes_on_with_one_batch_whatever_its_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small changes of many disks need no threads, unless there is no batch for the next disk."""
    none_left = threading.BoundedSemaphore(1)
    none_left.acquire()
    monkeypatch.setattr(encode, "_more", none_left)
    kept = Kept()
    encoder = encoder_of(kept)
    for number in range(5):
        encoder.feed(track(f"vd{number}"), 0, memoryview(bytes([number + 1]) * 4096))
    encoder.flush()
    assert kept.data_bytes == 5 * 4096
    feed(encoder, track("vdx"), 9 * BATCH_BYTES)
    encoder.flush()
    assert kept.data_bytes == 5 * 4096 + 9 * BATCH_BYTES
    encoder.close()
