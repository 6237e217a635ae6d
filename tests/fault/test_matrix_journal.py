"""Power lost, or the process killed, at every operation of everything a journal does: see docs/proof.md.

Every run takes a share of each matrix; `./run crash` takes all of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.target.intake import Upload
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.gateway.target.upkeep import Upkeep
from secondsite.journal import drop as dropping
from secondsite.journal import merge as merging
from secondsite.journal import promote as promotion
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import HeadMoved
from secondsite.journal.drop import bases_removed, delete_dropped, drop_points
from secondsite.journal.merge import abandon
from secondsite.journal.names import log_prefix, machine_prefix, segments_prefix
from secondsite.journal.page_write import delete_pages, write_page
from secondsite.journal.segment import SegmentHead, SegmentWriter
from secondsite.journal.state import Dropped, State
from secondsite.journal.sweep import delete_promoted, delete_retired, garbage
from secondsite.model.ids import SegmentId
from secondsite.model.points import Claim, Point, SegmentRef, Span
from secondsite.model.retention import RetentionPolicy
from secondsite.transfer.protocols import Peer, SegmentName
from support.crash_matrix import Case, Scene, run_case, run_twice
from support.journal_model import DISKS, MACHINE, SUB

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600)]
PEER = Peer(name="gateway-a")


class Quiet:
    """An event sink nobody reads."""

    def emit(self, *_: object, **__: object) -> None:
        pass


def scene(points: int = 5, seed: int = 1) -> Scene:
    made = Scene(seed)
    made.claim()
    for _ in range(points):
        made.random_point()
    return made


def number(made: Scene, index: int) -> int:
    return made.listed()[index]


# -- scenes ---------------------------------------------------------------------------------------


def with_base() -> Scene:
    made = scene(6)
    made.promote(number(made, 1))
    return made


def resized() -> Scene:
    made = scene(3)
    made.promote(number(made, 0))
    made.resize(DISKS[0], SUB * 40 - 512)
    made.random_point()
    made.resize(DISKS[0], SUB * 72)
    made.random_point()
    return made


def merged() -> Scene:
    """A span among points, and a reader from before it that holds what it replaced."""
    made = scene(8)
    made.promote(number(made, 0))
    made.pin_and_open(number(made, 3), "test-1")
    made.merge(number(made, 3), number(made, 6))
    return made


def reader_before_the_merge() -> Scene:
    made = scene(7)
    made.pin_and_open(number(made, 2), "test-1")
    made.pin_and_open(number(made, 5), "export-2")
    return made


def let_go() -> Scene:
    """Everything a merge replaced waits for a reader, who goes."""
    made = scene(7)
    made.pin_and_open(number(made, 4), "test-1")
    made.merge(number(made, 4), number(made, 6))
    made.merge(number(made, 0), number(made, 3))
    made.journal.unpin("test-1")
    made.views.clear()
    return made


def dead_epoch() -> Scene:
    made = scene(3)
    for disk in DISKS:
        before = bytes(made.now[disk])
        made.segment(disk, 1, [(1, 3, "random")])
        made.now[disk][:] = before
    made.claim("gateway-c")
    return made


class TakenOver(Scene):
    """Once its points are deleted the next one has to be whole."""

    def random_point(self) -> Point:
        if self.points:
            return super().random_point()
        self.newest = None
        for disk in DISKS:
            self.now[disk][:] = bytes(len(self.now[disk]))
            self.bases.pop(disk, None)
        return self.add_point({disk: [[(0, 65, "random")]] for disk in DISKS})


def taken_over() -> Scene:
    made = TakenOver(1)
    made.claim()
    for _ in range(6):
        made.random_point()
    made.promote(number(made, 0))
    made.merge(number(made, 1), number(made, 3))
    made.claim("gateway-b")
    return made


def many_points() -> Scene:
    made = scene(0)
    for turn in range(70):
        made.add_point({DISKS[turn % 2]: [[(turn % 60, 2, "text")]]})
    return made


# -- work -----------------------------------------------------------------------------------------


def promote_to(index: int) -> Callable[[Scene], object]:
    def work(made: Scene) -> None:
        if made.target is None:
            made.target = number(made, index)
        made.promote(made.target)

    return work


def merge_between(after: int, last: int) -> Callable[[Scene], object]:
    def work(made: Scene) -> None:
        if made.range is None:
            made.range = (number(made, after), number(made, last))
        abandon(made.journal)
        made.merge(*made.range)
        delete_retired(made.journal, clock=made.clock)

    return work


def retire(made: Scene) -> None:
    delete_retired(made.journal, clock=made.clock)
    delete_promoted(made.journal, clock=made.clock)


def collect(made: Scene) -> None:
    for name in garbage(made.journal):
        made.store.delete(name)


def pages(made: Scene) -> None:
    while write_page(made.journal, made.ring, without=set()) is not None:
        pass
    delete_pages(made.journal)
    while write_page(made.journal, made.ring, without=set()) is not None:
        pass


def drop(made: Scene) -> None:
    """All points deleted together at a commit."""
    claim = made.journal.head().claim
    assert claim is not None
    drop_points(made.journal, claim, clock=made.clock)
    delete_dropped(made.journal)
    bases_removed(made.journal, lambda _: True)
    made.settle()
    left = {name.split("/")[2] for name in made.store.list(machine_prefix(MACHINE))}
    assert left == {"log", "state"}
    assert len(list(made.store.list(log_prefix(MACHINE)))) == 1


def upkeep(policy: str, *, bases: bool = True) -> Callable[[Scene], object]:
    def work(made: Scene) -> None:
        steps = Upkeep(
            journal=made.journal,
            keys=made.ring,
            policy=lambda: RetentionPolicy.parse(policy),
            open_base=made.open_base if bases else None,
            verified=tuple,
            clock=made.clock,
            events=Quiet(),
            cancel=threading.Event(),
            pace=lambda _: None,
        )
        while steps.step():
            made.settle()
        made.settle()

    return work


def pin_and_unpin(made: Scene) -> None:
    made.journal.pin(number(made, 2), "test-9", "a test")
    made.journal.unpin("test-9")


def claim(made: Scene) -> None:
    if made.expected is None:
        made.expected = made.journal.head()
    with contextlib.suppress(HeadMoved):  # it had landed, or a later one did
        made.journal.claim(
            name="web",
            claimant="gateway-c",
            reason="failover",
            clock=made.clock,
            expected=made.expected,
            nonce="ab" * 16,
        )


def receive(made: Scene) -> None:
    """A source that goes on where its target stands: segments in blocks, then the commit; all repeated."""
    receiver = GatewayReceiver(
        made.store, vault=made.vault, peers={PEER.name: PeerRule()}, clock=made.clock, events=Quiet()
    )
    if made.sending is None:
        ready = [sealed(made, index) for index in range(3)]
        made.sending = (ready, made.proposal([ref for ref, _ in ready]))
    segments, proposal = made.sending
    for ref, data in segments:
        name = SegmentName.of(MACHINE, ref)
        upload = receiver.open_segment(PEER, name, size_bytes=ref.stored_bytes, digest=ref.hash)
        if upload is None:
            continue
        try:
            for start in range(upload.offset, len(data), 900):
                upload.append(memoryview(data)[start : start + 900])
            upload.finish()
        finally:
            upload.suspend()
    receiver.commit(PEER, proposal)
    made.open_journal()
    made.settle()


def sealed(made: Scene, index: int) -> tuple[SegmentRef, bytes]:
    """A segment that is not in the store yet; the source's disk changes once it is committed."""
    after, disk = made.after, DISKS[index % 2]
    if not after:
        after.update({each: bytearray(made.now[each]) for each in DISKS})
    head = SegmentHead(
        MACHINE, disk, 1, SegmentId(made.chance.randbytes(16).hex()), made.keys[disk].id, len(after[disk])
    )
    writer = SegmentWriter(head, made.keys[disk])
    data = made.chance.randbytes(SUB)
    after[disk][index * 8 * SUB : (index * 8 + 1) * SUB] = data
    writer.add(index * 8 * SUB, memoryview(data))
    made_bytes, ref = writer.finish()
    return ref, bytes(made_bytes)


CASES = [
    Case("receive and commit", lambda: scene(2), receive, stride=3),
    Case("claim", lambda: scene(2), claim, stride=1),
    Case("pin and unpin", lambda: scene(4), pin_and_unpin, stride=2),
    Case("first promotion", lambda: scene(5), promote_to(2), stride=9),
    Case("promotion", with_base, promote_to(2), stride=9),
    Case("promotion of resized disks", resized, promote_to(-1), stride=12),
    Case("promotion over a span", merged, promote_to(-1), stride=8),
    Case("promotion under a reader", reader_before_the_merge, promote_to(1), stride=9),
    Case("merge", lambda: scene(6), merge_between(0, 4), stride=9),
    Case("merge over a span", merged, merge_between(0, 3), stride=7),
    Case("merge between readers", reader_before_the_merge, merge_between(2, 5), stride=7),
    Case("merge of resized disks", resized, merge_between(0, -1), stride=7),
    Case("deletion once a reader is gone", let_go, retire, stride=5),
    Case("garbage", dead_epoch, collect, stride=1),
    Case("deletion of all points", taken_over, drop, stride=7),
    Case("pages", many_points, pages, stride=12),
    Case("upkeep to the latest point", lambda: scene(6), upkeep("latest"), stride=16),
    Case("upkeep without bases", lambda: scene(6), upkeep("latest", bases=False), stride=12),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_crash_at_every_operation(case: Case) -> None:
    assert run_case(case) > 0


TWICE = {"first promotion": 900, "promotion over a span": 400, "merge": 300, "merge over a span": 200}


@pytest.mark.parametrize("name", TWICE, ids=lambda name: name.replace(" ", "-"))
def test_crash_while_going_on_after_a_crash(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    assert run_twice(case, TWICE[name]) > 0


# -- planted bugs: a matrix that lets one through has a hole --------------------------------------


def base_not_synced(patch: pytest.MonkeyPatch) -> None:
    """The state says that the base holds what its volume has not kept yet."""
    patch.setattr(MemoryBase, "sync", lambda self: None)


def promoted_before_written(patch: pytest.MonkeyPatch) -> None:
    """The state says that the base holds the point while it is still written."""
    real = promotion._write_bases

    def write(journal: Journal, state: State, *rest: object) -> None:
        journal.update_state(lambda now: msgspec.structs.replace(now, promoted=now.floor))
        real(journal, state, *rest)  # type: ignore[arg-type]

    patch.setattr(promotion, "_write_bases", write)


def replaced_deleted_before_the_span(patch: pytest.MonkeyPatch) -> None:
    """What a merge replaces goes before the span is in force."""
    real = merging._put_span

    def late(journal: Journal, span: Span, *rest: object) -> None:
        for point in journal.points_after(span.first - 1):
            for segment in point.segments if point.number <= span.last else ():
                journal.store.delete(journal.segment_name(segment))
        real(journal, span, *rest)  # type: ignore[arg-type]

    patch.setattr(merging, "_put_span", late)


def readers_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Pins hold nothing."""
    patch.setattr(State, "pins_at", lambda self, now: ())


def commit_without_looking(patch: pytest.MonkeyPatch) -> None:
    """A commit takes its segments for granted, and a sender takes them for sent."""
    patch.setattr(Journal, "_check_segments", lambda self, proposal: None)
    patch.setattr(Upload, "finish", lambda self: self.suspend())


def deleted_before_hidden(patch: pytest.MonkeyPatch) -> None:
    """Objects go while points that need them are listed."""
    real = dropping.drop_points

    def late(journal: Journal, claim: Claim, *, clock: Clock) -> Dropped:
        for name in list(journal.store.list(segments_prefix(journal.machine))):
            journal.store.delete(name)
        return real(journal, claim, clock=clock)

    patch.setitem(globals(), "drop_points", late)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (base_not_synced, "promotion"),
    (promoted_before_written, "promotion"),
    (replaced_deleted_before_the_span, "merge"),
    (readers_forgotten, "promotion under a reader"),
    (readers_forgotten, "merge between readers"),
    (commit_without_looking, "receive and commit"),
    (deleted_before_hidden, "deletion of all points"),
]


@pytest.mark.parametrize(("plant", "name"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.name == name)
    plant(monkeypatch)
    with pytest.raises((AssertionError, SecondsiteError)):
        run_case(replace(case, stride=2))
