"""Backups a running server takes of itself: made, cut into parts for gateways, noted where they are."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_jobs import jobs
from secondsite.server.database.tables_survival import server_backup_parts, server_backups, server_copies
from secondsite.server.database.values import from_json, from_moment, moment, to_json
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.survival.dump import dump_to
from secondsite.transfer.backups import PART_BYTES, backup_name

BACKUP_JOB = "server.backup"
# Two that fail are no alarm yet: a restart, a line that was cut for an hour.
LATE_INTERVALS = 3
NOTED_MAX = 500
COPY_UNDER_WAY = dt.timedelta(minutes=10)


class BackupUnknown(SecondsiteError):
    """Not here, or no longer."""

    code = "server-backup.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no part {number} of a backup {backup} here."
    cause = "The backup has been delivered or given up meanwhile."
    action = "Nothing: the server asks for the next one by itself."


class KeptPlace(msgspec.Struct, frozen=True, rename="camel"):
    """Where a backup went, or why it did not. gateway: its name, empty for the server's own place."""

    gateway: str
    store: str = ""
    problem: str = ""


class Backup(msgspec.Struct, frozen=True, rename="camel"):
    """One that was made."""

    id: str
    job: str
    name: str
    made_at: str
    incarnation: int
    size: int
    sha256: str
    kept_at: str | None
    places: tuple[KeptPlace, ...]


class Backups:
    """Of one server's database. Thread-safe."""

    def __init__(
        self, database: Database, master: MasterKey, clock: Clock, *, state_dir: Path, every: dt.timedelta
    ) -> None:
        """every: between two; zero: only on demand."""
        self._database = database
        self._master = master
        self._clock = clock
        self._directory = state_dir
        self.every = every

    def make(self, job: str) -> Backup:
        """Write one and cut it into parts; again for the same job it is the same one."""
        found = self.of_job(job)
        if found is not None:
            return found
        path = self._directory / f"backup-{secrets.token_hex(8)}.ssbk"
        try:
            made = dump_to(self._database, self._master, path)
            with path.open("rb") as file:
                number = 0
                while data := file.read(PART_BYTES):
                    row = {"backup": made.id, "number": number, "data": data}
                    self._database.run(lambda connection, row=row: _put(connection, row))  # type: ignore[misc]
                    number += 1
        finally:
            path.unlink(missing_ok=True)
        row = {
            "id": made.id,
            "job": job,
            "made_at": made.made_at,
            "incarnation": made.incarnation,
            "size": made.size,
            "sha256": made.sha256,
            "places": "[]",
        }
        self._database.run(lambda connection: connection.execute(server_backups.insert().values(row)))
        return self.get(made.id)

    def part(self, backup: str, number: int) -> bytes:
        """One part. Raises BackupUnknown."""
        wanted = (server_backup_parts.c.backup == backup) & (server_backup_parts.c.number == number)
        with self._database.read() as connection:
            data = connection.execute(
                sa.select(server_backup_parts.c.data).where(wanted)
            ).scalar_one_or_none()
        if data is None:
            raise BackupUnknown(number=number, backup=backup)
        return bytes(data)

    def get(self, backup: str) -> Backup:
        """One by its id. Raises BackupUnknown."""
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(server_backups).where(server_backups.c.id == backup)
            ).one_or_none()
        if row is None:
            raise BackupUnknown(number=0, backup=backup)
        return _backup(row)

    def of_job(self, job: str) -> Backup | None:
        """The one a job made."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(server_backups).where(server_backups.c.job == job)).first()
        return None if row is None else _backup(row)

    def newest(self, limit: int, *, before: str | None = None) -> list[Backup]:
        """The newest first; those made before a moment."""
        query = sa.select(server_backups).order_by(server_backups.c.made_at.desc(), server_backups.c.id)
        if before is not None:
            query = query.where(server_backups.c.made_at < before)
        with self._database.read() as connection:
            return [_backup(row) for row in connection.execute(query.limit(limit))]

    def kept(self, backup: str, places: Sequence[KeptPlace]) -> None:
        """Note where it is; the rows of very old ones go."""
        values: dict[str, str] = {"places": to_json(list(places))}
        if any(place.store for place in places):
            values["kept_at"] = self._database.now()

        def work(connection: Connection) -> None:
            connection.execute(server_backups.update().where(server_backups.c.id == backup).values(**values))
            old = sa.select(server_backups.c.id).order_by(server_backups.c.made_at.desc()).offset(NOTED_MAX)
            connection.execute(server_backups.delete().where(server_backups.c.id.in_(old.limit(NOTED_MAX))))

        self._database.run(work)

    def drop_parts(self, backup: str) -> None:
        """It is delivered, or given up."""
        mine = server_backup_parts.c.backup == backup
        self._database.run(lambda connection: connection.execute(server_backup_parts.delete().where(mine)))

    def drop_strays(self) -> None:
        """Parts of a backup whose making was cut before it was noted, and of jobs that ended."""
        live = sa.select(server_backups.c.id).join(jobs, jobs.c.id == server_backups.c.job)
        live = live.where(jobs.c.ended.is_(None))
        young = moment(self._clock.utc() - COPY_UNDER_WAY)  # copies of any server of this database
        making = sa.select(jobs.c.id).where(jobs.c.kind == BACKUP_JOB, jobs.c.ended.is_(None))
        strays = server_backup_parts.delete().where(
            server_backup_parts.c.backup.not_in(live),
            server_backup_parts.c.backup.not_in(
                sa.select(server_copies.c.id).where(server_copies.c.made_at > young)
            ),
            sa.not_(making.exists()),
        )
        self._database.run(lambda connection: connection.execute(strays))

    def newest_kept(self, connection: Connection) -> str | None:
        """When the newest backup was made that is kept somewhere."""
        newest = sa.select(sa.func.max(server_backups.c.made_at)).where(server_backups.c.kept_at.is_not(None))
        found: str | None = connection.execute(newest).scalar_one()
        return found

    def due(self, connection: Connection, *, own_place: bool) -> bool:
        """Whether the next one is to be begun now: the time has come and there is a place for it."""
        if not self.every:
            return False
        if not own_place and connection.execute(sa.select(gateways.c.id).limit(1)).first() is None:
            return False
        edge = moment(self._clock.utc() - self.every)
        begun = sa.select(jobs.c.id).where(jobs.c.kind == BACKUP_JOB)
        return connection.execute(begun.where(jobs.c.created > edge).limit(1)).first() is None

    def age(self) -> dt.timedelta | None:
        """How old the newest kept one is; None: there is none."""
        with self._database.read() as connection:
            newest = self.newest_kept(connection)
        return None if newest is None else self._clock.utc() - from_moment(newest)

    def warning(self, *, own_place: bool) -> str:
        """What is to be said of the backups; empty when all is well."""
        if not self.every:
            return ""
        with self._database.read() as connection:
            newest = self.newest_kept(connection)
            oldest = connection.execute(sa.select(sa.func.min(gateways.c.registered_at))).scalar_one()
        if newest is None and not own_place and oldest is None:
            return ""  # nothing that could be lost, and nowhere to put it
        since = newest or oldest
        late = since is None or self._clock.utc() - from_moment(since) > LATE_INTERVALS * self.every
        if not late:
            return ""
        said = f"the newest is of {from_moment(newest):%Y-%m-%d %H:%M} UTC" if newest else "there is none"
        return f"the server's backups are late: {said}"


def _put(connection: Connection, row: dict[str, object]) -> None:
    connection.execute(server_backup_parts.insert().values(row))


def _backup(row: Row[tuple[object, ...]]) -> Backup:
    return Backup(
        id=row.id,
        job=row.job,
        name=backup_name(row.id, from_moment(row.made_at)),
        made_at=row.made_at,
        incarnation=row.incarnation,
        size=row.size,
        sha256=row.sha256,
        kept_at=row.kept_at,
        places=from_json(row.places, tuple[KeptPlace, ...]),
    )
