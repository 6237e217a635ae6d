"""Whole journals in S3 and Azure Blob: points, views without a base, rescue, gateways; and trouble."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.target.views import open_point_view
from secondsite.journal.chain import Journal, machines
from secondsite.journal.names import log_name
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore, StoreLocked, StoreUnavailable
from secondsite.journal.store_object_errors import Retries, StoreRefused
from secondsite.journal.store_object_settings import parse_place
from secondsite.journal.store_obstore import ObstoreStore
from secondsite.journal.stores import open_store
from secondsite.journal.view import PointView
from support.control import run_command
from support.gateway_pair import Pair
from support.http_relay import Fate, Relay
from support.machines import SHOP
from support.object_servers import Azurite, SeaweedFS, environment
from support.replicas import Replica, extend_replica, make_replica

POLL_SECONDS = 0.02


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < end, f"{what} did not happen"
        clock.wait(never, POLL_SECONDS)


@dataclass
class Backend:
    """A running server, and how to reach it through something else."""

    server: SeaweedFS | Azurite
    scheme: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.server.bucket()}/{secrets.token_hex(8)}"

    @contextmanager
    def relayed(self, fate: Callable[[str, str], Fate] = lambda method, path: None) -> Iterator[Relay]:
        """The environment leads through a relay for as long as it lasts."""
        with Relay(self.server.port, fate) as relay:
            found = self.server.environment()
            moved = {
                name: value.replace(self.server.endpoint, relay.endpoint) for name, value in found.items()
            }
            with environment(moved):
                yield relay


@pytest.fixture(params=[("seaweedfs", "s3"), ("azurite", "az")], ids=["s3", "azure"])
def backend(request: pytest.FixtureRequest) -> Backend:
    name, scheme = request.param
    return Backend(request.getfixturevalue(name), scheme)


def _contents(view: PointView) -> dict[str, bytes]:
    return {disk: one.read(0, one.size_bytes) for disk, one in view.disks.items()}


def _check_all(replica: Replica, store: ObjectStore) -> None:
    """Every point, read by one who has nothing but the store and its key."""
    journal = Journal(store, SHOP, replica.vault)
    assert [point.number for point in journal.points()] == sorted(replica.contents)
    for number, content in replica.contents.items():
        journal.pin(number, "reader", "a test")
        with open_point_view(journal, number, replica.vault) as view:
            assert _contents(view) == content
    journal.unpin("reader")


def test_points_read_back_without_a_base(backend: Backend, tmp_path: Path) -> None:
    url = backend.url
    replica = make_replica(tmp_path, points=6, store=open_store(url))
    _check_all(replica, open_store(url))
    assert machines(open_store(url)) == [SHOP]


def test_rescue_needs_nothing_but_the_url_the_key_and_the_environment(
    backend: Backend, tmp_path: Path
) -> None:
    url = backend.url
    replica = make_replica(tmp_path, store=open_store(url))
    ran = run_command("rescue", "--store", url, "--key-file", replica.key_file, "list", "shop", "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count('"number"') == len(replica.contents)
    checked = run_command("store", "check", url, "--json")
    assert checked.code == 0, checked.err
    assert '"verdict": "full"' in checked.out
    # what is named like a secret must stand in nothing that a command prints
    with environment(
        {
            **backend.server.environment(),
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AZURE_STORAGE_ACCOUNT_KEY": "aHVzaA==",
        }
    ):
        refused = run_command("store", "check", url)
        listed = run_command("rescue", "--store", url, "--key-file", replica.key_file, "list")
    assert (refused.code, listed.code) == (4, 4)
    for one in (refused, listed):
        assert "hush" not in one.out + one.err
        assert "aHVzaA" not in one.out + one.err
    assert "store check" in listed.err


def test_two_gateways_with_the_replica_in_an_object_store(backend: Backend) -> None:
    """Real listener, staging, commits and upkeep: a point taken now reads as the source was."""
    url = backend.url
    fabric = MemoryFabric()
    machine = fabric.add_machine("shop", {"vda": 4 * MIB, "vdb": 2 * MIB})
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    with tempfile.TemporaryDirectory(prefix="gp") as name:  # short: sockets lie below it
        pair = Pair(Path(name), store=url)
        a = pair.start_a(pair.start_b(), fabric)
        try:
            pair.protect("shop")
            with pair.client_a() as client:
                until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
                fabric.write(machine, "vdb", 4096, b"world" * 1000)
                content = {disk: fabric.content(machine, disk) for disk in ("vda", "vdb")}
                taken = client.take_point("shop")
            journal = Journal(open_store(url), machine, pair.vault)
            with open_point_view(journal, taken.number, pair.vault) as view:
                assert _contents(view) == content
            staging = pair.root / "gateway-b" / "cache" / "staging"
            assert list(staging.iterdir()) == [], "what was published is not kept twice"
        finally:
            a.stop()
            pair.stop_b()


# -- trouble ----------------------------------------------------------------------------------------

QUICK = Retries(attempts_max=3, first_seconds=0.01, seconds_max=0.02)


def _open(url: str, staging: Path, *, retries: Retries = QUICK, lock_days: int = 0) -> ObstoreStore:
    return ObstoreStore(parse_place(url), staging=staging, retries=retries, lock_days=lock_days)


def test_a_server_that_is_gone_is_unavailable_and_taken_up_again(backend: Backend, tmp_path: Path) -> None:
    url = backend.url
    down: list[bool] = []
    with backend.relayed(lambda *_: "drop" if down else None):
        store = _open(url, tmp_path)
        replica = make_replica(tmp_path, points=2, store=store)
        staged = store.stage("m/1")
        staged.append(b"0123")
        down.append(True)
        for call in (
            lambda: store.put("m/0", b"x"),
            lambda: store.get("m/0", size_bytes_max=1),
            lambda: store.size("m/0"),
            lambda: list(store.list("machines/")),
            lambda: store.delete("m/0"),
            lambda: store.stage("m/2"),
            staged.publish,
            replica.journal.points,
        ):
            with pytest.raises(StoreUnavailable):
                call()
        staged.append(b"45")
        down.clear()
        staged.publish()
        assert store.get("m/1", size_bytes_max=6) == b"012345"
        _check_all(replica, store)


def test_a_stopped_server_goes_on_where_it_was(azurite_server: Azurite, tmp_path: Path) -> None:
    """The real process ended and started again; SeaweedFS takes half a minute for that, so Azurite it is."""
    with Azurite(tmp_path / "server") as server, environment(server.environment()):
        url = f"az://{server.make_bucket()}/site-b"
        store = _open(url, tmp_path / "staging")
        replica = make_replica(tmp_path, points=2, store=store)
        server.stop()
        with pytest.raises(StoreUnavailable, match="nobody answers"):
            store.put("m/0", b"x")
        server.start()
        store.put("m/0", b"x")
        _check_all(replica, store)


@pytest.mark.parametrize("fate", ["lose", "drop", 500, 503, 429])
def test_a_create_whose_answer_was_lost_is_ours_and_nobody_elses(
    backend: Backend, tmp_path: Path, fate: Fate
) -> None:
    spoiled: list[str] = []

    def once(method: str, path: str) -> Fate:
        if method != "PUT" or spoiled or "m/" not in path:
            return None
        spoiled.append(path)
        return fate

    with backend.relayed(once):
        store = _open(backend.url, tmp_path)
        store.put("m/1", b"mine")
        assert len(spoiled) == 1
        spoiled.clear()
        staged = store.stage("m/2")
        staged.append(b"mine too")
        staged.publish()
        assert len(spoiled) == 1
        assert store.get("m/2", size_bytes_max=8) == b"mine too"
        spoiled.clear()
        with pytest.raises(ObjectExists):
            store.put("m/1", b"another")
        assert store.get("m/1", size_bytes_max=7) == b"mine"


def test_a_listing_that_breaks_off_is_gone_on_with(backend: Backend, tmp_path: Path) -> None:
    failures: list[bool] = []

    def every_other(method: str, path: str) -> Fate:
        if method != "GET" or "list" not in path:
            return None
        failures.append(not failures or not failures[-1])
        return 503 if failures[-1] else None

    with backend.relayed(every_other):
        store = _open(backend.url, tmp_path)
        names = [f"m/{number:04d}" for number in range(30)]
        for name in names:
            store.put(name, b"")
        assert list(store.list("m/")) == names
        assert list(store.list("m/", after=names[9])) == names[10:]


def test_staged_bytes_survive_a_restart(backend: Backend, tmp_path: Path) -> None:
    url = backend.url
    store = _open(url, tmp_path)
    staged = store.stage("m/1")
    staged.append(b"before ")
    store.close()
    again = _open(url, tmp_path)
    staged = again.stage("m/1")
    assert (staged.offset, staged.read_back(0, 9)) == (7, b"before ")
    staged.append(b"and after")
    staged.publish()
    assert again.get("m/1", size_bytes_max=99) == b"before and after"
    assert list(tmp_path.iterdir()) == []
    # another store in the same directory knows nothing of it
    assert _open(f"{url}/deeper", tmp_path).stage("m/1").offset == 0


def test_a_point_costs_what_is_written_down(backend: Backend, tmp_path: Path) -> None:
    """docs/stores.md has these figures: a point of two disks with a segment each, in an open journal."""
    with backend.relayed() as relay:
        replica = make_replica(tmp_path, points=3, store=_open(backend.url, tmp_path))
        relay.counted()
        extend_replica(replica)
        assert relay.counted() == {"PUT": 3, "HEAD": 2, "GET": 4}


# -- locks ------------------------------------------------------------------------------------------


def test_what_points_are_made_of_is_locked_and_the_rest_is_not(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    bucket = seaweedfs.make_bucket(locks=True)
    store = _open(f"s3://{bucket}/site-b", tmp_path / "staging", lock_days=2)
    replica = make_replica(tmp_path, store=store)
    journal = replica.journal
    point = journal.points()[0]
    names = [log_name(SHOP, point.number), *map(journal.segment_name, point.segments)]
    names += list(store.list(f"machines/{SHOP}/keys/"))
    for name in names:
        with pytest.raises(StoreLocked) as caught:
            store.delete(name)
        told = datetime.fromisoformat(str(caught.value.fields["until"]))
        assert timedelta(days=1, hours=23) < told - datetime.now(UTC) <= timedelta(days=2)
        assert caught.value.retryable
    _check_all(replica, store)  # pins and unpins: states come and go
    for state in store.list(f"machines/{SHOP}/state/"):
        store.delete(state)
    listed = seaweedfs.client().list_object_versions(Bucket=bucket, Prefix=f"site-b/machines/{SHOP}/state/")
    assert not listed.get("Versions"), "a deleted object costs nothing any more"
    assert not listed.get("DeleteMarkers")


def test_a_locked_upload_is_created_once_and_resumes(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    url = f"s3://{seaweedfs.make_bucket(locks=True)}/site-b"
    key = f"machines/{SHOP}/segments/00000001/vda/{'0' * 32}"
    store = _open(url, tmp_path, lock_days=1)
    store.stage(key).append(b"01")
    store.close()
    store = _open(url, tmp_path, lock_days=1)
    staged = store.stage(key)
    staged.append(b"23")
    staged.publish()
    with pytest.raises(ObjectExists):
        store.put(key, b"another")
    with pytest.raises(StoreLocked):
        store.delete(key)
    assert store.get(key, size_bytes_max=4) == b"0123"


def test_what_an_intruder_hid_or_wrote_over_is_still_there(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """With the gateway's own credentials: a deletion only hides; taking the hiding away brings it back."""
    bucket = seaweedfs.make_bucket(locks=True)
    store = _open(f"s3://{bucket}/site-b", tmp_path / "staging", lock_days=1)
    replica = make_replica(tmp_path, store=store)
    client, name = seaweedfs.client(), f"site-b/{log_name(SHOP, replica.newest)}"
    hidden = client.delete_object(Bucket=bucket, Key=name)
    with pytest.raises(ObjectMissing):
        store.size(name.removeprefix("site-b/"))
    client.delete_object(Bucket=bucket, Key=name, VersionId=hidden["VersionId"])
    over = client.put_object(Bucket=bucket, Key=name, Body=b"overwritten")
    client.delete_object(Bucket=bucket, Key=name, VersionId=over["VersionId"])
    _check_all(replica, open_store(store.url))


def test_a_bucket_with_versions_gives_room_back(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    bucket = seaweedfs.make_bucket(versions=True)
    for store in (_open(f"s3://{bucket}/b", tmp_path), _open(f"s3://{bucket}/b", tmp_path)):
        if not list(store.list("m/")):
            store.put("m/1", b"1")
            continue
        store.delete("m/1")  # by one that never put anything
        store.delete("m/1")
    listed = seaweedfs.client().list_object_versions(Bucket=bucket)
    assert not listed.get("Versions")
    assert not listed.get("DeleteMarkers")


def test_a_reader_may_read_and_is_told_that_it_may_not_write(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    url = f"s3://{seaweedfs.make_bucket()}/site-b"
    replica = make_replica(tmp_path, store=open_store(url))
    reader = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"}
    with environment({**seaweedfs.environment(), **reader}):
        store = open_store(url)
        journal = Journal(store, SHOP, replica.vault)
        with open_point_view(journal, replica.newest, replica.vault) as view:
            assert _contents(view) == replica.contents[replica.newest]
        with pytest.raises(StoreRefused, match="AccessDenied"):
            journal.pin(replica.newest, "reader", "a test")
