"""What becomes of the replica a machine was taken over from: retired once it is not needed, or final."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from unittest import mock

import pytest

from secondsite.base.crash import MARKS
from secondsite.gateway.messages.gateway import ProtectionStatus
from secondsite.gateway.messages.reverse import CompleteMigration, RetireReplica
from secondsite.gateway.messages.reverseerrors import NotMigrated, NotRetired
from secondsite.gateway.reverse import kept as kept_module
from secondsite.gateway.reverse.kept import Kept
from secondsite.journal.chain import Journal
from secondsite.journal.names import machine_prefix, wrapped_key_name
from secondsite.model.confirmations import ConfirmationMissing
from secondsite.model.failover import MIGRATED, HeldState, KeptState
from secondsite.model.reversals import migrated, retired
from support.failover_twin import B, Killed, Twin

OPERATION = "ab" * 16


class Protected:
    """Of a protection what is asked here."""

    def __init__(self, twin: Twin, last_point: int | None) -> None:
        self.machine, self.peer, self.last_point = twin.machine, "gateway-a", last_point


@pytest.fixture
def twin() -> Iterator[Twin]:
    """Its machine was taken over at B and committed; A holds its copy."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        made = Twin(Path(name))
        made.commit_as_a()
        made.store.put(wrapped_key_name(made.machine, made.key.id), b"a wrapped key")
        made.failover(OPERATION)
        made.commit(OPERATION)
        made.look()
        yield made


def open_kept(twin: Twin, *protected: Protected) -> Kept:
    assert twin.b is not None
    return Kept(
        us=B,
        records=twin.b.records,
        journal=lambda machine: Journal(twin.store, machine, twin.vault),
        protections=lambda: cast("tuple[ProtectionStatus, ...]", protected),
        forget=lambda _: None,
        delete_points=twin.b.delete_points,
        clock=twin.clock,
        events=twin.events,
    )


def left(twin: Twin) -> set[str]:
    prefix = machine_prefix(twin.machine)
    return {name.removeprefix(prefix).split("/")[0] for name in twin.store.list(prefix)}


def retire(kept: Kept) -> None:
    kept.retire(OPERATION, RetireReplica(operation="cd" * 16, confirm=retired("shop")))
    kept._threads.wait()


def complete(kept: Kept) -> None:
    kept.complete_migration(OPERATION, CompleteMigration(operation="cd" * 16, confirm=migrated("shop")))


def state(twin: Twin) -> KeptState | None:
    assert twin.b is not None
    return twin.b.get(OPERATION).kept


def test_it_is_retired_once_the_machine_has_a_point_elsewhere_and_its_claim_stays(twin: Twin) -> None:
    for protected, why in (((), "not protected"), ((Protected(twin, None),), "no point at gateway-a yet")):
        with pytest.raises(NotRetired, match=why):
            retire(open_kept(twin, *protected))
    kept = open_kept(twin, Protected(twin, 7))
    with pytest.raises(ConfirmationMissing):
        kept.retire(OPERATION, RetireReplica(operation="cd" * 16, confirm="shop"))
    assert "keys" in left(twin)
    retire(kept)
    assert (state(twin), left(twin)) == (KeptState.RETIRED, {"log", "state", "writers"})
    retire(kept)  # asked again
    claim = twin.journal.head().claim
    assert claim is not None
    assert (claim.epoch, claim.nonce) == (2, OPERATION)
    # a source that comes back from the dead is held, and writes nothing
    twin.a = None
    for path in (twin.root / "a" / "held").iterdir():
        path.unlink()
    twin.a_fabric.lift_isolation(twin.machine, run=True)
    twin.start_a()
    assert twin.commit_as_a(late=True) is None
    twin.look()
    assert not twin.a_fabric.runs(twin.machine)
    with pytest.raises(NotMigrated, match="retired"):
        complete(kept)


def test_a_completed_migration_is_final_at_both_sites_and_its_replica_may_go(twin: Twin) -> None:
    kept = open_kept(twin)
    with pytest.raises(ConfirmationMissing):
        kept.complete_migration(OPERATION, CompleteMigration(operation="cd" * 16))
    with pytest.raises(NotMigrated, match="protected to gateway-a"):
        complete(open_kept(twin, Protected(twin, 7)))
    complete(kept)
    complete(kept)
    claim = twin.journal.head().claim
    assert claim is not None
    assert (claim.reason, claim.claimant, claim.epoch) == (MIGRATED, B, 3)
    twin.look()
    assert twin.a is not None
    [held] = twin.a.all()
    assert (held.state, held.final) == (HeldState.HELD, True)
    retire(kept)
    assert (state(twin), twin.journal.head().claim) == (KeptState.RETIRED, claim)


def test_what_is_not_committed_or_written_by_another_is_neither(twin: Twin) -> None:
    assert twin.b is not None
    journal = twin.journal
    journal.claim(
        name="shop", claimant="gateway-a", reason="reverse", clock=twin.clock, expected=journal.head()
    )
    kept = open_kept(twin, Protected(twin, 7))
    with pytest.raises(NotRetired, match=r"written by gateway-a \(reverse\) now"):
        retire(kept)
    with pytest.raises(NotMigrated):
        complete(open_kept(twin))


def test_an_open_failover_is_neither_retired_nor_final() -> None:
    with tempfile.TemporaryDirectory() as name:
        twin = Twin(Path(name))
        twin.commit_as_a()
        twin.failover(OPERATION)
        kept = open_kept(twin, Protected(twin, 7))
        with pytest.raises(NotRetired, match="not committed"):
            retire(kept)
        with pytest.raises(NotMigrated, match="not committed"):
            complete(kept)


@contextmanager
def dying_at(mark: str) -> Iterator[list[str]]:
    died: list[str] = []

    def crash_point(name: str) -> None:
        if name == mark and not died:
            died.append(name)
            raise Killed

    with (
        contextlib.suppress(Killed),
        mock.patch.object(kept_module, "crash_point", crash_point),
        mock.patch.object(threading, "excepthook"),
    ):
        yield died


@pytest.mark.parametrize("mark", sorted(mark for mark in MARKS if mark.startswith("kept.")))
def test_killed_at_any_mark_it_is_finished(mark: str, twin: Twin) -> None:
    final = mark == kept_module.MIGRATION_CLAIMED
    protected = () if final else (Protected(twin, 7),)
    with dying_at(mark) as died:
        (complete if final else retire)(open_kept(twin, *protected))
    assert died == [mark]
    afresh = open_kept(twin, *protected)
    afresh.resume()
    afresh._threads.wait()
    if final:
        complete(afresh)
        assert (state(twin), twin.journal.head().epoch) == (KeptState.MIGRATED, 3)
    else:
        assert (state(twin), left(twin)) == (KeptState.RETIRED, {"log", "state", "writers"})
        assert twin.journal.head().epoch == 2
