"""The churn bench's hypervisor: its figures are worth what its captures are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Capture, Quiesce
from secondsite.fabrics.errors import CheckpointUnknown
from secondsite.model.extents import Extents

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT))  # the benches are beside the tests, not among them

from bench.churn_fabric import HostFabric, Line  # noqa: E402
from bench.churn_wire import Ask, Do  # noqa: E402
from bench.measure import anonymous_mib  # noqa: E402

DISK_BYTES = 8 * MIB


@contextmanager
def host(machines: int) -> Iterator[Path]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with tempfile.TemporaryDirectory(prefix="ch") as name:  # short: sockets lie below it
        command = [sys.executable, "-m", "bench.churn_host", name, str(machines), str(DISK_BYTES)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        try:
            yield Path(name)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def read(capture: Capture) -> bytes:
    disk = capture.disks[0]
    return b"".join(bytes(data) for _, data in disk.read(Extents.whole(DISK_BYTES).pieces(MIB)))


def wait_for_writes(line: Line, more: int) -> None:
    clock, never = SystemClock(), threading.Event()
    goal = line.ask(Ask(do=Do.TOLD)).written_bytes + more
    end = clock.monotonic() + 30
    while line.ask(Ask(do=Do.TOLD)).written_bytes < goal:
        assert clock.monotonic() < end, "nothing is written"
        clock.wait(never, 0.01)


@pytest.mark.parametrize("block", [4096, 16384, 65536])
def test_a_capture_stays_as_it_was_and_tracking_covers_what_differs(block: int) -> None:
    with host(1) as directory:
        line, fabric = Line(directory), HostFabric(directory)
        line.ask(Ask(do=Do.FILL))
        [machine] = fabric.machines()
        source = fabric.open_source(machine.id)
        with source.capture(since=None, checkpoint="c1", quiesce=Quiesce.NONE) as first:
            line.ask(Ask(do=Do.RATE, mb_s=20.0, block_bytes=block))
            before = read(first)
            wait_for_writes(line, MIB)
            assert read(first) == before, "written to while it was read"
        with source.capture(since="c1", checkpoint="c2", quiesce=Quiesce.NONE) as second:
            changed, after = second.disks[0].changed(), read(second)
            wait_for_writes(line, MIB)
            assert read(second) == after
        differing = [
            at for at in range(0, DISK_BYTES, 4096) if before[at : at + 4096] != after[at : at + 4096]
        ]
        assert differing
        assert not len(Extents.of((at, at + 4096) for at in differing).subtract(changed))
        source.forget("c1")
        assert source.checkpoints() == ["c2"]
        with pytest.raises(CheckpointUnknown):
            source.capture(since="c1", checkpoint=None, quiesce=Quiesce.NONE)
        line.close()


def test_what_a_closed_capture_held_is_given_back() -> None:
    """It grew to 23 GB in some minutes: captures were collected when the collector saw fit."""
    with host(1) as directory:
        line, fabric = Line(directory), HostFabric(directory)
        line.ask(Ask(do=Do.FILL))
        [machine] = fabric.machines()
        source = fabric.open_source(machine.id)
        line.ask(Ask(do=Do.RATE, mb_s=100.0, block_bytes=65536))
        memory = []
        for number in range(12):
            with source.capture(since=None, checkpoint=f"c{number}", quiesce=Quiesce.NONE):
                wait_for_writes(line, DISK_BYTES)
            if number:
                source.forget(f"c{number - 1}")
            memory.append(anonymous_mib(line.ask(Ask(do=Do.TOLD)).process))
        assert memory[-1] - memory[3] < 2 * DISK_BYTES / MIB, memory
        line.close()


def test_all_machines_are_written_to_alike() -> None:
    with host(3) as directory:
        line, fabric = Line(directory), HostFabric(directory)
        line.ask(Ask(do=Do.FILL))
        sources = [fabric.open_source(machine.id) for machine in fabric.machines()]
        for source in sources:
            source.capture(since=None, checkpoint="c", quiesce=Quiesce.NONE).close()
        line.ask(Ask(do=Do.RATE, mb_s=20.0, block_bytes=4096))
        wait_for_writes(line, 4 * MIB)
        line.ask(Ask(do=Do.RATE, mb_s=0.0, block_bytes=4096))
        changed = []
        for source in sources:
            with source.capture(since="c", checkpoint=None, quiesce=Quiesce.NONE) as capture:
                changed.append(capture.disks[0].changed().total_bytes)
        assert min(changed) > max(changed) / 2
        line.close()
