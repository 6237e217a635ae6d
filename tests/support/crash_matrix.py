"""Crash at the N-th operation, for every N: scenes of a journal's life, and what must hold after each crash.

A scene is built the same way each time, so that N means the same operation. Three things happen at it:

* power: the store keeps what was acknowledged (the operation that was struck landed or not), of staged bytes
  some beginning, and of every unsynced write to a base each sector for itself;
* kill: store and bases keep everything; readers in other processes have their views open, and go on;
* fail: the operation fails, having landed or not, and the same process goes on with what it has in memory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from secondsite.journal.base_sums import differing, read_sums
from secondsite.journal.bases import BaseImage
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Head
from secondsite.journal.state import BaseState, Dropped
from secondsite.journal.store import StoreUnavailable
from secondsite.journal.store_memory import Faults, PowerCut
from secondsite.journal.sweep import garbage
from secondsite.model.ids import DiskId
from secondsite.model.points import PointProposal, SegmentRef
from support.journal_model import DISKS, Replica

SECTOR = 512
FULL = os.environ.get("SECONDSITE_MATRIX") == "full"


class TornBase(MemoryBase):
    """A base whose unsynced writes a power cut may undo sector by sector."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert offset + len(data) <= len(self._data), "writes stay inside the image"

        def effect() -> None:
            self._data[offset : offset + len(data)] = data
            for start in range(0, len(data), SECTOR):
                self._unsynced.append((offset + start, bytes(data[start : start + SECTOR])))

        self.faults.operate(f"base write {offset}", effect)

    def restarted(self, survives: frozenset[int] = frozenset()) -> TornBase:
        other = TornBase(0)
        other.__dict__.update(
            {k: v for k, v in super().restarted(survives).__dict__.items() if k != "faults"}
        )
        return other


class Scene(Replica):
    """A replica for the matrix, and what its work must remember across a crash, as its caller would."""

    target: int | None = None  # of a promotion
    range: tuple[int, int] | None = None  # of a merge
    expected: Head | None = None  # by a claim
    sending: tuple[list[tuple[SegmentRef, bytes]], PointProposal] | None = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.after: dict[DiskId, bytearray] = {}  # the source's disks once what it sends is committed

    def open_base(self, disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        if known is None:
            self.bases[disk] = TornBase(size_bytes, self.faults)
        return self.bases[disk]

    def power_cut(self, chance: random.Random) -> None:
        """Restart on what a cut leaves."""
        self.faults = Faults()
        self.store = self.store.restarted(staged_bytes_kept=chance.choice([0, 1, 700, 1 << 30]))
        self.store.faults = self.faults
        share = chance.choice([0.0, 0.5, 1.0])
        for disk, base in self.bases.items():
            kept = frozenset(n for n in range(base.unsynced_count) if chance.random() < share)
            self.bases[disk] = base.restarted(kept)
            self.bases[disk].faults = self.faults
        self.views = {}
        self.open_journal()
        self.settle()

    def kill(self) -> None:
        """Restart with nothing lost; views stay open."""
        self.faults.cut_at, self.faults.dead, self.faults.landed = None, False, False
        self.store = self.store  # the same: readers have it
        self.open_journal()
        self.settle()

    def settle(self) -> None:
        """Take over what the struck work had brought into force: whole, or not at all."""
        state = self.journal.state()
        if isinstance(state.dropped, Dropped):
            self.points = {n: held for n, held in self.points.items() if n > state.dropped.number}
        for span in state.spans:
            inside = {n for n in self.points if span.first <= n < span.last}
            for number in inside:
                del self.points[number]
        newest = self.journal.head().point
        if self.sending is None or newest is None or newest.number in self.points:
            return
        proposal = self.sending[1]
        assert newest.nonce == proposal.nonce, "a point nobody asked for"
        for disk, content in self.after.items():
            self.now[disk][:] = content
        self.remember(newest.number, proposal.checkpoint)

    def listed(self) -> list[int]:
        return [point.number for point in self.journal.points()]

    def verify(self) -> None:
        """Every committed point bit-identical, every view that is open, every sum of the bases."""
        self.check()
        self.check_views()

    def verify_sums(self) -> None:
        """Once nothing is half done: the bases are what their sums say."""
        state = self.journal.state()
        for disk in DISKS:
            if state.base(disk) is not None and state.promoted:
                sums = read_sums(self.store, self.journal.machine, disk)
                assert list(differing(self.bases[disk], sums, self.keys[disk].digest_seed())) == []


@dataclass(frozen=True)
class Case:
    """What is cut off, and when it may have what outcome."""

    name: str
    build: Callable[[], Scene]
    work: Callable[[Scene], object]  # may be called again after a crash, and then completes
    stride: int = 5  # of the share that every run of the tests takes

    def operations(self) -> int:
        """How many there are when nothing goes wrong."""
        scene = self.build()
        before = scene.faults.count
        self.work(scene)
        return scene.faults.count - before


def strike(case: Case, at: int, *, landed: bool, how: str = "power") -> Scene:
    """Build the scene and cut its work off at an operation."""
    scene = case.build()
    struck = scene.faults.count + at
    scene.faults.landed = landed
    if how == "fail":
        scene.faults.fail_at = struck
    else:
        scene.faults.cut_at = struck
    try:
        case.work(scene)
    except (PowerCut, StoreUnavailable):
        return scene
    assert how == "fail", f"{case.name} has fewer than {at} operations"
    return scene  # it did not matter


def go_down(scene: Scene, how: str, chance: random.Random) -> None:
    """Restart after a strike, or just go on."""
    if how == "power":
        scene.power_cut(chance)
    elif how == "kill":
        scene.kill()
    else:
        scene.faults.fail_at, scene.faults.landed = None, False
        scene.settle()


def go_on(case: Case, scene: Scene) -> None:
    """What follows a crash: the work again, a new point, the sweep; all right after each."""
    scene.verify()
    case.work(scene)
    scene.settle()
    scene.verify()
    for name in garbage(scene.journal):
        scene.store.delete(name)
    scene.random_point()
    scene.verify()
    scene.verify_sums()


def moments(case: Case) -> Iterator[tuple[int, bool, str]]:
    """(operation, whether it landed, how it goes down) of the matrix, or of this run's share of it."""
    total = case.operations()
    every = [
        (at, landed, how)
        for at in range(1, total + 1)
        for landed in (False, True)
        for how in ("power", "kill", "fail")
    ]
    yield from every if FULL else every[sum(case.name.encode()) % case.stride :: case.stride]


def run_case(case: Case) -> int:
    """The matrix of one case; how many moments were tried."""
    tried = 0
    for at, landed, how in moments(case):
        chance = random.Random(f"{at} {landed} {how}")
        try:
            scene = strike(case, at, landed=landed, how=how)
            go_down(scene, how, chance)
            go_on(case, scene)
        except PowerCut as error:
            raise AssertionError(f"{case.name}: a dead scene was used") from error
        except BaseException as error:
            error.add_note(f"{case.name} cut at operation {at}, landed {landed}, {how}")
            raise
        tried += 1
    return tried


def run_twice(case: Case, stride: int) -> int:
    """Recovery itself is cut off: the work, then the work again, at every pair of moments (or a share)."""
    total, tried = case.operations(), 0
    pairs = [(first, second) for first in range(1, total + 1) for second in range(1, total + 1)]
    for first, second in pairs if FULL else pairs[::stride]:
        chance = random.Random(first * 1000 + second)
        scene = strike(case, first, landed=chance.random() < 0.5)
        try:
            go_down(scene, chance.choice(["power", "kill"]), chance)
            scene.faults.cut_at = scene.faults.count + second
            scene.faults.landed = chance.random() < 0.5
            try:
                case.work(scene)
                scene.faults.cut_at = None  # it had less left to do
            except PowerCut:
                go_down(scene, "power", chance)
            scene.settle()
            go_on(case, scene)
        except BaseException as error:
            error.add_note(f"{case.name} cut at operation {first}, then at {second} of going on")
            raise
        tried += 1
    return tried
