"""A source gateway with machines in memory that are written to at a given rate, driven over standard input.

    python -m bench.churn_source ROOT MACHINES DISK_BYTES

Lines it understands: ``fill`` (every disk once), ``rate MB_PER_S BLOCK_BYTES`` (all machines together; 0:
nothing is written), ``told`` and ``end``. It prints ``ready`` once the gateway runs, and answers each line
with the bytes written at a rate so far and the bytes the disks take in its memory. What is written is half
random, half text, in whole blocks at random places.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

from secondsite.base.memory import give_back_large_buffers
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.config import load_config
from secondsite.gateway.main import Gateway
from secondsite.model.ids import MachineId
from support.gateway_pair import A

TICK_SECONDS = 0.02
_POOL_BYTES = 32 * MIB


class Feeder:
    """Writes at a rate; what it cannot keep up with is not made up for, and shows in `written`."""

    def __init__(self, fabric: MemoryFabric, machines: list[MachineId], disk_bytes: int) -> None:
        self._fabric, self._machines, self._disk_bytes = fabric, machines, disk_bytes
        self._chance = random.Random(1)
        text = b"a line of a log file, number %d, and what it says\n" * 40
        half = b"".join(text % tuple([n] * 40) for n in range(_POOL_BYTES // 2 // len(text)))
        self._pool = memoryview(self._chance.randbytes(_POOL_BYTES // 2) + half)
        self.rate, self.block = 0.0, 16384
        self.written = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        owed, before = 0.0, time.monotonic()
        while True:
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            owed = min(owed + (now - before) * self.rate, self.rate * 0.5 + self.block)
            before = now
            while owed >= self.block:
                self._write_one()
                owed -= self.block

    def fill(self) -> None:
        """Every disk whole, so that a rate changes data and takes no new room."""
        for machine in self._machines:
            for place in range(0, self._disk_bytes, MIB):
                start = self._chance.randrange(len(self._pool) - MIB)
                self._fabric.write(machine, "vda", place, self._pool[start : start + MIB])

    def _write_one(self) -> None:
        place = self._chance.randrange(self._disk_bytes // self.block) * self.block
        start = self._chance.randrange(len(self._pool) - self.block)
        machine = self._machines[self._chance.randrange(len(self._machines))]
        self._fabric.write(machine, "vda", place, self._pool[start : start + self.block])
        self.written += self.block


def main() -> None:
    """See the module's text."""
    root, count, disk_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    give_back_large_buffers()
    fabric = MemoryFabric()
    machines = [fabric.add_machine(f"churn-{n}", {"vda": disk_bytes}) for n in range(count)]
    feeder = Feeder(fabric, machines, disk_bytes)
    gateway = Gateway(load_config(root / A / "gateway.toml"), fabric=fabric)
    gateway.start()
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["rate"]:
            feeder.rate, feeder.block = float(words[1]) * 1e6, int(words[2])
        elif words == ["fill"]:
            feeder.fill()
        print(feeder.written, count * disk_bytes, flush=True)
        if words[:1] == ["end"]:
            break
    gateway.stop()


if __name__ == "__main__":
    main()
