"""A standby on a database that PostgreSQL replicates: a real second cluster, streaming, promoted.

Copying a cluster takes some seconds: by `./run standby`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from secondsite.server.database.engine import open_database
from secondsite.server.database.errors import DatabaseReadOnly
from secondsite.server.main import Server
from secondsite.server.standby.replica import DatabaseIsReplica, replica_of
from secondsite.server.standby.takeover import plan_takeover
from support.databases import Databases, PostgreSQL
from support.standbys import CLOCK, SECONDS_MAX, Site, two_sites
from support.until import until

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SECONDSITE_MATRIX") != "full", reason="copies a cluster: ./run standby"
    ),
    pytest.mark.timeout(400),
]


class ReplicaCluster(PostgreSQL):
    """A second cluster that streams from a first one, until it is promoted."""

    def __init__(self, primary: PostgreSQL) -> None:
        super().__init__()
        shutil.rmtree(self.data)
        self._run(
            "pg_basebackup", "-h", str(primary.directory), "-U", primary.user, "-D", str(self.data), "-R"
        )

    def promote(self) -> None:
        self.execute("SELECT pg_promote()")


@pytest.fixture
def clusters() -> Iterator[tuple[PostgreSQL, ReplicaCluster]]:
    with contextlib.ExitStack() as stack:
        primary = PostgreSQL()
        stack.callback(primary.remove)
        primary.start()
        primary.execute("CREATE DATABASE server")
        replica = ReplicaCluster(primary)
        stack.callback(replica.remove)
        replica.start()
        yield primary, replica


def test_takeover_on_a_promoted_replica_loses_nothing_it_had(
    clusters: tuple[PostgreSQL, ReplicaCluster], tmp_path: Path
) -> None:
    primary, replica = clusters
    with two_sites(tmp_path, databases=(primary.url("server"), replica.url("server"))) as (a, b):
        a.copies.make()
        follower = b.follower()
        follower.look()
        # no copy has this one: it is in the replica only
        a.add_vault("South")
        until(lambda: _vaults(replica) == 2, "PostgreSQL replicates it", SECONDS_MAX)
        until(
            lambda: follower.look().replica_problem == "", "the standby sees that it is complete", SECONDS_MAX
        )
        _is_read_only(b)
        a.stop()
        primary.stop()
        assert plan_takeover(follower).lag_seconds < 60
        with pytest.raises(DatabaseIsReplica):
            b.take_over()
        assert not follower.files.begun()
        replica.promote()
        until(lambda: _writable(replica), "it is promoted", SECONDS_MAX)
        done = b.take_over()
        b.start()
        assert b.survival.life.number == done.claim.incarnation
        assert b.vaults() == ["North", "South"]


def _is_read_only(site: Site) -> None:
    """No server becomes active on it, also by mistake; and what is written meets a clear word."""
    with pytest.raises(DatabaseIsReplica):
        Server(site.config).start()
    database = open_database(site.config.database_url(), CLOCK)
    assert replica_of(database) is not None
    with pytest.raises(DatabaseReadOnly):
        database.run(lambda connection: connection.exec_driver_sql("DELETE FROM vaults"))
    database.close()


def _vaults(cluster: PostgreSQL) -> int:
    with psycopg.connect(cluster.url("server")) as connection:
        row = connection.execute("SELECT count(*) FROM vaults").fetchone()
    assert row is not None
    return int(row[0])


def _writable(cluster: PostgreSQL) -> bool:
    with psycopg.connect(cluster.url("server")) as connection:
        return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def test_the_circle_on_postgresql(databases: Databases, tmp_path: Path) -> None:
    """Its database is put aside as a schema, and the same one is used again."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(databases.empty("postgresql")) for _ in range(2)]
        with two_sites(tmp_path, databases=(urls[0], urls[1])) as (a, b):
            a.copies.make()
            b.follower().look()
            for site in (a, b):
                site.beats_until(lambda site=site: b.url in site.urls)  # type: ignore[misc]
            a.stop()
            b.take_over()
            b.start()
            for site in (a, b):
                site.beats_until(lambda site=site: site.gateway_server == b.url)  # type: ignore[misc]
            a.start()
            until(lambda: a.survival.life.superseded, "it learns that another took over", SECONDS_MAX)
            a.become_standby()
            back = a.follower()
            b.beats_until(lambda: a.keeper().look() >= 0 and not back.look().problem and _later(a, b))
            b.stop()
            a.take_over()
            a.start()
            assert a.vaults() == ["North"]


def _later(standby: Site, active: Site) -> bool:
    held = standby.follower().held()
    return held is not None and held.incarnation == active.survival.life.number
