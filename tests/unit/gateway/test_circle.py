"""A machine goes over, its site is reversed onto, and it comes back: by two whole gateways."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from secondsite.base.errors import RemoteError
from secondsite.base.units import MIB
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.gateway.messages.failover import OldMachine
from secondsite.gateway.messages.protecterrors import FailoverOpen
from secondsite.model.confirmations import released
from secondsite.model.failover import HeldState
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState
from secondsite.model.reversals import migrated, retired, reversed_onto
from secondsite.server.operations import returnchecks
from support.circle import Circle, circle
from support.control import Ran, run_command
from support.gateway_pair import A, B


def run(made: Circle, site: str, *arguments: str) -> Ran:
    return run_command(*arguments, gateway=made.root / site / "c.sock")


USED = 3 * MIB  # random, so that it does not shrink


def over(made: Circle) -> int:
    """Protected at A, taken over and committed at B, held at A; the bytes that the full copy took."""
    made.write(A, 0, os.urandom(USED))
    made.protect(A)
    sent = made.journal(B).points()[0].sent_bytes
    made.take_point(A)
    status = made.fail_over(B)
    made.commit(B, status.id)
    made.wait_held(A)
    return sent


def test_only_what_differs_travels_onto_what_was_reversed_onto() -> None:
    with circle() as made:
        full = over(made)
        assert full >= USED
        assert made.content(B) == made.content(A)
        with made.client(A) as client:
            seen = client.preview_reverse("shop")
        assert [check.name for check in seen.checks if not check.passed and check.required] == []
        assert (seen.writer, seen.epoch_floor, seen.total_bytes) == (B, 2, 5 * MIB)
        unsaid = run(made, A, "held", "reverse", "shop")
        assert unsaid.code == 4, unsaid.err
        assert f'--confirm "{reversed_onto("shop")}"' in unsaid.err
        began = run(made, A, "held", "reverse", "shop", "--confirm", reversed_onto("shop"))
        assert began.code == 0, began.err
        assert "disks offered" in began.out
        assert "shop is off here and stays so, epoch 3 is gateway-b's" in began.out
        status = made.reversal(A)
        assert (status.epoch, made.held(A).state) == (3, HeldState.REVERSED)
        [old] = made.fabrics[A].machines()
        assert old.power is PowerState.OFF
        before = made.content(A)
        made.write(B, MIB, os.urandom(USED // 100))
        made.protect(B)
        made.write(B, 2 * MIB, b"after" * 100)
        made.take_point(B)
        done = made.reversal(A)
        assert done.point is not None
        assert done.done_bytes == done.total_bytes == 5 * MIB
        assert done.sent_bytes is not None
        # 1 % was changed: whole sub-blocks of 4 KiB at its ends, and what was written while they compared
        assert done.sent_bytes < full // 50, f"{done.sent_bytes} of {full} bytes travelled"
        assert made.content(A) == before, "the old disks are only read"
        claim = made.journal(A).head().claim
        assert claim is not None
        assert (claim.epoch, claim.claimant, claim.reason) == (3, B, "reverse")
        assert made.fabrics[A].runs(made.machine) is False
        late = run(made, A, "held", "take-back", "shop")
        assert (late.code, "has point" in late.err) == (4, True), late.err
        gone = run(made, B, "failover", "retire", "shop", "--confirm", retired("shop"))
        assert gone.out == "nothing is left of the replica shop was taken over from\n", gone.err
        final = run(made, B, "failover", "complete-migration", "shop", "--confirm", migrated("shop"))
        assert (final.code, "its replica here is retired" in final.err) == (4, True), final.err


def test_a_site_that_holds_nothing_yet_says_so_in_a_word_the_server_waits_for() -> None:
    """It was taken for an error of its own: protecting a machine back at once after its commit failed."""
    with circle() as made, made.client(A) as client:
        with pytest.raises(RemoteError) as caught:
            client.preview_reverse(made.machine)
        assert caught.value.body["code"] in returnchecks.NOT_HELD


def documented(step: str) -> tuple[str, ...]:
    """Epoch, authority and reason of a step, as docs/failover.md has them."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "failover.md").read_text()
    [cells] = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {step} | ")]
    return tuple(cells[2:5])


def test_there_and_back_twice_with_every_write() -> None:
    with circle() as made:
        written: dict[int, bytes] = {}

        def write(at: str, offset: int) -> None:
            written[offset] = os.urandom(4096)
            made.write(at, offset, written[offset])

        def check(at: str) -> None:
            content = made.content(at)
            wrong = [offset for offset, data in written.items() if content[offset : offset + 4096] != data]
            assert wrong == [], f"at {at}"

        epochs: list[int] = []
        claims: list[tuple[str, ...]] = []

        def note(store: str) -> None:
            claim = made.journal(store).head().claim
            assert claim is not None
            claims.append((str(claim.epoch), claim.claimant[-1].upper(), claim.reason))

        for turn in range(2):
            # in order the first time, and by force the second
            for here, there in ((A, B), (B, A)):
                write(here, len(written) * 8192)
                made.protect(here)
                write(here, len(written) * 8192)
                if turn:
                    made.take_point(here)
                else:
                    made.stop_in_order(here)
                reversed_before = turn > 0 or there == A
                old: OldMachine | None = "remove-with-disks" if reversed_before else None
                status = made.fail_over(there, planned=not turn, old=old)
                made.commit(there, status.id)
                made.wait_held(here)
                check(there)
                assert not made.fabrics[here].runs(made.machine)
                assert status.epoch is not None
                epochs.append(status.epoch)
                note(there)
                assert made.reverse(here).epoch == status.epoch + 1
                note(here)
        assert epochs == [2, 4, 6, 8], "they never go back, over both stores"
        steps = ("committed", "reprotected", "failed back, committed", "protected as at first")
        assert claims[:4] == [documented(step) for step in steps]
        made.protect(A)
        check(A)
        with made.client(A) as client:
            assert client.planned_stop("shop").proved


def test_what_was_taken_over_and_is_gone_for_good_keeps_no_replica_for_ever() -> None:
    """Removed with its disks by hand: the store said that it is there, and nobody else could write."""
    with circle() as made:
        over(made)
        with made.client(B) as client:
            with pytest.raises(RemoteError, match=f"taken over by {B}"):
                client.delete_replica("shop", confirm="shop", by="ann")
            made.fabrics[B].isolate(made.machine, why="it is removed", autostart=False)
            made.fabrics[B].set_power(made.machine, PowerState.OFF)
            made.fabrics[B].remove_machine(made.machine, disks=True)
            client.delete_replica("shop", confirm="shop", by="ann")
            made.until(lambda: client.deletions() == [], "deleted")
        assert made.journal(B).head().epoch == 3
        assert made.held(A).state is HeldState.HELD, "until a person decides"
        words = ("--confirm", released("shop", B))
        assert run(made, A, "held", "release", "shop", *words).code == 0
        made.stop(A)  # it looks again at once, and not a while later
        made.start(A)
        made.until(lambda: bool(made.journal(B).points()), "protected to the same place again")
        assert made.journal(B).points()[0].epoch == 4
        assert made.fabrics[A].runs(made.machine)


def test_a_protection_of_before_waits_for_the_end_of_a_failover_that_can_be_undone() -> None:
    """It stands on a point's export: what is read of it is of a time that may be taken back."""

    def open_still(_machine: MachineId) -> None:
        raise FailoverOpen(machine="shop", state="Completed")

    with circle() as made:
        made.protect(A)
        protections = made.gateways[A].protections
        assert protections is not None
        settled, protections.require_settled = protections.require_settled, open_still
        with protections._change:
            protections._loops.stop(made.machine)
        protections._wake.set()
        made.until(lambda: "Completed" in str(made.protection(A)), "it is told")
        assert made.machine not in protections._loops.running
        protections.require_settled = settled
        protections._wake.set()
        made.until(lambda: made.machine in protections._loops.running, "it goes on")


def test_a_protection_of_before_that_runs_already_gives_way_to_a_failover_to_its_site() -> None:
    """It would make points of what stands on a point's export, and claim the machine with them."""
    with circle() as made:
        made.protect(A)
        protections, fabric = made.gateways[B].protections, made.fabrics[B]
        assert protections is not None
        earlier = made.gateways[A].protections
        assert earlier is not None
        runs = earlier.handles.protection(made.machine)
        assert runs is not None
        order: list[str] = []
        loop = mock.Mock(stop=lambda: order.append("loop ended"))
        started = fabric.start_recovered

        def start(spec: RecoverySpec) -> Recovered:
            order.append("machine started")
            return started(spec)

        with protections._change:
            protections._loops.running[made.machine] = loop  # of when the machine was here last
        protections.handles.put_back(msgspec.structs.replace(runs, peer=A))
        with mock.patch.object(fabric, "start_recovered", start):
            taken = made.fail_over(B)
        assert order == ["loop ended", "machine started"]
        made.until(lambda: "Completed" in str(made.protection(B)), "it is told why nothing is replicated")
        assert made.machine not in protections._loops.running
        made.commit(B, taken.id)
        made.until(lambda: made.machine in protections._loops.running, "it goes on")
