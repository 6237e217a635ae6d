"""Brings a copy of the state into every store that can be reached: gateways fetch it, the own place too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import sqlalchemy as sa

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.journal.store import ObjectExists
from secondsite.journal.stores import open_store
from secondsite.server.calls.service import Calls
from secondsite.server.config import BackupSettings
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_survival import server_backup_parts
from secondsite.server.identity.gateways import Gateways
from secondsite.server.survival.backups import KeptPlace
from secondsite.server.survival.dump import Dumped
from secondsite.server.survival.life import Life
from secondsite.transfer.backups import PART_BYTES, KeepBackup, KeptBackup, copies_prefix
from secondsite.transfer.calls import Answer, Call

KEPT = 3  # in each store: the newest may be on its way out while another reads it
# What a gateway gets to fetch a copy; one that is away must not hold up the others for long.
KEEP_SECONDS = 60.0
ASK_SECONDS = 0.2
JOB = "server.copy"  # what calls to gateways need to name; a later life's supersede an earlier one's


@dataclass
class Places:
    """Of one server."""

    database: Database
    gateways: Gateways
    calls: Calls
    life: Life
    settings: BackupSettings
    clock: Clock
    stop: threading.Event

    def keep(self, made: Dumped, name: str, path: Path) -> list[KeptPlace]:
        """Where it is from now on, and why it is not elsewhere. Raises what the database raises."""
        found = [self._own(name, path)] if self.settings.url is not None else []
        if not self.settings.gateways:
            return found
        self._put_parts(made.id, path)
        try:
            found += self._ask(made, name)
        finally:
            mine = server_backup_parts.c.backup == made.id
            self.database.run(lambda connection: connection.execute(server_backup_parts.delete().where(mine)))
        return found

    def _put_parts(self, backup: str, path: Path) -> None:
        with path.open("rb") as file:
            number = 0
            while data := file.read(PART_BYTES):
                row = {"backup": backup, "number": number, "data": data}
                insert = server_backup_parts.insert().values(row)
                self.database.run(lambda connection, insert=insert: connection.execute(insert))  # type: ignore[misc]
                number += 1

    def _ask(self, made: Dumped, name: str) -> list[KeptPlace]:
        waiting = {
            gateway: (called, self._call(made, name, gateway)) for gateway, called in self._connected()
        }
        found: list[KeptPlace] = []
        deadline = self.clock.monotonic() + KEEP_SECONDS
        try:
            for gateway, (_, call) in waiting.items():
                self.calls.put(gateway, call, seconds_max=KEEP_SECONDS)
            while waiting and self.clock.monotonic() < deadline and not self.stop.is_set():
                for gateway, (called, call) in list(waiting.items()):
                    answer = self.calls.result(call.id)
                    if answer is not None:
                        found.append(_said(called, answer))
                        self.calls.forget([call.id])
                        del waiting[gateway]
                if waiting:
                    self.clock.wait(self.stop, ASK_SECONDS)
        except SecondsiteError as error:
            found.append(KeptPlace("", problem=str(error)))
        finally:
            self.calls.forget([call.id for _, call in waiting.values()])
        return found + [KeptPlace(called, problem="it did not answer") for called, _ in waiting.values()]

    def _call(self, made: Dumped, name: str, gateway: str) -> Call:
        server = self.life.state.server
        asked = KeepBackup(made.id, server, made.size, made.sha256, keep=KEPT, copy=True)
        return Call(
            id=f"{JOB}:{made.id}:{gateway}",
            method="PUT",
            path=f"/v1/server-backups/{name}",
            body=msgspec.json.encode(asked).decode(),
            job=JOB,
            epoch=self.life.number,
        )

    def _connected(self) -> Iterator[tuple[str, str]]:
        now, after = self.clock.utc(), ""
        while page := self.gateways.page(after=after):
            yield from ((one.id, one.name) for one in page if one.contact and one.contact.connected(now))
            after = page[-1].name

    def _own(self, name: str, path: Path) -> KeptPlace:
        assert self.settings.url is not None
        prefix = copies_prefix(self.life.state.server)
        try:
            store = open_store(self.settings.url, credentials=self.settings.credentials)
            try:
                with contextlib.suppress(ObjectExists):
                    store.put(prefix + name, path.read_bytes())
                names = list(store.list(prefix))
                for old in names[: max(0, len(names) - KEPT)]:
                    store.delete(old)
            finally:
                store.close()
            return KeptPlace("", store.url)
        except SecondsiteError as error:
            return KeptPlace("", problem=str(error))


def parts_of(database: Database, backup: str) -> int:
    """How many parts of a backup lie in the database."""
    mine = server_backup_parts.c.backup == backup
    with database.read() as connection:
        query = sa.select(sa.func.count()).select_from(server_backup_parts).where(mine)
        return int(connection.execute(query).scalar_one())


def _said(gateway: str, answer: Answer) -> KeptPlace:
    try:
        if answer.ok:
            return KeptPlace(gateway, msgspec.json.decode(answer.body, type=KeptBackup).store)
        problem = msgspec.json.decode(answer.body, type=dict[str, object])
        return KeptPlace(gateway, problem=str(problem.get("happened", answer.status)))
    except msgspec.MsgspecError as error:
        return KeptPlace(gateway, problem=f"its answer does not parse: {error}")
