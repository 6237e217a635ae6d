"""The server backs itself up into its gateways' stores, on time, and what is in a store brings it back."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.uplink.backups import BackupCopyWrong, ServerBackups
from secondsite.gateway.uplink.calls import Uplink, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.journal.store_local import LocalStore
from secondsite.server.database.engine import open_database
from secondsite.server.identity.envelopes import open_master_key
from secondsite.server.jobs.records import get
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.backup import BackupServer
from secondsite.server.people.roles import THE_SERVER
from secondsite.server.survival.backups import BACKUP_JOB
from secondsite.server.survival.container import check_whole
from secondsite.server.survival.restore import restore_from
from secondsite.transfer.backups import PART_BYTES, KeepBackup, backups_prefix
from support.control import Events
from support.enrolled import Place, enrolled_place
from support.until import until

CLOCK = SystemClock()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as made:
        yield made


@contextmanager
def _storing(place: Place) -> Iterator[LocalStore]:
    """The place's gateway with a store, in touch with its server."""
    store = LocalStore(place.root / "store")
    clients = EnrolledClients(place.files)
    services = ControlServices(
        name="gateway-a",
        site="a",
        clock=CLOCK,
        events=Events(),
        server_backups=ServerBackups(store, clients.open, Events()),
    )
    control = serve_control(services, place.root / "storing.sock")
    source = ServerCalls(clients.open, clients.serial)
    uplink = Uplink(source, over_socket(place.root / "storing.sock"), Fences(place.root / "f.json"), CLOCK)
    uplink.start()
    try:
        yield store
    finally:
        uplink.close()
        control.stop()


def _begin(place: Place) -> str:
    services = place.services
    assert services.jobs is not None
    jobs = services.jobs
    job = services.database.run(
        lambda connection: jobs.start(connection, BACKUP_JOB, BackupServer(), THE_SERVER.name)
    )
    services.nudge_jobs()
    return job


def _state(place: Place, job: str) -> JobState:
    with place.services.database.read() as connection:
        return get(connection, job).state


def test_it_is_kept_by_the_gateways_store_and_restores_from_there(place: Place, tmp_path: Path) -> None:
    survival = place.services.survival
    assert survival is not None
    _heard(place)
    with _storing(place) as store:
        for _ in range(3):
            job = _begin(place)
            until(lambda job=job: _state(place, job) is JobState.SUCCEEDED, f"the backup {job}")  # type: ignore[misc]
        prefix = backups_prefix(survival.life.state.server)
        assert len(list(store.list(prefix))) == 3
    newest = survival.backups.newest(10)
    assert [one.kept_at is not None for one in newest] == [True] * 3
    assert newest[0].places[0].gateway == "gateway-a"
    with sqlite3.connect(tmp_path / "server.db") as raw:  # nothing of it stays in the database
        assert raw.execute("SELECT count(*) FROM server_backup_parts").fetchone() == (0,)
    file = store.root / f"{prefix}{newest[0].name}"
    with file.open("rb") as opened:
        check_whole(opened, "it")
    master = open_master_key(place.root / "server" / "master.key", create=False)
    other = open_database(f"sqlite:///{tmp_path / 'new.db'}", CLOCK)
    try:
        found = restore_from(other, master, file)
        assert found.aftermath.jobs_for_a_person == 0  # the job that made it is not for a person
    finally:
        other.close()


def test_one_is_begun_when_it_is_time_and_lateness_is_told(place: Place) -> None:
    survival, services = place.services.survival, place.services
    assert survival is not None
    assert services.jobs is not None
    assert survival.warnings() == []  # young: nothing is late yet
    assert survival.keep_house(services.jobs)
    assert not survival.keep_house(services.jobs)
    with services.database.write() as connection:
        connection.exec_driver_sql("UPDATE gateways SET registered_at = '2020-01-01T00:00:00.000000Z'")
    assert "there is none" in survival.warnings()[0]


def _heard(place: Place) -> None:
    """The server has heard of its gateway."""
    client = EnrolledClients(place.files).open()
    try:
        from secondsite.transfer import enrolment as wire

        beat = wire.Heartbeat(version="0.1.0", sent_at=wire.time_text(CLOCK.utc()))
        client.post(wire.PATH_HEARTBEATS, beat, wire.HeartbeatAnswer)
    finally:
        client.close()


class _Parts:
    """A server that gives out the parts of one backup, or others."""

    def __init__(self, data: bytes, *, cut_at: int | None = None) -> None:
        self.data, self.cut_at = data, cut_at
        self.asked: list[int] = []

    def request(self, _method: str, path: str, _body: None) -> bytes:
        number = int(path.rpartition("/")[2])
        self.asked.append(number)
        if number == self.cut_at:
            raise InvalidInput(what="the line", why="it was cut")
        return self.data[number * PART_BYTES : (number + 1) * PART_BYTES]

    def close(self) -> None:
        pass


def test_a_copy_goes_on_where_it_was_cut_and_a_wrong_one_never_appears(tmp_path: Path) -> None:
    data = bytes(range(256)) * (PART_BYTES // 64) + b"end"
    name = f"20260101t000000z-{'a' * 32}"
    asked = KeepBackup("a" * 32, "b" * 32, len(data), hashlib.sha256(data).hexdigest(), 2)
    store = LocalStore(tmp_path)
    prefix = backups_prefix(asked.server)
    cut = _Parts(data, cut_at=3)
    with pytest.raises(InvalidInput):
        ServerBackups(store, lambda: cut, Events()).take(name, asked)  # type: ignore[arg-type,return-value]
    assert list(store.list(prefix)) == []
    rest = _Parts(data)
    ServerBackups(store, lambda: rest, Events()).take(name, asked)  # type: ignore[arg-type,return-value]
    assert rest.asked == [3, 4]
    assert store.get(prefix + name, size_bytes_max=1 << 30) == data
    wrong = _Parts(data[:-3] + b"END")
    later = name.replace("20260101", "20260102")
    with pytest.raises(BackupCopyWrong):
        ServerBackups(store, lambda: wrong, Events()).take(later, asked)  # type: ignore[arg-type,return-value]
    assert list(store.list(prefix)) == [prefix + name]
    for day in ("03", "04", "05"):
        good = _Parts(data)
        took = ServerBackups(store, lambda good=good: good, Events())  # type: ignore[misc]
        took.take(name.replace("20260101", f"202601{day}"), asked)
    assert [key[-41:-33] for key in store.list(prefix)] == ["t000000z"] * 2
    assert len(list(store.list(prefix))) == 2
