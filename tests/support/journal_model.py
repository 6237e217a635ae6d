"""A journal beside a model of it: for every committed point the plain bytes of every disk."""

from __future__ import annotations

import random
from collections.abc import Sequence

from secondsite.base.clock import FakeClock
from secondsite.journal.bases import BaseImage
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, KeyRing, VaultKey
from secondsite.journal.merge import Merged, NotMergeable, merge
from secondsite.journal.promote import Promoted, promote
from secondsite.journal.segment import SegmentHead, SegmentWriter
from secondsite.journal.state import BaseState
from secondsite.journal.store_memory import Faults, MemoryStore, PowerCut
from secondsite.journal.sweep import delete_retired
from secondsite.journal.view import PointView, open_view
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.model.points import Consistency, DiskState, Point, PointProposal, SegmentRef

MACHINE = MachineId("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
DISKS = (DiskId("vda"), DiskId("vdb"))
SUB = 4096
SIZE = 64 * SUB + 512  # a disk's end need not be a multiple of anything

Write = tuple[int, int, str]  # first sub-block, how many, "random" | "zero" | "text"


class Replica:
    """Drives a journal on a memory store and memory bases, and knows what must be read from it."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.faults = Faults()
        self.store = MemoryStore(self.faults)
        self.bases: dict[DiskId, MemoryBase] = {}
        self.vault = VaultKey.create()
        self.keys = {disk: DiskKey.create() for disk in DISKS}
        self.now = {disk: bytearray(SIZE) for disk in DISKS}  # the source's disks
        self.views: dict[str, tuple[int, PointView]] = {}  # holder -> what it reads, opened after its pin
        self.points: dict[int, dict[DiskId, bytes]] = {}
        self.checkpoint = 0
        self.newest: str | None = None
        self.open_journal()

    def open_journal(self) -> None:
        self.journal = Journal(self.store, MACHINE, self.vault)
        self.ring = KeyRing(self.store, MACHINE, self.vault)
        for key in self.keys.values():
            self.ring.add(key)

    def restart(self, survives: frozenset[int] = frozenset()) -> None:
        """After a power cut: what is durable, and any of the unsynced writes to the bases."""
        self.faults = Faults()
        self.store = self.store.restarted()
        self.store.faults = self.faults
        self.bases = {disk: base.restarted(survives) for disk, base in self.bases.items()}
        for base in self.bases.values():
            base.faults = self.faults
        self.views = {}
        self.open_journal()

    def claim(self, claimant: str = "gateway-a") -> int:
        claim = self.journal.claim(
            name="web", claimant=claimant, reason="first copy", clock=self.clock, expected=self.journal.head()
        )
        return claim.epoch

    def segment(self, disk: DiskId, epoch: int, writes: Sequence[Write]) -> SegmentRef:
        """Change the source's disk and put the segment that tells of it."""
        key = self.keys[disk]
        segment = SegmentId(self.chance.randbytes(16).hex())
        made, ref = self.write(
            SegmentHead(MACHINE, disk, epoch, segment, key.id, len(self.now[disk])), writes
        )
        self.store.put(self.journal.segment_name(ref), bytes(made))
        return ref

    def write(self, head: SegmentHead, writes: Sequence[Write]) -> tuple[memoryview, SegmentRef]:
        """Change the source's disk; the segment that tells of it."""
        content, key = self.now[head.disk], self.keys[head.disk]
        writer = SegmentWriter(head, key)
        for first, count, kind in writes:
            start, end = first * SUB, min((first + count) * SUB, len(content))
            length = end - start
            if length <= 0:
                continue
            data = {"random": self.chance.randbytes(length), "zero": bytes(length)}.get(
                kind, (b"text %d " % self.chance.randrange(9) * length)[:length]
            )
            content[start:end] = data
            if kind == "zero" and self.chance.random() < 0.5:
                writer.add_zeros(start, length)
            else:
                writer.add(start, memoryview(data))
        return writer.finish()

    def proposal(self, segments: Sequence[SegmentRef], *, whole: bool = False) -> PointProposal:
        self.checkpoint += 1
        return PointProposal(
            machine=MACHINE,
            machine_name="web",
            epoch=self.journal.head().epoch,
            nonce=self.chance.randbytes(16).hex(),
            checkpoint=f"c{self.checkpoint}",
            parent_checkpoint=None if whole else self.newest,
            asked_at="2026-01-01T00:00:00+00:00",
            given_at="2026-01-01T00:00:00+00:00",
            consistency=Consistency.CRASH,
            disks=tuple(
                DiskState(id=disk, size_bytes=len(self.now[disk]), key_id=self.keys[disk].origin)
                for disk in DISKS
            ),
            segments=tuple(segments),
            definition=b"",
        )

    def commit(self, proposal: PointProposal) -> Point:
        point = self.journal.commit(proposal, clock=self.clock)
        self.remember(point.number, proposal.checkpoint)
        return point

    def remember(self, number: int, checkpoint: str) -> None:
        self.points[number] = {disk: bytes(content) for disk, content in self.now.items()}
        self.newest = checkpoint

    def add_point(self, writes: dict[DiskId, list[list[Write]]]) -> Point:
        """One instant: some segments a disk, each of some writes."""
        epoch = self.journal.head().epoch
        refs = [self.segment(disk, epoch, part) for disk, parts in writes.items() for part in parts]
        return self.commit(self.proposal(refs))

    def random_point(self) -> Point:
        kinds = ("random", "zero", "text")
        return self.add_point(
            {
                disk: [
                    [
                        (self.chance.randrange(0, 60), self.chance.randint(1, 20), self.chance.choice(kinds))
                        for _ in range(self.chance.randint(1, 3))
                    ]
                    for _ in range(self.chance.randint(0, 2))
                ]
                for disk in DISKS
            }
        )

    def resize(self, disk: DiskId, size_bytes: int, *, told: bool = True) -> Point:
        """A point at which the disk has another size; `told`: the source writes zeros over a new part."""
        content = self.now[disk]
        before = len(content)
        content[size_bytes:] = b""
        content.extend(bytes(size_bytes - len(content)))
        writes: list[Write] = []
        if told and before < size_bytes:
            first = before // SUB
            kept = bytes(content)
            writes = [(first, (size_bytes + SUB - 1) // SUB - first, "zero")]
            if any(kept[first * SUB : before]):
                writes = [(first + 1, writes[0][1] - 1, "zero")]
        return self.add_point({disk: [writes]} if writes else {})

    def pin_and_open(self, number: int, holder: str) -> None:
        """A reader as exports are: pinned first, opened after, kept open across promotions."""
        self.unpin(holder)
        self.journal.pin(number, holder, "a test")
        # nothing is cached: what the view reads must be there
        view = open_view(self.journal, number, self.ring, bases=self.base_of, cache_bytes=0)
        self.views[holder] = (number, view)

    def unpin(self, holder: str) -> None:
        self.views.pop(holder, None)
        self.journal.unpin(holder)

    def check_views(self) -> None:
        for number, view in self.views.values():
            for disk, found in view.disks.items():
                assert found.read(0, found.size_bytes) == self.points[number][disk], "an open view changed"

    def open_base(self, disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        if known is None:
            self.bases[disk] = MemoryBase(size_bytes, self.faults)
        return self.bases[disk]

    def base_of(self, disk: DiskId) -> BaseImage | None:
        return self.bases.get(disk) if self.journal.state().base(disk) else None

    def promote(self, number: int) -> Promoted:
        return promote(self.journal, number, self.ring, self.open_base, clock=self.clock)

    def merge(self, after: int, last: int) -> Merged | None:
        """Of the points after `after` only `last` stays; None when something is in the way."""
        try:
            done = merge(self.journal, after, last, self.ring, clock=self.clock)
        except NotMergeable:
            return None
        for number in [number for number in self.points if after < number < last]:
            del self.points[number]
        delete_retired(self.journal, clock=self.clock)
        return done

    def read(self, number: int) -> dict[DiskId, bytes]:
        with open_view(self.journal, number, self.ring, bases=self.base_of) as view:
            return {disk: found.read(0, found.size_bytes) for disk, found in view.disks.items()}

    def check(self) -> None:
        """Every point that must be there reads what the source held at its instant, whole and in pieces."""
        floor = self.journal.state().floor
        expected = sorted(number for number in self.points if number >= floor)
        assert [point.number for point in self.journal.points()] == expected
        for number in expected:
            assert self.read(number) == self.points[number], f"point {number} reads other bytes"
        if expected:
            self._check_pieces(expected[-1])

    def _check_pieces(self, number: int) -> None:
        with open_view(self.journal, number, self.ring, bases=self.base_of) as view:
            for disk, found in view.disks.items():
                content = self.points[number][disk]
                for _ in range(6):
                    start = self.chance.randrange(0, len(content))
                    length = min(len(content) - start, self.chance.randint(1, 20000))
                    assert found.read(start, length) == content[start : start + length]
                covered = 0
                for start, end, zero in found.extents(0, len(content)):
                    assert start == covered
                    assert not (zero and any(content[start:end])), "an extent of zeros holds data"
                    covered = end
                assert covered == len(content)


__all__ = ["DISKS", "MACHINE", "SIZE", "SUB", "PowerCut", "Replica"]
