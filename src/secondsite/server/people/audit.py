"""The audit log: every change with who, what, from where and how it ended, each row bound to the one before.

A row is written in the transaction of the change it tells of: neither is there without the other. Its digest
is SHA-256 over the digest before it and its own fields, in the form of `Entry.hashed`: anybody can check an
export with that alone. Its seal is an HMAC of the digest with a key derived from the master key, which is not
in the database: who can only write there can change a row, but not make its seal. The head holds the newest
number, digest and seal; a log whose end was cut off is told by it. Who also puts an older head back is
told by a digest kept elsewhere (an export, a printed `audit verify`): give it as the anchor.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from secondsite.base.errors import Outcome
from secondsite.model.auditlog import FIRST_DIGEST, Entry, seal
from secondsite.server.api.errors import HttpError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_people import audit, audit_head
from secondsite.server.people.roles import Actor

VERIFY_ROWS = 1000
SUCCEEDED = "succeeded"
REFUSED = "refused"


class AuditDamaged(HttpError):
    """Somebody changed what must not change."""

    code = "audit.damaged"
    outcome = Outcome.DAMAGED
    status = 409  # the log was changed; the server is well
    happened = "The audit log does not hold at number {number}: {why}."
    cause = "Rows were changed or removed in the database itself, or the database was restored from a backup."
    action = "Compare with the last export (`secondsite audit export`), and find out who had access."


@dataclass(frozen=True)
class Verified:
    """A log that holds."""

    entries: int
    digest: str  # of the newest entry: keep it elsewhere, and give it as the anchor another time


class Audit:
    """Writes and checks the log. `key` is 32 bytes that are not in the database."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._key = key

    def append(
        self,
        connection: Connection,
        actor: Actor,
        operation: str,
        target: str,
        *,
        vault: str = "",
        outcome: str = SUCCEEDED,
        detail: Mapping[str, str | int | bool | None] | None = None,
    ) -> Entry:
        """One more row, in the caller's transaction. Never put a secret in `detail`."""
        # the update takes the row's lock first: two writers cannot both follow the same row
        connection.execute(update(audit_head).values(number=audit_head.c.number + 1))
        head = connection.execute(select(audit_head)).mappings().one_or_none()
        number, before = (head["number"], head["digest"]) if head else (1, FIRST_DIGEST)
        entry = Entry(
            number=number,
            at=self._database.now(),
            actor=actor.name,
            via=actor.via,
            address=actor.address,
            request=actor.request_id,
            operation=operation,
            vault=vault,
            target=target,
            outcome=outcome,
            detail=dict(detail or {}),
        )
        digest = entry.hashed(before)
        sealed = self._seal(number, digest)
        entry = msgspec.structs.replace(entry, digest=digest, seal=sealed)
        row = msgspec.structs.asdict(entry) | {"detail": msgspec.json.encode(entry.detail).decode()}
        connection.execute(insert(audit).values(row))
        newest = {"number": number, "digest": digest, "seal": sealed}
        if head is None:
            connection.execute(insert(audit_head).values(id=1, **newest))
        else:
            connection.execute(update(audit_head).values(newest))
        return entry

    def record(
        self,
        actor: Actor,
        operation: str,
        target: str,
        *,
        vault: str = "",
        outcome: str = REFUSED,
        detail: Mapping[str, str | int | bool | None] | None = None,
    ) -> None:
        """A row by itself: for what was refused, and so changed nothing."""
        self._database.run(
            lambda connection: self.append(
                connection, actor, operation, target, vault=vault, outcome=outcome, detail=detail
            )
        )

    def page(
        self, *, after: int, limit: int, actor: str | None = None, operation: str | None = None
    ) -> list[Entry]:
        """Rows after a number, oldest first."""
        query = select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(limit)
        if actor is not None:
            query = query.where(audit.c.actor == actor)
        if operation is not None:
            query = query.where(audit.c.operation == operation)
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def entries(self) -> Iterator[Entry]:
        """All rows, oldest first, some at a time."""
        after = 0
        while rows := self.page(after=after, limit=VERIFY_ROWS):
            yield from rows
            after = rows[-1].number

    def verify(self, anchor: tuple[int, str] | None = None) -> Verified:
        """Check every row. anchor: a number and its digest, known from elsewhere.

        Raises AuditDamaged at the first row that does not hold.
        """
        with self._database.read() as connection:
            head = connection.execute(select(audit_head)).mappings().one_or_none()
        expected = head["number"] if head else 0
        checked, digest = 0, FIRST_DIGEST
        for entry in self.entries():
            if entry.number > expected:
                break  # written since we looked
            self._check(entry, checked + 1, digest, anchor)
            checked, digest = entry.number, entry.digest
        if checked != expected:
            raise AuditDamaged(
                number=checked + 1, why=f"the newest is number {expected}, and it is not there"
            )
        if anchor is not None and anchor[0] > checked:
            raise AuditDamaged(number=checked, why=f"number {anchor[0]} was there once, and is gone")
        if head is not None and not self._holds(head["number"], head["digest"], head["seal"], digest):
            raise AuditDamaged(number=checked, why="the head of the log was changed")
        return Verified(checked, digest)

    def _check(self, entry: Entry, number: int, before: str, anchor: tuple[int, str] | None) -> None:
        if entry.number != number:
            raise AuditDamaged(number=number, why="the row was removed")
        if not self._holds(number, entry.digest, entry.seal, entry.hashed(before)):
            raise AuditDamaged(number=number, why="the row, or one before it, was changed")
        if anchor is not None and anchor[0] == number and anchor[1] != entry.digest:
            raise AuditDamaged(number=number, why="it is not the row that was there once")

    def _holds(self, number: int, digest: str, sealed: str, computed: str) -> bool:
        return digest == computed and hmac.compare_digest(sealed, self._seal(number, digest))

    def _seal(self, number: int, digest: str) -> str:
        return seal(self._key, number, digest)


def _entry(row: RowMapping) -> Entry:
    return Entry(**(dict(row) | {"detail": _detail(row["detail"])}))


def _detail(text: str) -> dict[str, str | int | bool | None]:
    try:
        return msgspec.json.decode(text, type=dict[str, str | int | bool | None])
    except msgspec.MsgspecError:
        # changed by hand: still shown, and told by verify
        return {"unreadable": text}
