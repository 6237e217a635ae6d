"""Bugs planted into the real code: each must be found by few seeds, or the simulation has a hole there.

A bug that survives is a failing test. The seeds are fixed; a change of the simulation may move which of them
finds a bug, so a bug has a range of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB
from secondsite.gateway.source import plan, subblocks
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.encode import Encoder
from secondsite.gateway.source.status import Board
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.journal import merge, promote, sweep
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import EpochSuperseded, ParentMismatch, ProposalInvalid
from secondsite.journal.disk_index import _Builder
from secondsite.journal.merged_index import Layer
from secondsite.journal.state import State
from secondsite.journal.store import ObjectExists
from secondsite.transfer.errors import PeerNotAllowed
from support.sim_kernel import RunFailed
from support.sim_run import Run, run_seed

Patch = pytest.MonkeyPatch
SEEDS_MAX = 120


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# -- the source -----------------------------------------------------------------------------------


def table_before_commit(patch: Patch) -> None:
    """Rule 1: what a cycle sends counts as known at once, though the cycle may be abandoned."""
    put = SubBlockTable._put

    def hasty(table: SubBlockTable, log: Any, first: int, values: subblocks.Uint64s) -> None:
        put(table, log, first, values)
        table._known = True
        subblocks._write(table._fd, subblocks._HEADER_BYTES, first, values)

    patch.setattr(SubBlockTable, "_put", hasty)


def side_log_kept(patch: Patch) -> None:
    """Rule 1: an abandoned cycle's log is folded in."""
    abandon = SubBlockTable.abandon

    def keep(table: SubBlockTable, log: Any) -> None:
        if log in table._logs and not log.dead:
            table._fold(log)
            table._known = True
        abandon(table, log)

    patch.setattr(SubBlockTable, "abandon", keep)


def stamp_ignored(patch: Patch) -> None:
    """Rule 1: a table counts for whatever the target has."""
    expect = SubBlockTable.expect

    def trusting(table: SubBlockTable, *, epoch: int, point: int, size_bytes: int) -> bool:
        if table._stamp is not None and table._size_bytes == size_bytes:
            table._restamp(epoch, point)
        return expect(table, epoch=epoch, point=point, size_bytes=size_bytes)

    patch.setattr(SubBlockTable, "expect", trusting)


def checkpoint_forgotten_early(patch: Patch) -> None:
    """Rule 9: the checkpoint of the last committed point goes before the next is acknowledged."""
    tidy = Checkpoints.tidy
    patch.setattr(
        Checkpoints, "tidy", lambda self, *, committed, newest: tidy(self, committed=newest, newest=newest)
    )


def newer_checkpoint_stands_in(patch: Patch) -> None:
    """Changes are counted from a checkpoint after the one that is gone (as another bug lets it go)."""
    checkpoint_forgotten_early(patch)
    real = plan.stand_in

    def careless(tip: str, checkpoints: Any) -> str | None:
        return real(tip, checkpoints) or max(checkpoints, key=plan.checkpoint_number, default=None)

    patch.setattr(plan, "stand_in", careless)


def growth_not_told(patch: Patch) -> None:
    """Rule 12: the new part of a disk that grew is not sent as zeros, a shrink blanks nothing."""
    patch.setattr(Encoder, "zeros", lambda self, track, offset, length: None)
    patch.setattr(_Builder, "add_zeros", lambda self, start, end: None)


def lag_of_captured(patch: Patch) -> None:
    """L1: the lag shown is that of what was captured, not of what was committed."""
    captured = Board.captured

    def rosy(board: Board, *arguments: Any, **figures: Any) -> None:
        captured(board, *arguments, **figures)
        board._point_given = board._clock.monotonic()

    patch.setattr(Board, "captured", rosy)


# -- the target -----------------------------------------------------------------------------------


def segments_not_looked_for(patch: Patch) -> None:
    """A commit does not look whether its segments are there."""
    patch.setattr(Journal, "_check_segments", lambda self, proposal: None)


def stale_epoch_accepted(patch: Patch) -> None:
    """Rule 2: who wrote before the newest claim may go on."""
    check, check_writer = Journal._check, GatewayReceiver._check_writer

    def lax(journal: Journal, proposal: Any, head: Any) -> None:
        try:
            check(journal, proposal, head)
        except EpochSuperseded:
            return

    def lax_writer(receiver: GatewayReceiver, *arguments: Any) -> None:
        try:
            check_writer(receiver, *arguments)
        except (EpochSuperseded, PeerNotAllowed):
            return

    patch.setattr(Journal, "_check", lax)
    patch.setattr(GatewayReceiver, "_check_writer", lax_writer)


def stale_writer_renews_its_epoch(patch: Patch) -> None:
    """Rule 2: a commit of a dead epoch is taken over into the one in force."""
    stale_epoch_accepted(patch)
    commit = Journal.commit

    def renewed(journal: Journal, proposal: Any, **rest: Any) -> Any:
        return commit(journal, msgspec.structs.replace(proposal, epoch=journal.head().epoch), **rest)

    patch.setattr(Journal, "commit", renewed)


def repeated_commit_counted_twice(patch: Patch) -> None:
    """A repeated request is a new point."""
    commit, check = Journal.commit, Journal._check

    def again(journal: Journal, proposal: Any, **rest: Any) -> Any:
        journal._refresh()
        journal._chain.nonces.pop(proposal.nonce, None)
        return commit(journal, proposal, **rest)

    def lax(journal: Journal, proposal: Any, head: Any) -> None:
        try:
            check(journal, proposal, head)
        except (ParentMismatch, ProposalInvalid):
            return

    patch.setattr(Journal, "commit", again)
    patch.setattr(Journal, "_check", lax)


def acknowledged_before_written(patch: Patch) -> None:
    """The answer is given although the record's store failed."""
    append = Journal._append

    def hopeful(journal: Journal, record: Any) -> bool:
        try:
            return append(journal, record)
        except ObjectExists:
            raise
        except SecondsiteError:
            return True

    patch.setattr(Journal, "_append", hopeful)


# -- the journal ----------------------------------------------------------------------------------


def floor_after_writes(patch: Patch) -> None:
    """Rule 6: the bases are written while points below still read them."""
    real_raise, real_write = promote._raise_floor, promote._write_bases

    def raise_floor(journal: Journal, number: int, open_base: Any, now: str) -> Any:
        state = journal.state()
        if state.bases and number > state.floor:
            ring = RING[0](journal)
            early = msgspec.structs.replace(state, floor=number)
            real_write(journal, early, ring, open_base, promote.Promoted(number))
        return real_raise(journal, number, open_base, now)

    patch.setattr(promote, "_raise_floor", raise_floor)


RING: list[Callable[[Journal], Any]] = []


def deleted_before_the_base_holds_it(patch: Patch) -> None:
    """Rule 6: segments go before the bases are written and synced."""
    real = promote._write_bases

    def write(journal: Journal, state: State, *rest: Any) -> None:
        now = msgspec.structs.replace(state, promoted=state.floor)
        with_promoted = sweep._records(journal, 1, now.promoted)
        names = [
            journal.segment_name(segment)
            for _, record in with_promoted
            for segment in getattr(record, "segments", ())
        ]
        real(journal, state, *rest) if not names else None
        for name in names:
            journal.store.delete(name)
        real(journal, journal.state(), *rest)

    patch.setattr(promote, "_write_bases", write)


def base_not_synced(patch: Patch) -> None:
    """Rule 6: the state says that the base holds what its volume has not kept yet."""
    patch.setattr(MemoryBase, "sync", lambda self: None)


def zeros_not_promoted(patch: Patch) -> None:
    """Rule 12: zeros are dropped on the way into the base."""
    patch.setattr(promote, "_punch", lambda base, hole, done: None)


def pins_ignored(patch: Patch) -> None:
    """Rule 6: promotion and merging go past points that somebody reads."""
    patch.setattr(State, "pins_at", lambda self, now: ())


def retired_at_once(patch: Patch) -> None:
    """Rule 6: what was merged goes while a reader of an earlier generation has it open."""

    def free(state: State) -> State:
        pins = tuple(msgspec.structs.replace(pin, generation=1 << 60) for pin in state.pins)
        return msgspec.structs.replace(state, pins=pins)

    pins_at = State.pins_at

    def late(self: State, now: str) -> Any:
        return pins_at(free(self), now)

    patch.setattr(State, "pins_at", late)


def oldest_wins(patch: Patch) -> None:
    """Of two blocks the older answers."""
    real = Layer.under
    patch.setattr(Layer, "under", lambda self, newer: real(newer, self))


def merged_too_far(patch: Patch) -> None:
    """A span holds a part of what its points changed."""
    real = merge._DiskMerger._finish

    def short(self: Any) -> None:
        if self._disk == "vdb":
            self._writer = None
        real(self)

    patch.setattr(merge._DiskMerger, "_finish", short)


def garbage_named_by_points(patch: Patch) -> None:
    """Rule 15: objects of a dead epoch go although points name them."""
    from secondsite.journal.names import parse_segment_name, segments_prefix

    def greedy(journal: Journal) -> list[str]:
        epoch = journal.head().epoch
        names = journal.store.list(segments_prefix(journal.machine))
        return [n for n in names if (parsed := parse_segment_name(n)) is not None and parsed[0] < epoch]

    import support.sim_target as target

    patch.setattr(target, "garbage", greedy)


# bug, kinds of trouble its runs have (None: as drawn), rules of which one must be named
BUGS: Mapping[Callable[[Patch], None], tuple[list[str] | None, str]] = {
    table_before_commit: (["partition", "vanish"], "J5"),
    side_log_kept: (["partition", "vanish"], "J5"),
    stamp_ignored: (["failover", "restart"], "J5"),
    checkpoint_forgotten_early: (["kill-source", "cache", "partition"], "R3"),
    newer_checkpoint_stands_in: (["cache", "kill-source", "partition"], "J5"),
    growth_not_told: (["resize"], "J5"),
    lag_of_captured: (["partition"], "L1"),
    segments_not_looked_for: (["vanish"], "J3"),
    stale_epoch_accepted: (["failover", "partition"], "J1"),
    stale_writer_renews_its_epoch: (["failover", "partition"], "R1"),
    repeated_commit_counted_twice: (["lossy"], "J2"),
    acknowledged_before_written: (["store", "full"], "J1"),
    floor_after_writes: (["cut-target", "die-target"], "J"),
    deleted_before_the_base_holds_it: (["kill-target"], "The object"),
    base_not_synced: (["cut-target"], "J5"),
    zeros_not_promoted: (["resize"], "J5"),
    pins_ignored: ([], "J"),
    retired_at_once: ([], "J"),
    oldest_wins: ([], "J5"),
    merged_too_far: ([], "J5"),
    garbage_named_by_points: (["failover"], "The object"),
}


def prepare(kinds: list[str] | None) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        if kinds is not None:
            run.kinds = kinds
        if kinds == ["partition", "vanish"]:
            run.sources["gateway-a"].limit_bytes = 32 * KIB  # cycles that find no room are abandoned
        RING[:] = [run.target.ring_of]

    return change


def found_by(kinds: list[str] | None, rule: str, seeds: range) -> tuple[int, str] | None:
    """The first seed that fails, and how; None when none does."""
    for seed in seeds:
        try:
            run_seed(seed, change=prepare(kinds))
        except RunFailed as error:
            return seed, str(error).partition("\n")[0]
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_planted_bug_is_found(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    kinds, rule = BUGS[bug]
    bug(monkeypatch)
    found = found_by(kinds, rule, range(SEEDS_MAX))
    assert found is not None, f"{bug.__name__} survived {SEEDS_MAX} seeds: {bug.__doc__}"
    assert rule in found[1], found[1]


def test_these_runs_pass_without_a_bug() -> None:
    """What the tests above find is the bug, not the mix of troubles."""
    mixes = {tuple(kinds) for kinds, _ in BUGS.values() if kinds is not None}
    for number, kinds in enumerate(sorted(mixes)):
        assert found_by(list(kinds), "", range(number, number + 3)) is None
