"""kill -9 of a real source gateway at each of its durable steps, while its guest goes on writing.

After the restart every committed point holds what the guest had written at its instant, and replication
catches up.
"""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import MachineId
from support.forked import Forked, forked_gateway
from support.gateway_pair import A, B, Pair
from support.guest_log import DISKS, MACHINE, GuestLog, contents_at, positions_of

pytestmark = pytest.mark.fault
SECONDS = 60.0

CRASHES = [
    "seed.after-slice",
    "seed.after-increment",
    "seed.before-seal",
    "cycle.after-capture:2",
    "cycle.before-seal:2",
    "cycle.after-seal:2",
    "replicate.after-commit:1",
    "replicate.after-commit:3",
    "subblocks.after-fold:4",
    "replicate.before-forget:2",
    "replicate.after-forget:2",
]


class Killed:
    """Gateway B here, gateway A as a process, a guest writing all the time."""

    def __init__(self, root: Path) -> None:
        self.pair = Pair(root)
        self.guest_dir = root / "guest"
        self.guest_dir.mkdir()
        self.guest = GuestLog(self.guest_dir)
        self.chance = random.Random(11)
        self.address = self.pair.start_b()
        self.config = self.pair.config_a(self.address)
        self.process: Forked | None = None
        self.clock, self.never = SystemClock(), threading.Event()

    def start(self, crash: str = "", *, slice_bytes: int = 0) -> None:
        config, guest = str(self.config), str(self.guest_dir)
        with (self.pair.root / "a.log").open("ab") as output:
            self.process = forked_gateway(
                config, guest, output=output, crash_at=crash, TEST_SLICE_BYTES=str(slice_bytes)
            )

    def scribble(self) -> None:
        disk = self.chance.choice(list(DISKS))
        length = self.chance.choice([512, 4 * KIB, 70_000])
        offset = self.chance.randrange((DISKS[disk] - length) // 512) * 512
        self.guest.write(disk, offset, self.chance.choice([self.chance.randbytes(length), bytes(length)]))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = self.clock.monotonic() + SECONDS
        while not condition():
            if self.clock.monotonic() > end:
                pytest.fail(f"{what} did not happen:\n{(self.pair.root / 'a.log').read_text()[-4000:]}")
            self.scribble()
            self.clock.wait(self.never, 0.02)

    def state(self) -> ProtectionState | None:
        with contextlib.suppress(SecondsiteError), self.pair.client_a() as client:
            found = client.status().protections
            return found[0].state if found else None
        return None

    def answers(self) -> bool:
        with contextlib.suppress(SecondsiteError), self.pair.client_a() as client:
            client.status()
            return True
        return False

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def check_points(self) -> int:
        store = LocalStore(self.pair.root / B / "store")
        journal = Journal(store, MachineId(MACHINE), None)
        positions = positions_of(self.guest_dir)
        points = journal.points()
        expected = contents_at(self.guest_dir, [positions[p.checkpoint] for p in points])
        for point in points:
            keys = KeyRing(store, journal.machine, self.pair.vault)
            view = open_view(journal, point.number, keys, bases=lambda _: None)
            for disk, shown in view.disks.items():
                content = shown.read(0, shown.size_bytes)
                assert content == expected[positions[point.checkpoint]][disk], f"point {point.number}, {disk}"
        return len(points)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.pair.stop_b()


@pytest.fixture
def killed() -> Iterator[Killed]:
    with tempfile.TemporaryDirectory(prefix="gk") as name:
        made = Killed(Path(name))
        yield made
        made.close()


def test_every_step_of_the_source_is_killed() -> None:
    ours = {mark for mark in MARKS if mark.startswith(("seed.", "cycle.", "replicate.", "subblocks."))}
    assert ours == {crash.partition(":")[0] for crash in CRASHES}


@pytest.mark.parametrize("crash", CRASHES)
def test_points_hold_and_replication_catches_up(killed: Killed, crash: str) -> None:
    for _ in range(50):
        killed.scribble()
    killed.start(crash)
    killed.until(killed.answers, "gateway A answers")
    killed.pair.protect("shop")
    killed.until(killed.ended, f"the kill at {crash}")
    assert killed.process is not None
    assert killed.process.returncode == -signal.SIGKILL
    before = killed.check_points()
    killed.start()
    killed.until(lambda: killed.state() is ProtectionState.PROTECTED, "Protected after the restart")
    with killed.pair.client_a() as client:
        taken = client.take_point("shop")
    assert taken.number
    assert killed.check_points() > before
    assert (killed.pair.root / A / "state" / "desired.json").exists()


@pytest.mark.parametrize(
    "crash", ["seed.after-slice:2", "seed.after-slice:5", "seed.after-increment", "seed.before-seal"]
)
def test_a_compare_that_is_killed_goes_on(killed: Killed, crash: str) -> None:
    """The host forgets its checkpoints and our table is void: everything is compared, and killed in that."""
    for _ in range(50):
        killed.scribble()
    killed.start()
    killed.until(killed.answers, "gateway A answers")
    killed.pair.protect("shop")
    killed.until(lambda: killed.state() is ProtectionState.PROTECTED, "Protected")
    assert killed.process is not None
    killed.process.kill()
    killed.process.wait()
    before = killed.check_points()
    (killed.guest_dir / "checkpoints.json").unlink()
    killed.start(crash, slice_bytes=MIB)
    killed.until(killed.ended, f"the kill at {crash}")
    assert killed.process.returncode == -signal.SIGKILL
    assert killed.check_points() == before, "an uncommitted compare is no point"
    killed.start(slice_bytes=MIB)
    killed.until(lambda: killed.state() is ProtectionState.PROTECTED, "Protected after the restart")
    with killed.pair.client_a() as client:
        client.take_point("shop")
    assert killed.check_points() > before
    assert "is compared with the target" in (killed.pair.root / "a.log").read_text()
