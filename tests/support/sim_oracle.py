"""What must be true of a replica, told from the outside: the machine's disks at every instant, and the log.

Nothing here uses the code under test to decide; it is used to read (views), and what is read is compared
with the bytes the machine held. The names of the assertions are those of the design's list:

J1 what was acknowledged is read back identical. J2 nothing is read that was not written. J3 a visible point
has all it needs in the store. J4 no trimming costs a retained point. J5 a point is all disks at one instant.
R1 one epoch's writer commits. R2 every cut is gone on from. R3 the only copy of a write is never deleted.
L1 a reported lag is never better than the true one. L2 without faults it catches up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secondsite.journal.chain import Journal
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.keys import DiskKey, KeyRing, VaultKey
from secondsite.journal.manifest import decode_record
from secondsite.journal.names import log_prefix
from secondsite.journal.view import BaseOf, open_view
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Claim, Point
from secondsite.transfer.protocols import CommittedPoint
from support.sim_devices import SimStore
from support.sim_kernel import RunFailed, World

Content = Mapping[DiskId, bytes]


@dataclass(frozen=True)
class Instant:
    """What a machine held when a checkpoint was made."""

    owner: str  # the gateway that captured it
    at: float
    content: Content


@dataclass
class Oracle:
    """Beside the run; it sees every instant and every record as it comes to be."""

    world: World
    store: SimStore
    machine: MachineId
    vault: VaultKey
    instants: dict[str, Instant] = field(default_factory=dict)
    counted: dict[int, Point] = field(default_factory=dict)  # points that count, by number
    claims: dict[int, Claim] = field(default_factory=dict)  # by epoch
    acknowledged: set[int] = field(default_factory=set)
    committed_at: dict[int, float] = field(default_factory=dict)
    allowed_floor: int | None = 0  # the highest point anybody asked to promote; None: the retention decides
    # every point stays for so long after it was committed; None: merges are asked for at random
    reach_seconds: float | None = None
    keys: Mapping[DiskId, DiskKey] = field(default_factory=dict)
    checks: int = 0

    def require(self, condition: bool, rule: str, text: str) -> None:
        """Fail the run unless the condition holds."""
        if not condition:
            raise RunFailed(f"{rule}: {text}")

    # -- what happens -----------------------------------------------------------------------------

    def captured(self, checkpoint: str, owner: str, content: Content) -> None:
        """A machine was captured."""
        self.require(checkpoint not in self.instants, "R2", f"checkpoint {checkpoint} is used twice")
        self.instants[checkpoint] = Instant(owner, self.world.now, content)

    @property
    def epoch(self) -> int:
        """In force."""
        return max(self.claims, default=0)

    @property
    def newest(self) -> Point | None:
        """The newest point that counts."""
        return self.counted[max(self.counted)] if self.counted else None

    def on_put(self, key: str, data: bytes) -> None:
        """An object was created; a record of the log is judged at this moment."""
        if not key.startswith(log_prefix(self.machine)):
            return
        record = decode_record(data, self.vault.log_key(self.machine))
        if isinstance(record, Claim):
            self.require(record.epoch == self.epoch + 1, "R1", f"a claim of epoch {record.epoch}")
            self.claims[record.epoch] = record
            self.world.note("claim", record.number, record.epoch, record.claimant)
            return
        self.world.note("point", record.number, record.epoch, len(record.segments), record.sent_bytes)
        if record.epoch == self.epoch:
            self._count(record)

    def _count(self, point: Point) -> None:
        instant = self.instants.get(point.checkpoint)
        self.require(instant is not None, "J2", f"point {point.number} is of no instant")
        assert instant is not None
        writer = self.claims[point.epoch].claimant
        self.require(instant.owner == writer, "R1", f"{instant.owner} commits in the epoch of {writer}")
        for other in self.counted.values():
            same = other.nonce == point.nonce or other.checkpoint == point.checkpoint
            self.require(not same, "J2", f"points {other.number} and {point.number} are one commit")
        newest = self.newest
        follows = point.parent_checkpoint in {None, newest.checkpoint if newest else None}
        self.require(follows, "J5", f"point {point.number} does not follow the newest one")
        for disk in point.disks:
            if disk.fingerprint is not None:
                seed = self.keys[disk.id].digest_seed()
                true = fingerprint_text(
                    combine(digest_sub_blocks(memoryview(instant.content[disk.id]), 0, seed))
                )
                self.require(
                    disk.fingerprint == true, "J5", f"the fingerprint of {disk.id} in {point.number}"
                )
        self.counted[point.number] = point
        self.committed_at[point.number] = self.world.now
        self.check_presence(point)

    def check_presence(self, point: Point, journal: Journal | None = None) -> None:
        """J3: every segment of a point is in the store, whole."""
        journal = journal or self.journal()
        for ref in point.segments:
            name = journal.segment_name(ref)
            try:
                size = self.store.inner.size(name)
            except Exception as error:
                raise RunFailed(f"J3: point {point.number} needs {name}: {error}") from error
            self.require(size == ref.stored_bytes, "J3", f"{name} has {size} bytes")

    def was_acknowledged(self, point: CommittedPoint) -> None:
        """A source was told that its point is committed."""
        counted = self.counted.get(point.number)
        ok = counted is not None and counted.checkpoint == point.checkpoint
        self.require(ok, "J1", f"point {point.number} was acknowledged and is not in the log")
        self.acknowledged.add(point.number)

    def newest_of(self, owner: str) -> Instant | None:
        """The newest committed instant of a gateway's."""
        instants = (self.instants[self.counted[n].checkpoint] for n in sorted(self.counted, reverse=True))
        return next((instant for instant in instants if instant.owner == owner), None)

    # -- what must be true ------------------------------------------------------------------------

    def journal(self) -> Journal:
        """Opened afresh, on what is in the store now."""
        return Journal(self.store.inner, self.machine, self.vault)

    def check(self, bases: BaseOf, *, every: bool) -> None:
        """Read points (the newest and one by chance, or every one) and compare; from the main greenlet."""
        self.checks += 1
        journal = self.journal()
        points = journal.points()
        state = journal.state()
        ok = self.allowed_floor is None or state.floor <= self.allowed_floor
        self.require(ok, "J4", f"the floor is at {state.floor}")
        gone = {n for n in self.counted if n < state.floor}
        gone |= {n for span in state.spans for n in self.counted if span.first <= n < span.last}
        expected = [number for number in sorted(self.counted) if number not in gone]
        found = [point.number for point in points]
        self.require(found == expected, "J1", f"points {found} are listed, {expected} must be")
        if self.reach_seconds is not None and gone:
            age = self.committed_at[max(self.counted)] - self.committed_at[max(gone)]
            self.require(age >= self.reach_seconds - 1.0, "J4", f"point {max(gone)} left after {age:.1f} s")
        for pin in state.pins:
            self.require(pin.number in found, "J4", f"pinned point {pin.number} is gone")
        if not points:
            return
        chosen = points if every else {points[-1].number: points[-1]}.values()
        if not every and len(points) > 1:
            chosen = [points[-1], self.world.chance.choice(points[:-1])]
        keys = KeyRing(self.store.inner, self.machine, self.vault)
        for point in chosen:
            self.check_point(journal, point, keys, bases)

    def check_point(self, journal: Journal, point: Point, keys: KeyRing, bases: BaseOf) -> None:
        """J1, J2, J5: one point reads what its machine held at its instant, every disk, nothing else."""
        content = self.instants[point.checkpoint].content
        sizes = {disk.id: disk.size_bytes for disk in point.disks}
        held = {disk: len(data) for disk, data in content.items()}
        self.require(sizes == held, "J5", f"point {point.number} has disks {sizes}, not {held}")
        with open_view(journal, point.number, keys, bases=bases) as view:
            for disk, shown in view.disks.items():
                self.same(point.number, disk, 0, shown.read(0, shown.size_bytes), content[disk])

    def same(self, number: int, disk: DiskId, offset: int, found: bytes, expected: bytes) -> None:
        """Bytes of a point equal those of its instant."""
        if found == expected:
            return
        wrong = next(i for i in range(len(expected)) if found[i : i + 1] != expected[i : i + 1])
        raise RunFailed(f"J5: point {number}: disk {disk} differs at {offset + wrong}")
