"""The whole life of a machine with a real guest under load: over to the other site, and back, and again.

Each move: stopped in order, taken over, checked by the guest itself to the last record, committed, its former
site reversed onto, protected the other way round. Twice, by `./run circle`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.messages.failover import (
    CommitFailover,
    FailoverStatus,
    OldMachine,
    PlannedStop,
    StartFailover,
)
from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState
from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover, TestFailoverState
from secondsite.lab import processes
from secondsite.lab.machine import Guest, read_checks, read_console
from secondsite.lab.place import Site
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState, HeldState
from secondsite.model.reversals import reversed_onto
from support.pair import Pair, running_pair

# every run goes this way through a server (test_circle_server.py)
full = pytest.mark.skipif(os.environ.get("SECONDSITE_MATRIX") != "full", reason="run by ./run circle")
pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(1200), full]

ROUNDS = 2


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as both:
        both.protect()
        both.wait_protected()
        both.wait_records(20)
        yield both


def at(pair: Pair, site: Site) -> FailoverClient:
    return FailoverClient(pair.gateways.control_socket(site))


def ask(pair: Pair, site: Site, what: str, done: Any) -> Any:
    """Until the site's gateway says so; what it said last."""

    def look() -> Any:
        with at(pair, site) as client:
            return done(client)

    return processes.wait_until(
        look, what=what, root=pair.sites.root, seconds=240, poll_seconds=0.3, evidence=pair.log_tails
    )


def test_there_and_back_again_under_load(pair: Pair) -> None:
    a, b = pair.sites.a, pair.sites.b
    for number in range(ROUNDS):
        _drill(pair, b)
        _move(pair, a, b, old="remove-with-disks" if number else None)
        _move(pair, b, a, old="remove-with-disks")
    with pair.gateways.client(a) as client:
        client.unprotect(pair.machine)


def _drill(pair: Pair, site: Site) -> None:
    with at(pair, site) as client:
        request = StartTestFailover(point="latest", network="isolated")
        begun = client.start_test_failover(pair.machine, request)
        ask(
            pair, site, "a test",
            lambda one: one.operation(begun.id).state is TestFailoverState.COMPLETED,
        )  # fmt: skip
        status = ask(pair, site, "its log", lambda one: one.operation(begun.id))
    log = site.host_path(status.console_log or "")
    point = next(each for each in pair.points() if each.number == status.point)
    processes.wait_until(lambda: read_checks(log), what="its check", root=pair.sites.root, seconds=120)
    check = read_checks(log)[-1]
    assert check.good, check
    expected = pair.running.witness.expectation(point.asked_at, point.at)
    assert not expected.unmet(last=check.last, token=check.token)
    with at(pair, site) as client:
        client.clean_up(pair.machine, CleanUp(notes="comes up", cleaned_up_by="tester"))
        ask(
            pair, site, "cleaned up",
            lambda one: one.operation(begun.id).state is TestFailoverState.CLEANUP_COMPLETED,
        )  # fmt: skip


def _move(pair: Pair, source: Site, target: Site, *, old: OldMachine | None) -> None:
    """From one site to the other, and protected from there."""
    witness, name = pair.running.witness, pair.machine
    operation = secrets.token_hex(16)
    with at(pair, source) as client:
        client.stop_in_order(name, PlannedStop(operation=secrets.token_hex(16)))
    stopped = ask(pair, source, "stopped in order", lambda one: _settled(one.planned_stop(name)))
    assert (stopped.state, stopped.proved) == ("Completed", True), stopped
    last = witness.acknowledged
    witness.close()
    request = StartFailover(
        operation=operation,
        point="latest",
        kind=FailoverKind.PLANNED,
        network=target.network,
        confirm=confirmations.stopped(name, pair.gateways.name(source)),
        old_machine=old,
    )
    with at(pair, target) as client:
        client.start_failover(name, request)
    status = _ended(pair, target, operation, FailoverState.COMPLETED)
    assert (status.point, status.loss_seconds) == (stopped.point, 0)
    _check(pair, target.host_path(status.console_log or ""), last)
    with at(pair, target) as client:
        client.commit_failover(operation, CommitFailover(confirm=confirmations.kept(name)))
    _ended(pair, target, operation, FailoverState.COMMITTED)
    _carry_on(pair, target, last)
    _reverse(pair, source)
    with_load = witness.acknowledged
    _protect(pair, target)
    pair.wait_records(10)
    assert witness.acknowledged > with_load
    seen = ask(pair, source, "the reversal's end", lambda one: _complete(one.reversal(name)))
    print(f"{seen.sent_bytes} of {seen.total_bytes} bytes travelled back to {source.name}")
    assert seen.sent_bytes < seen.total_bytes // 8, "differences, not a copy"


def _settled(status: Any) -> Any:
    assert status.error is None, status.error
    return status if status.state in ("Completed", "Waiting") else None


def _complete(status: Any) -> Any:
    assert status.error is None, status.error
    return status if status.point is not None else None


def _ended(pair: Pair, site: Site, operation: str, state: FailoverState) -> FailoverStatus:
    def look(client: FailoverClient) -> FailoverStatus | None:
        status = client.failover(operation)
        assert status.error is None, f"{status.error}\n{pair.log_tails()}"
        return status if status.state is state else None

    found: FailoverStatus = ask(pair, site, f"{state} at {site.name}", look)
    return found


def _check(pair: Pair, log: Path, last: int) -> None:
    """Its own checker: all its records are there, to the one acknowledged last."""
    root = pair.sites.root
    processes.wait_until(lambda: read_checks(log), what="a check", root=root, seconds=180)
    processes.wait_until(lambda: "READY" in "".join(read_console(log)), what="READY", root=root, seconds=120)
    check = read_checks(log)[-1]
    assert check.good, check
    assert check.last >= last, "a record was lost"


def _carry_on(pair: Pair, site: Site, last: int) -> None:
    """Its load goes on where it is now."""
    guest = Guest(site, pair.running.guest.spec)
    processes.wait_until(guest.agent_answers, what="its agent", root=pair.sites.root, seconds=120)
    pair.running.witness.attach(guest.channel_path())
    processes.wait_until(
        lambda: pair.running.witness.acknowledged > last,
        what="a record",
        root=pair.sites.root,
        seconds=60,
        evidence=lambda: pair.running.witness.trouble,
    )


def _reverse(pair: Pair, site: Site) -> None:
    ask(
        pair, site, "the former source held",
        lambda one: any(held.state is HeldState.HELD for held in one.held()),
    )  # fmt: skip
    request = ReverseRequest(operation=secrets.token_hex(16), confirm=reversed_onto(pair.machine))
    with at(pair, site) as client:
        client.reverse(pair.machine, request)

    def ready(client: FailoverClient) -> bool:
        status = client.reversal(pair.machine)
        assert status.error is None, f"{status.error}\n{pair.log_tails()}"
        return status.state is ReverseState.READY

    ask(pair, site, "reversed onto", ready)


def _protect(pair: Pair, site: Site) -> None:
    pair.gateways.protect(pair.machine, copy_frequency_seconds=1.0, at=site)
    ask(
        pair, site, "a point from here",
        lambda one: one.protection(pair.machine).last_point is not None,
    )  # fmt: skip
