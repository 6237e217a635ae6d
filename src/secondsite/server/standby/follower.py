"""Follows the active server: the newest state in the store of this site, fetched, opened, and kept ready.

A look lists names; what is fetched is what is newer than what is held, so that nothing is read while nothing
changed. A copy counts only once all of it was opened with the master key; until then the one before stays.
"""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import created_file
from secondsite.journal.store import ObjectStore
from secondsite.journal.stores import open_store
from secondsite.server.config import ServerConfig, StandbySettings
from secondsite.server.database.engine import open_database
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.envelopes import MasterKey, open_master_key
from secondsite.server.identity.service import MASTER_KEY_NAME
from secondsite.server.standby.errors import StandbyNotSet, TakeoverBusy
from secondsite.server.standby.files import StandbyFiles
from secondsite.server.standby.greeting import greet
from secondsite.server.standby.replica import replica_of
from secondsite.server.standby.summary import StandbyAuthority, Summary, examine
from secondsite.server.survival.errors import BackupDamaged
from secondsite.server.survival.instore import StoredBackup, copy_object, stored_backups
from secondsite.transfer.backups import BACKUP_BYTES_MAX
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.serverclaims import ServerClaim, read_claims
from secondsite.transfer.standby import Hello, ServerRole

log = logging.getLogger(__name__)

COPY_FETCHED = mark("standby.copy-fetched")
COPY_NOTED = mark("standby.copy-noted")


class Status(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What was seen last. Times as columns of the database have them; empty: never."""

    looked_at: str = ""
    problem: str = ""  # of the store, or of what lies in it
    active: str = ""  # its address
    active_role: str = ""  # a `ServerRole`, as it said last
    active_incarnation: int = 0
    active_at: str = ""  # when it answered last
    active_problem: str = ""  # why it did not, the last time
    current_at: str = ""  # when what is held was all there was
    claim: int = 0  # number of the newest claim
    claim_incarnation: int = 0
    claim_url: str = ""
    claim_at: str = ""
    replica_at: str = ""  # of a database that PostgreSQL replicates: up to when it has everything
    replica_problem: str = ""


class Follower:
    """Of one standby. `look` is called again and again; `load` gives what is held."""

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        """Raises StandbyNotSet, and what opening the master key raises."""
        if config.standby is None:
            raise StandbyNotSet(why="it has no section [standby]")
        self.config = config
        self.settings: StandbySettings = config.standby
        self.files = StandbyFiles(config.state_dir)
        self.clock = clock
        self.master: MasterKey = open_master_key(config.state_dir / MASTER_KEY_NAME, create=False)
        self._heads: dict[str, StoredBackup] = {}
        self._bad: dict[str, str] = {}  # objects that did not open, and why: not fetched again

    def held(self) -> Summary | None:
        """What was verified last, and whose file is there."""
        found = self.files.read("copy.json", Summary)
        if found is None or not (self.files.directory / found.file).exists():
            return None
        return found

    def status(self) -> Status:
        """What was seen last."""
        return self.files.read("status.json", Status) or Status()

    def authority(self) -> StandbyAuthority | None:
        """Of the state that is held. Raises EnvelopeUnopened."""
        held = self.held()
        return StandbyAuthority(held, self.master) if held is not None else None

    def look(self) -> Status:
        """Take what is newer, ask the active server; what was seen. Never raises for what may pass."""
        before = self.status()
        seen = msgspec.structs.replace(
            before, looked_at=self._now(), problem="", active=self.settings.active or before.active
        )
        try:
            with self.files.locked():
                seen = self._look_into_store(seen)
        except TakeoverBusy:
            return before
        except SecondsiteError as error:
            seen = msgspec.structs.replace(seen, problem=" ".join(error.sentences()))
        seen = self._look_at_replica(self._ask_active(seen))
        self.files.write("status.json", seen)
        return seen

    def lag_seconds(self, status: Status, held: Summary | None) -> float | None:
        """How old the state is that a takeover would go on with; None: there is none."""
        if held is None:
            return None
        known = max(status.current_at, status.replica_at, held.made_at)
        return max(0.0, (self.clock.utc() - from_moment(known)).total_seconds())

    @property
    def late_seconds(self) -> float:
        """From when on it is late."""
        return dt.timedelta(minutes=self.settings.late_minutes).total_seconds()

    def open_store(self) -> ObjectStore:
        """The store of this site. Raises StandbyNotSet, and what opening it raises."""
        if self.settings.store is None:
            raise StandbyNotSet(why="[standby] names no store")
        return open_store(self.settings.store, create=False, credentials=self.settings.credentials)

    def _look_into_store(self, seen: Status) -> Status:
        store = self.open_store()
        try:
            if not self.files.begun():  # the state a takeover goes on with stays
                self._take_newest(store)
            held = self.held()
            claims = read_claims(store, held.server) if held is not None else []
        finally:
            store.close()
        if held is not None:
            seen = msgspec.structs.replace(seen, current_at=max(seen.current_at, held.made_at))
        return with_claim(seen, claims[-1] if claims else None)

    def _take_newest(self, store: ObjectStore) -> None:
        held, why = self.held(), ""
        for found in sorted(
            self._listed(store), key=lambda one: (one.incarnation, one.made_at), reverse=True
        ):
            at = moment(dt.datetime.fromisoformat(found.made_at))
            if held is not None and (found.incarnation, at) <= held.order:
                break
            if held is not None and found.server != held.server:
                continue  # of another server with the same master key: not the one that is followed
            try:
                self._take(store, found)
            except BackupDamaged as error:
                self._bad[found.key] = why = str(error)
                continue
            break
        self._clean_up()
        if why:
            raise BackupDamaged(what=f"in {store.url}", why=why)

    def _listed(self, store: ObjectStore) -> list[StoredBackup]:
        """What this master key opens, by its header."""
        heads = {one.key: one for one in stored_backups(store, known=self._heads)}
        self._heads = heads
        self._bad = {key: why for key, why in self._bad.items() if key in heads}
        mine = self.master.id.hex()
        return [
            one
            for one in heads.values()
            if not one.problem and one.master_key == mine and one.key not in self._bad
        ]

    def _take(self, store: ObjectStore, found: StoredBackup) -> None:
        if found.size > BACKUP_BYTES_MAX:
            raise BackupDamaged(what=found.name, why=f"it has {found.size} bytes")
        path = self.files.directory / f"{found.name}.ssbk"
        path.unlink(missing_ok=True)  # of a try that was cut
        with created_file(path) as file:
            copy_object(store, found.key, found.size, file)
        crash_point(COPY_FETCHED)
        summary = examine(path, found.name, self.master, self.clock)
        self.files.write("copy.json", summary)
        crash_point(COPY_NOTED)
        log.info("a copy was verified", extra={"fields": {"name": found.name, "rows": summary.rows}})

    def _clean_up(self) -> None:
        """Files of copies that are no longer the one that is held."""
        held = self.held()
        for path in self.files.copies():
            if held is None or path.name != held.file:
                path.unlink(missing_ok=True)

    def _ask_active(self, seen: Status) -> Status:
        held = self.held()
        # where the state is of a life that was claimed in this store, its claim says where it is
        claimed = (
            seen.claim_url if seen.claim and seen.claim_incarnation == getattr(held, "incarnation", 0) else ""
        )
        active = claimed if claimed not in {"", self.config.reached_at()} else self.settings.active
        if active is None or held is None:
            return seen
        seen, before = msgspec.structs.replace(seen, active=active), self._now()
        try:
            authority = StandbyAuthority(held, self.master)
            answer = greet(active, self.hello(held), self.master, authority.bundle)
        except SecondsiteError as error:
            return msgspec.structs.replace(seen, active_problem=str(error))
        seen = msgspec.structs.replace(
            seen,
            active_role=answer.role.value,
            active_incarnation=answer.incarnation,
            active_at=before,
            active_problem="",
        )
        if answer.current and answer.incarnation == held.incarnation:
            seen = msgspec.structs.replace(seen, current_at=before)
        return seen

    def _look_at_replica(self, seen: Status) -> Status:
        """Of a database that is not SQLite: whether it is a replica, and up to when it has everything."""
        if self.config.database_url().startswith("sqlite"):
            return seen
        database, now = open_database(self.config.database_url(), self.clock), self._now()
        try:
            found = replica_of(database)
        except SecondsiteError as error:
            return msgspec.structs.replace(seen, replica_problem=str(error))
        finally:
            database.close()
        if found is None:
            return msgspec.structs.replace(seen, replica_problem="")  # promoted; up to when it had all stays
        # connected, and all that came is in: nothing happened at the primary since its last change
        at = now if found.caught_up else moment(found.replayed_at) if found.replayed_at else ""
        problem = "" if found.caught_up else "the replica is behind, or not connected to its primary"
        return msgspec.structs.replace(seen, replica_at=at, replica_problem=problem)

    def hello(self, held: Summary) -> Hello:
        """What this standby says of itself."""
        return Hello(
            id=self.files.id(),
            server=held.server,
            name=self.config.name,
            url=self.config.reached_at(),
            role=ServerRole.STANDBY,
            sent_at=time_text(self.clock.utc()),
            copy_name=held.name,
            late_seconds=int(self.late_seconds),
        )

    def _now(self) -> str:
        return moment(self.clock.utc())


def with_claim(seen: Status, claim: ServerClaim | None) -> Status:
    """With the newest claim of the store."""
    if claim is None:
        return msgspec.structs.replace(seen, claim=0, claim_incarnation=0, claim_url="", claim_at="")
    return msgspec.structs.replace(
        seen,
        claim=claim.number,
        claim_incarnation=claim.incarnation,
        claim_url=claim.url,
        claim_at=claim.at,
    )


def master_key_path(config: ServerConfig) -> Path:
    """Where the master key lies that a standby needs as well."""
    return config.state_dir / MASTER_KEY_NAME
