"""kill -9 at every mark of what a gateway does for its server: taking wishes, deleting a replica."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from secondsite.base.crash import MARKS
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.recovery.deletion import DeletionNotConfirmed, ReplicaInUse
from secondsite.gateway.target.signals import hold_of
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId
from secondsite.transfer.desired import Desired
from support.control import Events
from support.desk import wanted
from support.gateway_pair import A, Pair
from support.machines import SHOP
from support.replicas import Replica, make_replica
from support.until import until
from support.wishes_process import deletions

TAKE_MARKS = ["wanted.before-taken", "wanted.after-taken"]
DELETE_MARKS = [
    "deletion.after-asked",
    "deletion.after-log-record",
    "deletion.after-log-record:3",
    "deletion.after-log",
    "deletion.after-objects",
    "deletion.after-bases",
    "deletion.after-state",
    "deletion.after-tombstone",
]


def run(*arguments: str | Path, crash_at: str = "") -> None:
    environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at}
    done = subprocess.run(
        [sys.executable, "-m", "support.wishes_process", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if crash_at else 0), done.stderr


def test_every_mark_is_killed_at() -> None:
    ours = {mark for mark in MARKS if mark.startswith(("wanted.", "deletion."))}
    assert ours == {*TAKE_MARKS, *(mark.partition(":")[0] for mark in DELETE_MARKS)}


@pytest.mark.parametrize("mark", TAKE_MARKS)
def test_wishes_taken_by_a_killed_gateway_are_followed_by_the_next(mark: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gk") as name:  # short: sockets lie below it
        pair, fabric = Pair(Path(name)), MemoryFabric()
        machine = fabric.add_machine("shop", {"vda": MIB})
        address = pair.start_b()
        pair.config_a(address)
        document = Desired(generation=3, protections=(wanted(machine, 1),)).model_dump_json(by_alias=True)
        file = pair.root / A / "state" / "desired.json"
        run("take", file, document, crash_at=mark)
        taken = mark == "wanted.after-taken"
        assert [p.item for p in DesiredState(file).all()] == ["item-1"] * taken
        if not taken:
            run("take", file, document)
        a = pair.start_a(address, fabric)
        try:
            with pair.client_a() as client:
                until(lambda: client.status().protections[0].last_point is not None, "its first point")
        finally:
            a.stop()
            pair.stop_b()


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    made = make_replica(tmp_path, points=4)
    bases = tmp_path / "bases" / SHOP
    bases.mkdir(parents=True)
    (bases / "vda.0011aabb.raw").write_bytes(bytes(4096))
    return made


def whole_points(replica: Replica) -> int:
    """How many points a stranger to the deletion finds in the store; each reads as it was written."""
    store = LocalStore(replica.store_path)
    try:
        points = Journal(store, SHOP, None).points()
    except SecondsiteError:
        assert not list(store.list(f"machines/{SHOP}/log/")), "a log that is there is whole"
        return 0
    keys = KeyRing(store, SHOP, replica.vault)
    for point in points:
        view = open_view(Journal(store, SHOP, None), point.number, keys, bases=lambda _: None)
        for disk, content in replica.contents[point.number].items():
            assert view.disks[DiskId(disk)].read(0, len(content)) == content
    return len(points)


def require_tombstone(replica: Replica) -> None:
    """One record is left: a claim by nobody, above the epoch the machine had."""
    store = LocalStore(replica.store_path)
    assert list(store.list(f"machines/{SHOP}/")) == [f"machines/{SHOP}/log/{1:016d}"]
    claim = Journal(store, SHOP, replica.vault).head().claim
    assert claim is not None
    assert (claim.epoch, claim.claimant, claim.reason) == (2, "", "deleted")


@pytest.mark.parametrize("mark", DELETE_MARKS)
def test_a_deletion_that_is_killed_leaves_whole_points_or_none_and_is_finished(
    mark: str, replica: Replica
) -> None:
    run("delete", replica.root, crash_at=mark)
    left = whole_points(replica)
    if mark == "deletion.after-asked":
        assert left == 4
    if mark == "deletion.after-log-record:3":
        assert 0 < left < 4
    events = Events()
    found = deletions(replica.root, events)
    assert found.why_closed(SHOP) == "its replica is being deleted"
    assert found._recovery.machines() == [], "it is not listed any more"
    run("delete", replica.root)
    require_tombstone(replica)
    assert not (replica.root / "bases" / SHOP).exists()
    assert list((replica.root / "state" / "deletions").iterdir()) == []
    assert deletions(replica.root, events).why_closed(SHOP) == ""


def test_danger_is_spelled_out_and_what_is_needed_stays(replica: Replica) -> None:
    found = deletions(replica.root, Events())
    for wrong in ("", "sho", "yes"):
        with pytest.raises(DeletionNotConfirmed, match="shop"):
            found.begin(SHOP, confirm=wrong, by="tester")
    replica.journal.pin(replica.newest, "hold:audit", "the auditors", None, reads=False)
    with pytest.raises(ReplicaInUse, match="the auditors"):
        found.begin(SHOP, confirm="shop", by="tester")
    replica.journal.unpin("hold:audit")
    replica.journal.pin(replica.newest, hold_of(replica.newest), "the last clean point", None, reads=False)
    with pytest.raises(ReplicaInUse, match="at this gateway: `secondsite points dismiss shop --note WHY`"):
        found.begin(SHOP, confirm="shop", by="tester")
    replica.journal.unpin(hold_of(replica.newest))
    assert found.all() == []
    assert whole_points(replica) == 4
    (replica.root / "elsewhere.raw").write_bytes(b"somebody's")
    found.begin(SHOP, confirm=SHOP, by="tester")
    found.work()
    require_tombstone(replica)
    assert (replica.root / "elsewhere.raw").exists()
