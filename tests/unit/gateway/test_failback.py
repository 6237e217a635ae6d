"""A failover of the very site that lost the machine: its former copy makes room, once, before the boot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.crash import MARKS
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.messages.failover import HeldMachine, OldMachine
from secondsite.gateway.messages.failovererrors import ChecksFailed
from secondsite.model.failover import FailoverState, HeldState
from support.failover_twin import A, B, Twin

OPERATION = "ab" * 16
# what is passed between the pin and the machine that runs
PASSED = sorted(mark for mark in MARKS if mark.startswith(("removal.room-", "failover.after-")))


class Failback(Twin):
    """B lost the machine to A in an earlier time, and was reversed onto."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.b_fabric.add_machine("shop", {"vda": 4096}, machine=self.machine)
        self.hold(HeldState.REVERSED)
        self.commit_as_a()
        self.start_b()

    def hold(self, state: HeldState) -> None:
        self.start_former()
        assert self.former is not None
        self.b_fabric.isolate(self.machine, why="it was taken over", autostart=True)
        held = HeldMachine(
            machine=self.machine, name="shop", state=state, why="-", claimant=A, held_at="-", isolated_at="-"
        )
        self.former._records.save(held)

    def start_former(self) -> None:
        self.former = Fencing(
            us=B,
            fabric=self.b_fabric,
            vault=self.vault,
            state_dir=self.root / "b",
            clock=self.clock,
            events=self.events,
        )

    def start_b(self) -> None:
        self.start_former()
        super().start_b()

    def keep_b(self) -> None:
        """What B's gateway does with held machines again and again."""
        assert self.former is not None
        for held in self.former.all():
            if held.state in (HeldState.HELD, HeldState.REVERSED) or held.isolated_at:
                self.former._converge(held)


@pytest.fixture
def twin() -> Iterator[Failback]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Failback(Path(name))


def require_runs(twin: Failback) -> None:
    twin.keep_b()
    status = twin.status()
    assert status is not None
    assert (status.state, status.error) == (FailoverState.COMPLETED, None)
    assert [held.state for held in twin.former.all()] == [HeldState.REPLACED]  # type: ignore[union-attr]
    assert twin.b_fabric.machines() == [], "the former copy is gone"
    assert twin.b_fabric.runs(twin.machine)


def test_how_the_former_copy_goes_has_to_be_said(twin: Failback) -> None:
    with pytest.raises(ChecksFailed) as caught:
        twin.failover(OPERATION)
    happened, _, action = caught.value.sentences()
    assert "the former copy of shop is here, off and guarded" in happened
    assert "remove-with-disks" in action
    assert (twin.status(), twin.journal.head().epoch) == (None, 1), "nothing was claimed"
    assert len(twin.b_fabric.machines()) == 1


@pytest.mark.parametrize("state", [HeldState.HELD, HeldState.DISCARDED])
def test_only_what_was_reversed_onto_makes_room(state: HeldState, twin: Failback) -> None:
    twin.hold(state)
    with pytest.raises(ChecksFailed) as caught:
        twin.failover(OPERATION, old_machine="remove")
    assert "held reverse" in caught.value.sentences()[2]
    assert len(twin.b_fabric.machines()) == 1


def test_another_machine_of_its_name_is_in_the_way_all_the_same(twin: Failback) -> None:
    twin.b_fabric.add_machine("shop", {"vda": 4096})
    with pytest.raises(ChecksFailed, match="is at this site already"):
        twin.failover(OPERATION, old_machine="remove")
    assert len(twin.b_fabric.machines()) == 2


@pytest.mark.parametrize("old", ["remove", "remove-with-disks"])
def test_it_makes_room_and_nothing_isolates_what_takes_its_place(old: OldMachine, twin: Failback) -> None:
    twin.failover(OPERATION, old_machine=old)
    require_runs(twin)
    twin.roll_back(OPERATION)
    assert not twin.b_fabric.runs(twin.machine)
    twin.failover("cd" * 16)
    require_runs(twin)


def test_a_machine_whose_copy_was_gone_before_is_not_isolated_either(twin: Failback) -> None:
    twin.b_fabric.remove_machine(twin.machine, disks=True)
    assert twin.former is not None
    twin.former._records.change(twin.machine, state=HeldState.HELD)
    twin.failover(OPERATION)
    require_runs(twin)


@pytest.mark.parametrize("mark", PASSED)
def test_killed_anywhere_the_copy_is_removed_once_and_never_what_was_booted(
    mark: str, twin: Failback
) -> None:
    twin.kill_at = mark
    twin.failover(OPERATION, old_machine="remove-with-disks")
    assert twin.b is None, mark
    assert twin.journal.head().epoch == 2 or len(twin.b_fabric.machines()) == 1, "removed before the claim"
    twin.start_b()
    twin.keep_b()
    status = twin.status()
    assert status is not None
    if status.state is FailoverState.FAILED:
        assert twin.journal.head().epoch == 1
        twin.failover(OPERATION, old_machine="remove-with-disks")
    require_runs(twin)
