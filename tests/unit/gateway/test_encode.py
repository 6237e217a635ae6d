"""The encoder's threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import cast

from secondsite.base.units import MIB
from secondsite.gateway.encode import BATCH_BYTES, DiskTrack, Encoder
from secondsite.journal.keys import DiskKey
from secondsite.model.ids import DiskId, MachineId
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
