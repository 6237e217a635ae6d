"""Databases for tests: every test of the server runs on SQLite and on a real PostgreSQL.

One PostgreSQL cluster a run, of Debian's package, in a directory of its own, on a unix socket only, with
fsync on, under a user that is not root. A test gets a database of its own, copied from one that has the
tables.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select

from secondsite.base.clock import SystemClock
from secondsite.base.units import GIB
from secondsite.server.database.engine import open_database
from secondsite.server.database.migrations import head, upgrade
from secondsite.server.database.tables import METADATA

KINDS = ("sqlite", "postgresql")
START_SECONDS_MAX = 60.0
# A commit waits for the disk, some milliseconds each, and tests make many thousands of them. No test takes a
# machine's power away from a database, so they lie in memory where there is room for them.
MEMORY, ROOM_BYTES = Path("/dev/shm"), 2 * GIB
TEMPLATE = "template_secondsite"


def new_directory(prefix: str) -> Path:
    """For databases; its path is short, since sockets lie below it."""
    for left in MEMORY.glob(f"{prefix}[0-9]*-*"):  # by a run that was killed: it would stay in memory
        if not Path("/proc", left.name.removeprefix(prefix).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=MEMORY if roomy else "/var/tmp"))


def postgresql_programs() -> Path:
    """The directory of PostgreSQL's own programs. Skips, loudly, where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("PostgreSQL IS NOT INSTALLED: run `./run install`; this database is NOT tested")
    return found[-1].parent


class PostgreSQL:
    """One cluster; `start` after `stop` goes on with the same data."""

    def __init__(self) -> None:
        self.programs = postgresql_programs()
        self.directory = new_directory("ss-pg-")
        self.process: subprocess.Popen[bytes] | None = None
        self.user = "postgres"
        # PostgreSQL refuses to run as root
        self.account = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
        if os.geteuid() == 0:
            os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        self._run(
            "initdb", "-D", str(self.data), "-U", self.user, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"
        )

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}@/{database}?host={self.directory}"

    def _command(self, program: str, *arguments: str) -> list[str]:
        """As the cluster's user, ended with the test run even if that is killed."""
        drop = ["--reuid", self.account.pw_name, "--regid", str(self.account.pw_gid), "--clear-groups"]
        return [
            "setpriv",
            *(drop if os.geteuid() == 0 else []),
            "--pdeathsig",
            "INT",
            str(self.programs / program),
            *arguments,
        ]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            capture_output=True,
            text=True,
            cwd=self.directory,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        command = self._command(
            "postgres",
            *("-D", str(self.data), "-k", str(self.directory)),
            *("-c", "listen_addresses=", "-c", "max_connections=200", "-c", "unix_socket_permissions=0700"),
        )
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        never = threading.Event()
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres")).close()
                return
            never.wait(0.05)
        raise AssertionError(f"PostgreSQL did not come up:\n{(self.directory / 'log').read_text()[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: cuts its connections and writes all down; SIGQUIT: at once, as after a power cut."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(START_SECONDS_MAX)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)


class Databases:
    """Makes databases that have the tables, cheaply; for the whole run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sqlite: Path | None = None
        self._postgresql: PostgreSQL | None = None
        self._templated = False
        self._free: list[str] = []

    @property
    def cluster(self) -> PostgreSQL:
        if self._postgresql is None:
            self._postgresql = PostgreSQL()
            self._postgresql.start()
        return self._postgresql

    @contextlib.contextmanager
    def empty(self, kind: str) -> Iterator[str]:
        """The address of a new database without tables; it goes at the end."""
        name = f"test_{secrets.token_hex(6)}"
        if kind == "sqlite":
            yield f"sqlite:///{self._directory / name}.db"
            for file in self._directory.glob(f"{name}*"):
                file.unlink()
            return
        self.cluster.execute(f"CREATE DATABASE {name}")
        yield self.cluster.url(name)
        self.cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def ready(self, kind: str) -> Iterator[str]:
        """The address of a new database with this program's tables; it goes at the end."""
        name = f"test_{secrets.token_hex(6)}"
        if kind == "sqlite":
            if self._sqlite is None:
                self._sqlite = self._directory / "template.db"
                _make_tables(f"sqlite:///{self._sqlite}")
            shutil.copyfile(self._sqlite, self._directory / f"{name}.db")
            yield f"sqlite:///{self._directory / name}.db"
            for file in self._directory.glob(f"{name}*"):
                file.unlink()
            return
        name = self._free.pop() if self._free else self._copied(name)
        yield self.cluster.url(name)
        if self._emptied(name):
            self._free.append(name)
        else:
            self.cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _copied(self, name: str) -> str:
        if not self._templated:
            self.cluster.execute(f"CREATE DATABASE {TEMPLATE}")
            _make_tables(self.cluster.url(TEMPLATE))
            self._templated = True
        self.cluster.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    def _emptied(self, name: str) -> bool:
        """Make a used database as good as new: a copy takes 300 ms, deleting what a test left a few."""
        self.cluster.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        try:
            with psycopg.connect(self.cluster.url(name)) as connection:
                for table in reversed(METADATA.sorted_tables):
                    connection.execute(f'DELETE FROM "{table.name}"'.encode())
                found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except psycopg.Error:
            return False
        return found == [(head(),)]

    def close(self) -> None:
        if self._postgresql is not None:
            self._postgresql.remove()


def _make_tables(url: str) -> None:
    database = open_database(url, SystemClock())
    upgrade(database)
    with database.read() as connection:  # else an emptied database would lack what the revisions put in
        for table in METADATA.sorted_tables:
            assert connection.execute(select(table)).first() is None, f"{table.name} is filled by a revision"
    database.close()


@contextlib.contextmanager
def databases_of_a_run() -> Iterator[Databases]:
    """For the whole session."""
    directory = new_directory("ss-db-")
    made = Databases(directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)
