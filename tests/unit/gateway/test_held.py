"""What becomes of a held source: removed, reversed onto, replaced by a failover of its own site."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.gateway.failover import fencing
from secondsite.gateway.messages.failover import Decide, HeldMachine, Removal
from secondsite.gateway.messages.failovererrors import DecidedOnAnother, MachineNotHeld
from secondsite.model.confirmations import ConfirmationMissing, released
from secondsite.model.failover import MIGRATED, REVERSE, HeldState
from secondsite.model.machines import PowerState
from secondsite.model.reversals import removed
from secondsite.transfer.protocols import TargetHead
from support.failover_twin import B, Twin

OPERATION = "ab" * 16


@pytest.fixture
def twin() -> Iterator[Twin]:
    """Its machine was taken over at B, and is held."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        made = Twin(Path(name))
        made.commit_as_a()
        made.failover(OPERATION)
        made.look()
        yield made


def held(twin: Twin) -> HeldMachine:
    assert twin.a is not None
    found = twin.a.get(twin.machine)
    assert found is not None
    return found


def discard(twin: Twin, remove: Removal) -> None:
    assert twin.a is not None
    confirm = removed("shop", disks=remove == "machine-and-disks")
    twin.a.discard(twin.machine, Decide(epoch=held(twin).epoch, confirm=confirm, remove=remove))


def restarted(twin: Twin) -> None:
    """A's gateway, ended and begun again, does what its records say."""
    twin.start_a()
    twin.keep_a()


def test_a_discarded_machine_is_removed_with_what_was_said(twin: Twin) -> None:
    assert twin.a is not None
    said = Decide(epoch=2, confirm=removed("shop", disks=False), remove="machine-and-disks")
    with pytest.raises(ConfirmationMissing) as caught:
        twin.a.discard(twin.machine, said)
    assert "shop is removed here with its disks" in caught.value.sentences()[2]
    assert twin.a_fabric.isolated(twin.machine) is not None
    discard(twin, "machine-and-disks")
    assert [machine.id for machine in twin.a_fabric.machines()] == []
    assert (held(twin).state, held(twin).removed_at is not None) == (HeldState.DISCARDED, True)


@pytest.mark.parametrize("release", [True, False])
def test_what_was_decided_of_an_earlier_hold_decides_nothing_of_a_later_one(
    release: bool, twin: Twin
) -> None:
    """Its answer was lost, and it is said again once the machine went back and was taken over anew."""
    assert twin.a is not None
    old = Decide(epoch=held(twin).epoch, confirm=released("shop", B))
    decide = twin.a.release
    if not release:
        old = Decide(epoch=held(twin).epoch, confirm=removed("shop", disks=True), remove="machine-and-disks")
        decide = twin.a.discard
    twin.roll_back(OPERATION)
    twin.look()
    twin.commit_as_a()
    twin.failover("cd" * 16)
    twin.look()
    assert (held(twin).state, held(twin).epoch) == (HeldState.HELD, 4)
    with pytest.raises(DecidedOnAnother, match="on epoch 2, and epoch 4 holds it"):
        decide(twin.machine, old)
    assert held(twin).state is HeldState.HELD
    assert twin.a_fabric.isolated(twin.machine) is not None
    decide(twin.machine, msgspec.structs.replace(old, epoch=4))
    assert held(twin).state is (HeldState.RELEASED if release else HeldState.DISCARDED)
    assert decide(twin.machine, old).epoch == 4, "it is decided so, whichever claim was meant"


def test_it_is_removed_once_nothing_is_protected_any_more(twin: Twin) -> None:
    assert twin.a is not None
    gone = [False, False, True]
    twin.a.unprotect = lambda _: gone.pop(0)
    discard(twin, "machine")
    twin.keep_a()
    assert len(twin.a_fabric.machines()) == 1, "its checkpoints are taken away first"
    assert held(twin).removed_at is None
    twin.keep_a()
    assert twin.a_fabric.machines() == []


@pytest.mark.parametrize("mark", [fencing.DECIDED, fencing.REMOVED, fencing.DECISION_DONE])
def test_killed_while_it_is_removed_it_is_removed(mark: str, twin: Twin) -> None:
    twin.kill_at = mark
    with twin.killing():
        discard(twin, "machine-and-disks")
    assert twin.died
    restarted(twin)
    assert twin.a_fabric.machines() == []
    assert held(twin).removed_at is not None
    assert held(twin).isolated_at is None


def test_what_was_reversed_onto_is_kept_off_whoever_starts_it(twin: Twin) -> None:
    assert twin.a is not None
    twin.a.reverse(twin.machine, by="maria")
    [machine] = twin.a_fabric.machines()
    assert (held(twin).state, machine.power) == (HeldState.REVERSED, PowerState.OFF)
    twin.a_fabric.set_power(twin.machine, PowerState.RUNNING)
    assert not twin.a_fabric.runs(twin.machine), "the guard of its host"
    restarted(twin)
    assert twin.a_fabric.machines()[0].power is PowerState.OFF
    for decision in (twin.a.release, twin.a.discard):
        with pytest.raises(MachineNotHeld):
            decision(twin.machine, Decide(epoch=held(twin).epoch, confirm="anything"))
    twin.look()
    assert held(twin).state is HeldState.REVERSED
    twin.a.take_back(twin.machine, by="maria")
    assert (held(twin).state, twin.a_fabric.isolated(twin.machine) is not None) == (HeldState.HELD, True)


@pytest.mark.parametrize("mark", ["", fencing.ROOM_MADE])
def test_a_failover_of_its_own_site_takes_its_place(mark: str, twin: Twin) -> None:
    assert twin.a is not None
    twin.a.reverse(twin.machine, by="maria")
    twin.kill_at = mark
    with twin.killing():
        twin.a.make_room(twin.machine, disks=True)
    restarted(twin)
    twin.a.make_room(twin.machine, disks=True)
    assert (held(twin).state, twin.a_fabric.machines()) == (HeldState.REPLACED, [])
    # what runs here under the same id from now on is nobody's to isolate
    twin.a_fabric.add_machine("shop", {"vda": 4096}, machine=twin.machine)
    restarted(twin)
    twin.look()
    assert twin.a_fabric.runs(twin.machine)


def test_a_machine_that_moved_for_good_says_so_and_what_was_decided_stands(twin: Twin) -> None:
    assert twin.a is not None
    twin.decide(release=True)
    journal = twin.journal
    journal.claim(name="shop", claimant=B, reason=MIGRATED, clock=twin.clock, expected=journal.head())
    twin.look()
    assert (held(twin).state, held(twin).final, held(twin).epoch) == (HeldState.RELEASED, True, 3)
    assert twin.commit_as_a() is None


def test_a_source_that_never_heard_of_the_failover_is_held_by_the_migration() -> None:
    with tempfile.TemporaryDirectory() as name:
        twin = Twin(Path(name))
        twin.commit_as_a()
        twin.failover(OPERATION)
        journal = twin.journal
        journal.claim(name="shop", claimant=B, reason=MIGRATED, clock=twin.clock, expected=journal.head())
        twin.look()
        assert (held(twin).state, held(twin).final) == (HeldState.HELD, True)
        assert not twin.a_fabric.runs(twin.machine)


def test_the_epoch_that_held_it_is_known_to_the_next_journal(twin: Twin) -> None:
    assert twin.a is not None
    nowhere = TargetHead(machine=twin.machine)
    assert twin.a.floor(twin.machine, nowhere) == 2
    twin.a.epoch_here = lambda _machine, theirs: 7 if theirs != "the same" else 0
    assert twin.a.floor(twin.machine, nowhere) == 7
    same = TargetHead(machine=twin.machine, number=1, hash="the same", epoch=7)
    assert twin.a.floor(twin.machine, same) == 2, "both gateways have one store"
    twin.roll_back(OPERATION)
    twin.look()
    assert held(twin).state is HeldState.RETURNED
    assert twin.a.floor(twin.machine, same) == 2, "the claim that gave it back, epoch 3, is what it writes in"


@pytest.mark.parametrize(("taken", "holds"), [(2, False), (1, True)])
def test_a_reversal_is_later_than_the_failover_it_was_made_for(taken: int, holds: bool) -> None:
    """So one of the epoch of this site's own failover is of an earlier time."""
    with tempfile.TemporaryDirectory() as name:
        twin = Twin(Path(name))
        twin.commit_as_a()
        assert twin.a is not None
        twin.a.taken_here = lambda _: taken
        journal = twin.journal
        journal.claim(name="shop", claimant=B, reason=REVERSE, clock=twin.clock, expected=journal.head())
        twin.look()
        assert bool(twin.a.all()) is holds
        assert twin.a_fabric.runs(twin.machine) is not holds
