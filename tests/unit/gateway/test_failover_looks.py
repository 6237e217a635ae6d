"""What is looked at before a failover, each with its cause and what to do; nothing is changed by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from secondsite.gateway.failover import looks as failoverlooks
from secondsite.gateway.messages.failover import Check, LookAtFailover
from secondsite.journal.chain import Journal
from secondsite.journal.store import StoreUnavailable
from secondsite.model import readiness
from support.failover_twin import Twin

OPERATION = "ab" * 16


@pytest.fixture
def twin() -> Iterator[Twin]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        made = Twin(Path(name))
        made.commit_as_a()
        yield made


def looks(twin: Twin) -> dict[str, Check]:
    assert twin.b is not None
    before = twin.journal.state()
    seen = twin.b.preview(twin.machine, LookAtFailover())
    assert twin.journal.state().pins == before.pins, "the pin of the look is gone"
    for check in seen.checks:
        assert check.passed or (check.cause and check.action), check
    return {check.name: check for check in seen.checks}


def test_each_thing_is_named_and_a_source_that_works_is_told(twin: Twin) -> None:
    found = looks(twin)
    assert {"definition", "identity", "storage", "store", "point", "authority", "rights"} <= set(found)
    bad = {name for name, check in found.items() if not check.passed and check.required}
    assert bad <= {"storage"}, "the made-up host has no pool"
    alive = found["source-alive"]
    assert (alive.passed, alive.required) == (False, False)
    assert "nothing is lost then" in alive.action
    twin.clock.advance(3600)
    assert looks(twin)["source-alive"].passed


def test_a_point_that_cannot_be_read_is_told_and_no_failover_waits_for_that(twin: Twin) -> None:
    def damaged(*_arguments: object, **_more: object) -> object:
        raise StoreUnavailable(store="memory", key="log", why="it answers nothing")

    with mock.patch.object(failoverlooks, "open_point_view", damaged):
        point = looks(twin)["point"]
        assert not point.passed
        assert "--point" in point.action
        twin.failover(OPERATION)
    found = twin.status()
    assert found is not None
    assert found.epoch == 2


def test_a_store_that_cannot_be_written_is_told_before_the_claim_needs_it(twin: Twin) -> None:
    full = OSError(28, "No space left on device")
    with mock.patch.object(Journal, "pin", side_effect=full):
        store = looks(twin)["store"]
    assert not store.passed
    assert store.required
    assert "No space left" in store.cause


def test_whose_the_machine_is_and_what_the_account_lacks(twin: Twin) -> None:
    twin.failover(OPERATION)
    assert looks(twin)["authority"].passed, "it is this gateway's own that stands"
    twin.roll_back(OPERATION)
    head = twin.journal.head()
    twin.journal.claim(name="shop", claimant="gateway-c", reason="failover", clock=twin.clock, expected=head)
    authority = looks(twin)["authority"]
    assert not authority.passed
    assert "gateway-c" in authority.cause

    lacking = readiness.Check(
        code="libvirt.define", title="machines may be defined", ok=False, why="read-only", fix="Join libvirt."
    )
    twin.clock.advance(60)  # an answer is good for some seconds, for many machines looked at at once
    with mock.patch.object(twin.b_fabric, "readiness", return_value=[lacking]) as asked:
        rights = looks(twin)["rights"]
        assert looks(twin)["rights"] == rights
        assert asked.call_count == 1
    assert (rights.passed, rights.required) == (False, False)
    assert rights.action == "Join libvirt."
