"""Policies in the database: each change is a new revision, told to the items that use it in the same breath.

With each policy comes its failback policy, a row of its own that points at it: what a machine replicates by
on its way back. Nobody edits it; it follows its policy's name, frequency and compression, and goes with it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_policies import policies, policy_revisions
from secondsite.server.database.values import fresh_id, from_moment, moment
from secondsite.server.identity.vaults import Note, find_vault, friendly_name, no_note
from secondsite.server.policies import words
from secondsite.server.policies.errors import (
    FailbackPolicyFixed,
    PolicyChangedMeanwhile,
    PolicyInUse,
    PolicyNameTaken,
    PolicyUnknown,
)
from secondsite.server.policies.presets import failback_of

NAME_CHARACTERS_MAX = 80  # a vault's names have 100; the failback policy's is longer
DESCRIPTION_CHARACTERS_MAX = 500
FAILBACK_SUFFIX = " (failback)"
# What revisions said is for people who look back; a policy changed more often than this has no history.
REVISIONS_KEPT = 100


class Items(Protocol):
    """The protected items, as policies see them."""

    def counts(self, connection: Connection, policy_ids: list[str]) -> Mapping[str, int]:
        """How many items use each policy; those that no item uses may be missing."""

    def refresh(self, connection: Connection, policy_id: str) -> int:
        """A policy says something else now: raise the revision of its items. Returns how many they are."""


class NoItems:
    """A server that protects nothing."""

    def counts(self, _connection: Connection, _policy_ids: list[str]) -> Mapping[str, int]:
        """None."""
        return {}

    def refresh(self, _connection: Connection, _policy_id: str) -> int:
        """None."""
        return 0


@dataclass(frozen=True)
class Policy:
    """One policy. failback: the id of its failback policy; failback_of: set in those. items: that use it."""

    id: str
    vault_id: str
    friendly_name: str
    name_key: str
    description: str
    revision: int
    settings: ReplicationPolicy
    failback: str | None
    failback_of: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str
    items: int = 0


@dataclass(frozen=True)
class Revision:
    """What a policy said from a moment on."""

    revision: int
    settings: ReplicationPolicy
    at: datetime
    by: str


Change = Callable[[ReplicationPolicy], ReplicationPolicy]


class Policies:
    """All policies of a server. Thread-safe."""

    def __init__(self, database: Database, clock: Clock, items: Items | None = None) -> None:
        """items: who uses them; may be given later, before anything does."""
        self._database = database
        self._clock = clock
        self.items: Items = items or NoItems()

    def create(
        self,
        vault: str,
        name: str,
        settings: ReplicationPolicy,
        *,
        by: str,
        description: str = "",
        note: Note = no_note,
    ) -> Policy:
        """A new one, and its failback policy.

        Raises VaultUnknown, InvalidInput, PolicyRefused or PolicyNameTaken.
        """
        name, description = _name(name), _description(description)
        words.check(settings)

        def work(connection: Connection) -> Policy:
            vault_id = find_vault(connection, vault).id
            own = self._insert(connection, vault_id, (name, description), settings, by)
            back = f"The way back of {name}; made with it, follows it."
            self._insert(
                connection, vault_id, (name + FAILBACK_SUFFIX, back), failback_of(settings), by, of=own
            )
            note(connection, vault_id, name)
            return self._get(connection, vault_id, own)

        return self._database.run(work)

    def copy(self, vault: str, policy: str, name: str, *, by: str, note: Note = no_note) -> Policy:
        """A new one with the settings of another; of a failback policy too, whose copy may be changed."""
        before = self.find(vault, policy)
        return self.create(vault, name, before.settings, by=by, description=before.description, note=note)

    def change(
        self,
        vault: str,
        policy: str,
        *,
        by: str,
        name: str | None = None,
        description: str | None = None,
        settings: Change | None = None,
        expected: int | None = None,
        note: Note = no_note,
    ) -> Policy:
        """Rename, describe, or have other settings: a new revision, where they differ, told to its items.

        settings: of the present ones makes the new ones. expected: the revision they must be at.
        Raises VaultUnknown, PolicyUnknown, FailbackPolicyFixed, PolicyChangedMeanwhile, InvalidInput,
        PolicyRefused or PolicyNameTaken.
        """
        name = None if name is None else _name(name)
        description = None if description is None else _description(description)

        def work(connection: Connection) -> Policy:
            vault_id = find_vault(connection, vault).id
            found = self._get(connection, vault_id, policy)
            self._require_editable(connection, found)
            if expected is not None and expected != found.revision:
                raise PolicyChangedMeanwhile(
                    name=found.friendly_name, revision=found.revision, expected=expected
                )
            if name is not None:
                self._rename(connection, found, name, by)
            if description is not None:
                self._set(connection, found.id, by, description=description)
            if settings is not None:
                changed = settings(found.settings)
                words.check(changed)
                assert found.failback is not None
                self._revise(connection, found, changed, by)
                back = self._get(connection, vault_id, found.failback)
                self._revise(connection, back, failback_of(changed), by)
            note(connection, vault_id, name or found.friendly_name)
            return self._get(connection, vault_id, found.id)

        return self._database.run(work)

    def delete(self, vault: str, policy: str, *, note: Note = no_note) -> None:
        """Delete one that no item uses, with its failback policy.

        Raises VaultUnknown, PolicyUnknown, FailbackPolicyFixed or PolicyInUse.
        """

        def work(connection: Connection) -> None:
            vault_id = find_vault(connection, vault).id
            found = self._get(connection, vault_id, policy)
            self._require_editable(connection, found)
            assert found.failback is not None
            back = self.items.counts(connection, [found.failback]).get(found.failback, 0)
            if found.items or back:
                uses = [_count(found.items, "use it")] if found.items else []
                uses += [_count(back, "use its failback policy")] if back else []
                raise PolicyInUse(name=found.friendly_name, uses=" and ".join(uses))
            connection.execute(delete(policies).where(policies.c.id == found.failback))
            connection.execute(delete(policies).where(policies.c.id == found.id))
            note(connection, vault_id, found.friendly_name)

        self._database.run(work)

    def find(self, vault: str, policy: str) -> Policy:
        """One of a vault, by id or name. Raises VaultUnknown or PolicyUnknown."""
        with self._database.read() as connection:
            return self._get(connection, find_vault(connection, vault).id, policy)

    def of_vault(self, vault: str) -> list[Policy]:
        """A vault's, by name, failback policies included. Raises VaultUnknown."""
        with self._database.read() as connection:
            vault_id = find_vault(connection, vault).id
            rows = connection.execute(select(policies).where(policies.c.vault_id == vault_id)).all()
            found = self._policies(connection, rows)
        # sorted here: databases order text by rules of their own
        return sorted(found, key=lambda policy: policy.name_key)

    def revisions(self, vault: str, policy: str) -> list[Revision]:
        """What it said, the newest first. Raises VaultUnknown or PolicyUnknown."""
        with self._database.read() as connection:
            found = self._get(connection, find_vault(connection, vault).id, policy)
            own = policy_revisions.c.policy_id == found.id
            query = select(policy_revisions).where(own).order_by(policy_revisions.c.revision.desc())
            return [
                Revision(row.revision, _settings(row.settings), from_moment(row.made_at), row.made_by)
                for row in connection.execute(query)
            ]

    def get(self, connection: Connection, policy_id: str) -> tuple[ReplicationPolicy, int]:
        """As the module's `get`."""
        return get(connection, policy_id)

    # -- inside a transaction ---------------------------------------------------------------------

    def _insert(
        self,
        connection: Connection,
        vault_id: str,
        named: tuple[str, str],
        settings: ReplicationPolicy,
        by: str,
        *,
        of: str | None = None,
    ) -> str:
        name, description = named
        policy_id, now = fresh_id(self._clock), moment(self._clock.utc())
        _check_free(connection, vault_id, name, ())
        values = {
            "id": policy_id,
            "vault_id": vault_id,
            "friendly_name": name,
            "name_key": _key(name),
            "description": description,
            "revision": 1,
            "settings": _text(settings),
            "failback_of": of,
            "created_at": now,
            "created_by": by,
            "changed_at": now,
            "changed_by": by,
        }
        connection.execute(insert(policies).values(values))
        self._remember(connection, policy_id, 1, settings, by)
        return policy_id

    def _revise(self, connection: Connection, found: Policy, settings: ReplicationPolicy, by: str) -> None:
        if settings == found.settings:
            return
        revision = found.revision + 1
        self._set(connection, found.id, by, settings=_text(settings), revision=revision)
        self._remember(connection, found.id, revision, settings, by)
        old = policy_revisions.c.revision <= revision - REVISIONS_KEPT
        connection.execute(delete(policy_revisions).where(policy_revisions.c.policy_id == found.id, old))
        self.items.refresh(connection, found.id)

    def _remember(
        self, connection: Connection, policy_id: str, revision: int, settings: ReplicationPolicy, by: str
    ) -> None:
        values = {
            "policy_id": policy_id,
            "revision": revision,
            "settings": _text(settings),
            "made_at": moment(self._clock.utc()),
            "made_by": by,
        }
        connection.execute(insert(policy_revisions).values(values))

    def _set(self, connection: Connection, policy_id: str, by: str, **values: str | int) -> None:
        written = {**values, "changed_at": moment(self._clock.utc()), "changed_by": by}
        connection.execute(update(policies).where(policies.c.id == policy_id).values(written))

    def _rename(self, connection: Connection, found: Policy, name: str, by: str) -> None:
        assert found.failback is not None
        own = (found.id, found.failback)
        for policy_id, text in zip(own, (name, name + FAILBACK_SUFFIX), strict=True):
            _check_free(connection, found.vault_id, text, own)
            self._set(connection, policy_id, by, friendly_name=text, name_key=_key(text))

    def _require_editable(self, connection: Connection, found: Policy) -> None:
        if found.failback_of is not None:
            of = self._get(connection, found.vault_id, found.failback_of)
            raise FailbackPolicyFixed(name=found.friendly_name, of=of.friendly_name)

    def _get(self, connection: Connection, vault_id: str, policy: str) -> Policy:
        # an id is a UUID and looked at first, as with vaults
        for condition in (policies.c.id == policy, policies.c.name_key == _key(policy)):
            query = select(policies).where(policies.c.vault_id == vault_id, condition)
            rows = connection.execute(query).all()
            if rows:
                return self._policies(connection, rows)[0]
        raise PolicyUnknown(policy=policy[:NAME_CHARACTERS_MAX])

    def _policies(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[Policy]:
        ids = [row.id for row in rows]
        counts = self.items.counts(connection, ids)
        query = select(policies.c.failback_of, policies.c.id).where(policies.c.failback_of.in_(ids))
        backs: dict[str, str] = {row.failback_of: row.id for row in connection.execute(query)}
        return [_policy(row, backs.get(row.id), counts.get(row.id, 0)) for row in rows]


def get(connection: Connection, policy_id: str) -> tuple[ReplicationPolicy, int]:
    """What a policy says, and its revision. Raises PolicyUnknown."""
    query = select(policies.c.settings, policies.c.revision).where(policies.c.id == policy_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise PolicyUnknown(policy=policy_id[:NAME_CHARACTERS_MAX])
    return _settings(row.settings), row.revision


def failback_policy(connection: Connection, policy_id: str) -> str | None:
    """The id of the failback policy made with one: chosen by itself at reprotect. None: it is one itself."""
    query = select(policies.c.id).where(policies.c.failback_of == policy_id)
    return connection.execute(query).scalar_one_or_none()


def names(connection: Connection, policy_ids: Collection[str]) -> dict[str, str]:
    """The names of policies by their ids; of those that are there."""
    query = select(policies.c.id, policies.c.friendly_name).where(policies.c.id.in_(policy_ids))
    return {row.id: row.friendly_name for row in connection.execute(query)}


def in_vault(connection: Connection, vault_id: str, policy: str) -> str:
    """The id of a vault's policy by its id or name. Raises PolicyUnknown."""
    for condition in (policies.c.id == policy, policies.c.name_key == _key(policy)):
        query = select(policies.c.id).where(policies.c.vault_id == vault_id, condition)
        found: str | None = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return found
    raise PolicyUnknown(policy=policy[:NAME_CHARACTERS_MAX])


def _policy(row: Row[Any], failback: str | None, items: int) -> Policy:
    return Policy(
        id=row.id,
        vault_id=row.vault_id,
        friendly_name=row.friendly_name,
        name_key=row.name_key,
        description=row.description,
        revision=row.revision,
        settings=_settings(row.settings),
        failback=failback,
        failback_of=row.failback_of,
        created_at=from_moment(row.created_at),
        created_by=row.created_by,
        changed_at=from_moment(row.changed_at),
        changed_by=row.changed_by,
        items=items,
    )


def _settings(text: str) -> ReplicationPolicy:
    return ReplicationPolicy.model_validate_json(text)


def _text(settings: ReplicationPolicy) -> str:
    return settings.model_dump_json(by_alias=True)


def _check_free(connection: Connection, vault_id: str, name: str, own: tuple[str, ...]) -> None:
    query = select(policies.c.friendly_name).where(
        policies.c.vault_id == vault_id, policies.c.name_key == _key(name), policies.c.id.not_in(own)
    )
    taken = connection.execute(query).scalar_one_or_none()
    if taken is not None:
        raise PolicyNameTaken(name=taken)


def _count(items: int, what: str) -> str:
    return f"1 item {what.replace('use', 'uses')}" if items == 1 else f"{items} items {what}"


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _name(text: str) -> str:
    name = friendly_name(text)
    if len(name) > NAME_CHARACTERS_MAX or "/" in name:
        why = f"a policy's name has no / in it and at most {NAME_CHARACTERS_MAX} characters"
        raise InvalidInput(what="the friendly name", why=why)
    if _key(name).endswith(FAILBACK_SUFFIX):
        raise InvalidInput(
            what="the friendly name", why=f"{FAILBACK_SUFFIX.strip()} is for failback policies"
        )
    return name


def _description(text: str) -> str:
    text = text.strip()
    if len(text) > DESCRIPTION_CHARACTERS_MAX or "\0" in text:
        raise InvalidInput(what="the description", why=f"it is over {DESCRIPTION_CHARACTERS_MAX} characters")
    return text
