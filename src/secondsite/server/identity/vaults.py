"""Vaults: the places where gateways, machines and plans are known together, and where roles are given."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, Select, delete, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways, vaults
from secondsite.server.database.values import fresh_id, from_moment, moment
from secondsite.server.identity.errors import VaultInUse, VaultNameTaken, VaultUnknown

ACTIVE = "Active"
NAME_CHARACTERS_MAX = 100
DESCRIPTION_CHARACTERS_MAX = 500

# What else is in a vault: gives a phrase like "3 protected items", or an empty one.
VaultUse = Callable[[Connection, str], str]
# Called with the vault's id and what was changed, in the transaction of the change: for the audit log.
Note = Callable[[Connection, str, str], None]


def no_note(_connection: Connection, _vault: str, _target: str) -> None:
    """Nothing is noted."""


@dataclass(frozen=True)
class Vault:
    """One vault. `gateways` counts those registered in it, in whatever state."""

    id: str
    friendly_name: str
    name_key: str  # sorts, and tells names apart
    description: str
    state: str
    created_at: datetime
    gateways: int


def friendly_name(text: str, what: str = "the friendly name") -> str:
    """Parse a name for people: any script, one line, at most 100 characters. Raises InvalidInput."""
    name = unicodedata.normalize("NFC", text).strip()
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise InvalidInput(what=what, why=f"it has no or more than {NAME_CHARACTERS_MAX} characters")
    # control characters, unassigned ones and the marks that turn the direction of text: names that lie
    if any(unicodedata.category(character) in {"Cc", "Cf", "Cn", "Co", "Cs"} for character in name):
        raise InvalidInput(what=what, why="it has characters that cannot be seen")
    return name


def vault_name(text: str) -> str:
    """As `friendly_name`, for a vault: it stands in addresses, where `*` is every vault."""
    name = friendly_name(text)
    if "/" in name or name == "*":
        raise InvalidInput(what="the friendly name", why="a vault's name is not * and has no / in it")
    return name


class Vaults:
    """All vaults of a server."""

    def __init__(self, database: Database, clock: Clock, uses: Sequence[VaultUse] = ()) -> None:
        """uses: what keeps a vault from being deleted, besides gateways."""
        self._database = database
        self._clock = clock
        self._uses = list(uses)

    def watch(self, use: VaultUse) -> None:
        """Another area's say in whether a vault may be deleted."""
        self._uses.append(use)

    def create(self, name: str, *, description: str = "", note: Note = no_note) -> Vault:
        """A new vault, Active at once. Raises InvalidInput or VaultNameTaken."""
        name = vault_name(name)
        description = _description(description)
        vault = fresh_id(self._clock)

        def work(connection: Connection) -> Vault:
            _check_free(connection, name, vault)
            connection.execute(
                insert(vaults).values(
                    id=vault,
                    friendly_name=name,
                    name_key=_key(name),
                    description=description,
                    state=ACTIVE,
                    created_at=moment(self._clock.utc()),
                )
            )
            note(connection, vault, name)
            return _get(connection, vault)

        return self._database.run(work)

    def all(self) -> list[Vault]:
        """All, by name."""
        with self._database.read() as connection:
            found = [_vault(row) for row in connection.execute(_query())]
        # sorted here: databases order text by rules of their own
        return sorted(found, key=lambda vault: vault.name_key)

    def get(self, vault: str) -> Vault:
        """By id or name. Raises VaultUnknown."""
        with self._database.read() as connection:
            return _get(connection, vault)

    def id_of(self, vault: str) -> str:
        """A vault's id, by id or name, in one query: every request asks it. Raises VaultUnknown."""
        named = select(vaults.c.id).where(or_(vaults.c.id == vault, vaults.c.name_key == _key(vault)))
        found = [] if "\0" in vault else self._database.rows(named)
        ids = [row.id for row in found]
        if not ids:
            raise VaultUnknown(vault=vault[:NAME_CHARACTERS_MAX])
        return vault if vault in ids else ids[0]

    def change(
        self,
        vault: str,
        *,
        name: str | None = None,
        description: str | None = None,
        note: Note = no_note,
    ) -> Vault:
        """Rename or describe. Raises VaultUnknown, VaultNameTaken or InvalidInput."""
        values: dict[str, str] = {}
        if name is not None:
            name = vault_name(name)
            values |= {"friendly_name": name, "name_key": _key(name)}
        if description is not None:
            values["description"] = _description(description)

        def work(connection: Connection) -> Vault:
            found = _get(connection, vault)
            if name is not None:
                _check_free(connection, name, found.id)
            if values:
                connection.execute(update(vaults).where(vaults.c.id == found.id).values(**values))
            note(connection, found.id, found.friendly_name)
            return _get(connection, found.id)

        return self._database.run(work)

    def delete(
        self,
        vault: str,
        *,
        also: Callable[[Connection, str], None] | None = None,
        note: Note = no_note,
    ) -> Vault:
        """Delete an empty one; `also` empties it of gateways first, in the same transaction.

        Raises VaultUnknown or VaultInUse.
        """

        def work(connection: Connection) -> Vault:
            found = _get(connection, vault)
            uses = [use(connection, found.id) for use in self._uses]
            if also is not None:
                also(connection, found.id)
            elif found.gateways:
                uses.insert(0, "1 gateway" if found.gateways == 1 else f"{found.gateways} gateways")
            if any(uses):
                raise VaultInUse(name=found.friendly_name, uses=" and ".join(filter(None, uses)))
            connection.execute(delete(vaults).where(vaults.c.id == found.id))
            note(connection, found.id, found.friendly_name)
            return found

        return self._database.run(work)


def find_vault(connection: Connection, vault: str) -> Vault:
    """By id or name. Raises VaultUnknown."""
    return _get(connection, vault)


def _query() -> Select[tuple[object, ...]]:
    counted = (
        select(func.count()).select_from(gateways).where(gateways.c.vault_id == vaults.c.id).scalar_subquery()
    )
    columns = (*vaults.c, counted.label("gateways"))
    return select(*columns)


def _get(connection: Connection, vault: str) -> Vault:
    # an id is a UUID and never a name somebody chose: `create` gives names that are UUIDs no id of theirs,
    # and the id is looked at first
    for condition in (vaults.c.id == vault, vaults.c.name_key == _key(vault)):
        if "\0" in vault:
            break  # PostgreSQL takes no NUL in a text, and no vault has one
        row = connection.execute(_query().where(condition)).one_or_none()
        if row is not None:
            return _vault(row)
    raise VaultUnknown(vault=vault[:NAME_CHARACTERS_MAX])


def _vault(row: Row[tuple[object, ...]]) -> Vault:
    return Vault(
        id=row.id,
        friendly_name=row.friendly_name,
        name_key=row.name_key,
        description=row.description,
        state=row.state,
        created_at=from_moment(row.created_at),
        gateways=row.gateways,
    )


def _check_free(connection: Connection, name: str, own: str) -> None:
    query = select(vaults.c.friendly_name).where(vaults.c.name_key == _key(name), vaults.c.id != own)
    taken = connection.execute(query).scalar_one_or_none()
    if taken is not None:
        raise VaultNameTaken(name=taken)


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _description(text: str) -> str:
    text = text.strip()
    if len(text) > DESCRIPTION_CHARACTERS_MAX or "\0" in text:
        raise InvalidInput(what="the description", why=f"it is over {DESCRIPTION_CHARACTERS_MAX} characters")
    return text
