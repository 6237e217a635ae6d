"""A first copy over a slow link with a cache far smaller than the disk ends, and sends everything once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import SegmentRef
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Payload, Peer
from support.source_rig import US, Rig

DISK_BYTES = 128 * MIB
CACHE_BYTES = 40 * MIB
BYTES_PER_SECOND = 40e6


class SlowLink(MemoryLink):
    """Takes its time with every segment, all of them together at most `BYTES_PER_SECOND`."""

    def __init__(self, receiver: GatewayReceiver) -> None:
        super().__init__(receiver, Peer(name=US))
        self._line = threading.Lock()
        self.sent_bytes = 0

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: threading.Event | None = None
    ) -> None:
        with self._line:
            self.sent_bytes += ref.stored_bytes
            SystemClock().wait(cancel or threading.Event(), ref.stored_bytes / BYTES_PER_SECOND)
        super().send_segment(machine, ref, payload, cancel=cancel)


def test_a_first_copy_larger_than_cache_and_memory_ends(tmp_path: Path) -> None:
    links: list[SlowLink] = []

    def link(receiver: GatewayReceiver) -> SlowLink:
        links.append(SlowLink(receiver))
        return links[-1]

    rig = Rig(tmp_path, disks={"vda": DISK_BYTES}, limit_bytes=CACHE_BYTES, link=link)
    chance = random.Random(5)
    for offset in range(0, DISK_BYTES, MIB):
        rig.fabric.write(rig.machine, DiskId("vda"), offset, chance.randbytes(MIB))
    rig.open(frequency_seconds=3600)
    try:
        rig.until(lambda: bool(rig.points()), "the first point")
        assert DISK_BYTES <= links[0].sent_bytes < 1.2 * DISK_BYTES, "bytes were sent more than once"
        assert rig.view(rig.points()[0].number) == rig.content()
    finally:
        rig.close()
