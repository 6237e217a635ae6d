"""Copies of the state for standby servers: made when something changed, while one follows, in every store.

No job: a copy is of the moment, the next one replaces it, and a job a minute would fill the list of jobs. A
server counts its own changes only; several servers of one database each have what they changed copied.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.tables_survival import server_backups, server_copies
from secondsite.server.database.values import from_json, from_moment, to_json
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.survival.backups import KeptPlace
from secondsite.server.survival.dump import dump_to
from secondsite.server.survival.places import Places
from secondsite.server.survival.standbys import Standbys
from secondsite.transfer.backups import backup_name

LOOK_SECONDS = 1.0
NOTED = 50  # rows here
# A large state takes a while to write out: at most a twentieth of the time goes into that.
SHARE = 20.0


class CopyNotKept(SecondsiteError):
    """Made, and nobody took it."""

    code = "server-copy.not-kept"
    outcome = Outcome.UNAVAILABLE
    happened = "The copy {name} for standby servers is kept nowhere: {why}."
    cause = "No gateway with a store is connected, or their stores are full."
    action = "See `secondsite gateway list`; the next copy is tried in a minute."


class Copy(msgspec.Struct, frozen=True, rename="camel"):
    """One that was made."""

    id: str
    name: str
    made_at: str
    size: int
    sha256: str
    final: bool
    kept_at: str | None
    places: tuple[KeptPlace, ...]


@dataclass
class Copies:
    """Of one server. `look` in a thread of its own, again and again; `make` also from elsewhere."""

    places: Places
    standbys: Standbys
    master: MasterKey
    directory: Path

    def __post_init__(self) -> None:
        self._database = self.places.database
        self._clock = self.places.clock
        self._every = self.places.settings.copy_seconds
        self._making = threading.Lock()
        self._covered = 0  # of the count of changes: all up to it is in a copy that is kept
        self._newest = ""  # that copy's name
        self._not_before = self._clock.monotonic()

    def look(self) -> bool:
        """Make one where something changed and a standby follows; True when it did. Raises CopyNotKept."""
        if not self._every or self.places.life.superseded or not self.standbys.any_follows():
            return False
        if self._database.changes.count == self._covered or self._clock.monotonic() < self._not_before:
            return False
        self.make()
        return True

    def make(self, *, final: bool = False) -> Copy:
        """One now, in every store that can be reached. Raises CopyNotKept, and what the database raises."""
        with self._making:
            begun = self._clock.monotonic()
            try:
                return self._make(final=final)
            finally:
                took = self._clock.monotonic() - begun
                self._not_before = begun + max(self._every, SHARE * took)

    def current(self, name: str) -> bool:
        """Whether nothing has changed here since the copy of this name was made."""
        return bool(name) and name == self._newest and self._database.changes.count == self._covered

    def newest(self) -> Copy | None:
        """The newest one of any server of this database."""
        query = sa.select(server_copies).order_by(server_copies.c.made_at.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _copy(row)

    def made_at(self, name: str) -> str | None:
        """When a copy or a backup of this name was made; None: it is not known here."""
        copies = sa.select(server_copies.c.made_at).where(server_copies.c.name == name)
        backups = sa.select(server_backups.c.made_at).where(server_backups.c.id == name.rpartition("-")[2])
        with self._database.read() as connection:
            found = connection.execute(copies).scalar_one_or_none()
            if found is None:
                found = connection.execute(backups).scalar_one_or_none()
        return str(found) if found else None

    def _make(self, *, final: bool) -> Copy:
        changes = self._database.changes.count  # before the picture is taken: what comes later is not in it
        path = self.directory / f"copy-{secrets.token_hex(8)}.ssbk"
        try:
            made = dump_to(self._database, self.master, path)
            name = backup_name(made.id, from_moment(made.made_at))
            row = {
                "id": made.id,
                "name": name,
                "made_at": made.made_at,
                "size": made.size,
                "sha256": made.sha256,
                "final": int(final),
                "places": "[]",
            }
            self._database.run(lambda connection: _note(connection, row))
            places = self.places.keep(made, name, path)
        finally:
            path.unlink(missing_ok=True)
        if not any(place.store for place in places):
            why = "; ".join(f"{one.gateway}: {one.problem}" for one in places) or "there is no place"
            raise CopyNotKept(name=name, why=why)
        values = {"places": to_json(places), "kept_at": self._database.now()}
        kept = server_copies.update().where(server_copies.c.id == made.id).values(values)
        self._database.run(lambda connection: connection.execute(kept))
        self._covered, self._newest = changes, name
        found = self.newest()
        assert found is not None
        return found


def _note(connection: Connection, row: dict[str, object]) -> None:
    connection.execute(server_copies.insert().values(row))
    old = sa.select(server_copies.c.id).order_by(server_copies.c.made_at.desc()).offset(NOTED).limit(NOTED)
    connection.execute(server_copies.delete().where(server_copies.c.id.in_(old)))


def _copy(row: Row[tuple[object, ...]]) -> Copy:
    return Copy(
        id=row.id,
        name=row.name,
        made_at=row.made_at,
        size=row.size,
        sha256=row.sha256,
        final=bool(row.final),
        kept_at=row.kept_at,
        places=from_json(row.places, tuple[KeptPlace, ...]),
    )
