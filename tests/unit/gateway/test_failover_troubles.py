"""Full disks and damaged records on the bad day: what was claimed goes on, what is held stays held."""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secondsite.base import files
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.gateway.messages.failovererrors import AlreadyTakenOver, FailoverRecordUnwritten
from secondsite.journal.chain_load import ChainLoader
from secondsite.journal.chain_records import ChainRecords
from secondsite.journal.state import State
from secondsite.model.failover import FailoverState, HeldState
from support.failover_twin import NAME, Twin

OPERATION = "ab" * 16
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def twin() -> Iterator[Twin]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        made = Twin(Path(name))
        made.commit_as_a()
        yield made


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], bool]], None]:
    """Have writes of some files fail for want of space; given None of them any more."""
    real = files.replace_file

    def fill(which: Callable[[Path], bool]) -> None:
        def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
            if which(path):
                raise FULL
            real(path, data, mode=mode)

        monkeypatch.setattr(files, "replace_file", replace_file)

    return fill


def status(twin: Twin) -> FailoverStatus:
    found = twin.status()
    assert found is not None
    return found


def test_a_claim_that_could_not_be_noted_is_no_failed_failover(
    twin: Twin, full: Callable[[Callable[[Path], bool]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state's volume is full from the claim on: the machine is this site's, whatever the record says."""
    real = failoverclaim.keep_writer

    def keep_writer(*arguments: object) -> None:
        full(lambda path: "failovers" in str(path))
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(failoverclaim, "keep_writer", keep_writer)
    twin.failover(OPERATION)
    assert twin.journal.head().epoch == 2
    full(lambda _: False)
    monkeypatch.setattr(failoverclaim, "keep_writer", real)
    twin.failover(OPERATION)
    assert status(twin).state is FailoverState.COMPLETED


def test_a_failover_that_cannot_be_written_down_is_refused_with_what_to_do(
    twin: Twin, full: Callable[[Callable[[Path], bool]], None]
) -> None:
    full(lambda path: "failovers" in str(path))
    with pytest.raises(FailoverRecordUnwritten, match="No space left") as caught:
        twin.failover(OPERATION)
    assert "Make room" in caught.value.sentences()[2]
    assert (twin.journal.head().epoch, twin.status()) == (1, None)
    full(lambda _: False)
    twin.failover(OPERATION)
    assert status(twin).state is FailoverState.COMPLETED


def test_a_store_that_is_full_behind_the_claim_loses_no_failover(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_writer(*_arguments: object) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(failoverclaim, "keep_writer", keep_writer)
        twin.failover(OPERATION)
    assert twin.journal.head().epoch == 2
    assert status(twin).state is not FailoverState.FAILED
    twin.failover(OPERATION)
    assert status(twin).state is FailoverState.COMPLETED


def test_a_source_is_isolated_also_where_nothing_can_be_written(
    twin: Twin, full: Callable[[Callable[[Path], bool]], None]
) -> None:
    twin.failover(OPERATION)
    full(lambda path: "held" in str(path))
    twin.look()
    assert not twin.a_fabric.runs(twin.machine)
    full(lambda _: False)
    twin.look()
    assert twin.a is not None
    [held] = twin.a.all()
    assert held.state is HeldState.HELD


def test_a_damaged_record_of_a_held_machine_does_not_let_it_run(twin: Twin) -> None:
    twin.failover(OPERATION)
    twin.look()
    twin.roll_back(OPERATION)
    twin.look()
    assert twin.a is not None
    assert twin.a_fabric.runs(twin.machine)
    [record] = (twin.root / "a" / "held").glob("*.json")
    record.write_bytes(b"{torn")
    twin.commit_as_a()
    twin.failover("cd" * 16)
    twin.look()
    assert not twin.a_fabric.runs(twin.machine)


def taken_from_b(twin: Twin) -> None:
    """Somebody took the machine over from site B, which was away."""
    head = twin.journal.head()
    twin.journal.claim(
        name=NAME, claimant="rescue by ann", reason="failover", clock=twin.clock, expected=head
    )


def claimant(twin: Twin) -> str:
    claim = twin.journal.head().claim
    assert claim is not None
    return claim.claimant


def test_what_was_taken_over_from_this_site_does_not_run_here_and_is_not_given_away(twin: Twin) -> None:
    twin.failover(OPERATION)
    taken_from_b(twin)
    assert twin.b is not None
    with pytest.raises(AlreadyTakenOver):
        twin.commit(OPERATION)
    twin.b_fabric.restart_host()
    twin.clock.advance(60)
    twin.b.tick()
    twin.settle()
    assert not twin.b_fabric.runs(twin.machine), "it was not started again"
    assert status(twin).superseded_by == "rescue by ann"
    assert twin.events.codes().count("failover.superseded") == 1
    twin.roll_back(OPERATION)
    assert status(twin).state is FailoverState.ROLLED_BACK
    assert twin.b_fabric.recovered() == []
    assert claimant(twin) == "rescue by ann"


def test_what_fails_of_one_keeps_no_machine_down(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be written (a timer's, on a full disk) holds up nobody's restart."""
    twin.failover(OPERATION)
    assert twin.b is not None

    def look(_record: object) -> None:
        raise FULL

    monkeypatch.setattr(twin.b._timers, "look", look)
    twin.b_fabric.restart_host()
    twin.clock.advance(60)
    with pytest.raises(OSError, match="No space"):  # told by the thread that looks after it all
        twin.b.resume_guests()
    assert twin.b_fabric.runs(twin.machine)


def test_what_runs_here_and_was_taken_over_from_this_site_is_isolated(twin: Twin) -> None:
    twin.failover(OPERATION)
    taken_from_b(twin)
    twin.clock.advance(60)
    assert twin.b is not None
    twin.b.tick()
    twin.settle()
    assert not twin.b_fabric.runs(twin.machine)
    assert "failover.restarted" not in twin.events.codes()


def test_points_that_come_while_a_long_chain_is_read_do_not_hold_the_claim_up(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day's points are read in more time than passes until the next point of a machine copied each second.

    Pinning a point by a journal of its own read all of them at each attempt, and the claim came never.
    """
    real, within = ChainLoader.load, threading.local()

    def load(loader: ChainLoader, state: State) -> ChainRecords:
        chain = real(loader, state)
        if not getattr(within, "committing", False):
            within.committing = True
            twin.commit_as_a()
            within.committing = False
        return chain

    monkeypatch.setattr(ChainLoader, "load", load)
    twin.failover(OPERATION)
    found = status(twin)
    assert (found.state, found.error) == (FailoverState.COMPLETED, None)
    assert found.point == twin.journal.points()[-1].number
