"""Pairs of clouds in the database. What asks gateways is in `operations.pairing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Row

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import vaults
from secondsite.server.database.tables_mappings import CLOUDS, PAIR_CHECKS, PAIR_MAPPINGS, PAIR_SIDES, PAIRS
from secondsite.server.database.values import fresh_id, from_json, from_moment, moment, to_json
from secondsite.server.mappings.errors import CloudInPair, PairInUse, PairRefused, PairUnknown
from secondsite.server.mappings.records import (
    DEFAULT_POOL,
    Checked,
    HostCheck,
    HostState,
    Kind,
    Pair,
    PairState,
)
from secondsite.server.topology.placing import key_of
from secondsite.server.topology.records import Cloud, clouds_of, find_cloud

# What needs a pair: gives a phrase like "3 machines are protected with it", or an empty one.
PairUse = Callable[[Connection, Pair], str]


class Pairs:
    """The pairs of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._uses: list[PairUse] = []

    def watch(self, use: PairUse) -> None:
        """Another area's say in whether a pair may be deleted."""
        self._uses.append(use)

    def list(self, vault_id: str) -> list[Pair]:
        """A vault's pairs, by the name of their primary cloud."""
        with self._database.read() as connection:
            return pairs_of(connection, PAIRS.c.vault_id == vault_id)

    def get(self, vault_id: str, pair: str) -> Pair:
        """By id, or by the name of either cloud. Raises PairUnknown."""
        with self._database.read() as connection:
            return find_pair(connection, vault_id, pair)

    def find(self, connection: Connection, vault_id: str, pair: str) -> Pair:
        """As `get`, in the caller's transaction."""
        return find_pair(connection, vault_id, pair)

    def insert(self, connection: Connection, vault_id: str, primary: str, target: str, *, actor: str) -> Pair:
        """Pair two clouds (ids or names); nobody was asked yet. Leave through `taken` with the transaction.

        Raises CloudUnknown, PairRefused, CloudInPair, and IntegrityError where another was first.
        """
        first, second = (find_cloud(connection, vault_id, cloud) for cloud in (primary, target))
        _check(first, second)
        made = fresh_id(self._database.clock)
        connection.execute(
            sa.insert(PAIRS).values(
                id=made,
                vault_id=vault_id,
                primary_cloud=first.id,
                target_cloud=second.id,
                state=PairState.PAIRING.value,
                created_at=moment(self._database.clock.utc()),
                created_by=actor,
            )
        )
        sides = [{"cloud": cloud.id, "pair": made} for cloud in (first, second)]
        connection.execute(sa.insert(PAIR_SIDES), sides)
        return find_pair(connection, vault_id, made)

    def taken(self, vault_id: str, primary: str, target: str, error: exc.IntegrityError) -> CloudInPair:
        """What an IntegrityError of `insert` means: another request paired one of the clouds first."""
        with self._database.read() as connection:
            for cloud in (primary, target):
                found = find_cloud(connection, vault_id, cloud)
                if found.pair is not None:
                    return _taken(found)
        raise error

    def check_deletable(self, connection: Connection, pair: Pair) -> None:
        """Raise PairInUse while something needs it."""
        uses = [phrase for use in self._uses if (phrase := use(connection, pair))]
        if uses:
            raise PairInUse(primary=pair.primary.name, target=pair.target.name, uses=" and ".join(uses))

    def delete(self, connection: Connection, pair: str) -> None:
        """Delete it with its mappings, by its id; absent is fine."""
        connection.execute(sa.delete(PAIRS).where(PAIRS.c.id == pair))

    def record(self, connection: Connection, pair: str, checks: Iterable[HostCheck]) -> None:
        """Keep what every host said now, instead of what was said before."""
        now = moment(self._database.clock.utc())
        connection.execute(sa.delete(PAIR_CHECKS).where(PAIR_CHECKS.c.pair == pair))
        rows = [
            {
                "pair": pair,
                "host": check.host,
                "gateway": check.gateway,
                "target": check.target,
                "ok": int(check.ok),
                "round_trip_seconds": check.round_trip_seconds,
                "result": to_json(check),
                "checked_at": now,
            }
            for check in checks
        ]
        if rows:
            connection.execute(sa.insert(PAIR_CHECKS), rows)

    def set_state(self, connection: Connection, pair: str, state: PairState) -> None:
        """Note where it stands; absent is fine."""
        connection.execute(sa.update(PAIRS).where(PAIRS.c.id == pair).values(state=state.value))


def find_pair(connection: Connection, vault_id: str, pair: str) -> Pair:
    """By id, or by the name of either cloud. Raises PairUnknown."""
    named = sa.select(CLOUDS.c.id).where(CLOUDS.c.vault_id == vault_id, CLOUDS.c.name_key == key_of(pair))
    sided = sa.select(PAIR_SIDES.c.pair).where(PAIR_SIDES.c.cloud.in_(named))
    for condition in (PAIRS.c.id == pair, PAIRS.c.id.in_(sided)):
        found = pairs_of(connection, sa.and_(PAIRS.c.vault_id == vault_id, condition))
        if found:
            return found[0]
    vault = connection.execute(sa.select(vaults.c.friendly_name).where(vaults.c.id == vault_id))
    raise PairUnknown(pair=pair[:100], vault=vault.scalar_one_or_none() or vault_id)


def pairs_of(connection: Connection, condition: sa.ColumnElement[bool]) -> list[Pair]:
    """The pairs a condition on `PAIRS` names, by the name of their primary cloud."""
    rows = connection.execute(sa.select(PAIRS).where(condition)).all()
    ids = [row.id for row in rows]
    wanted = {cloud for row in rows for cloud in (row.primary_cloud, row.target_cloud)}
    clouds = {cloud.id: cloud for cloud in clouds_of(connection, CLOUDS.c.id.in_(wanted))}
    checks: dict[str, list[Checked]] = {}
    for row in connection.execute(sa.select(PAIR_CHECKS).where(PAIR_CHECKS.c.pair.in_(ids))):
        check = Checked(from_json(row.result, HostCheck), from_moment(row.checked_at))
        checks.setdefault(row.pair, []).append(check)
    maps: dict[str, dict[tuple[str, str], str]] = {}
    for row in connection.execute(sa.select(PAIR_MAPPINGS).where(PAIR_MAPPINGS.c.pair.in_(ids))):
        maps.setdefault(row.pair, {})[row.kind, row.source] = row.target
    made = [_pair(row, clouds, checks.get(row.id, ()), maps.get(row.id, {})) for row in rows]
    return sorted(made, key=lambda pair: key_of(pair.primary.name))


def _pair(
    row: Row[tuple[object, ...]],
    clouds: dict[str, Cloud],
    checks: Sequence[Checked],
    maps: dict[tuple[str, str], str],
) -> Pair:
    primary = clouds[row.primary_cloud]
    return Pair(
        id=row.id,
        vault_id=row.vault_id,
        primary=primary,
        target=clouds[row.target_cloud],
        state=PairState(row.state),
        created_at=from_moment(row.created_at),
        created_by=row.created_by,
        hosts=tuple(_host(host.name, checks) for host in primary.hosts),
        networks={source: to for (kind, source), to in maps.items() if kind == Kind.NETWORK.value},
        pools={
            source: to
            for (kind, source), to in maps.items()
            if kind == Kind.POOL.value and source != DEFAULT_POOL
        },
        default_pool=maps.get((Kind.POOL.value, DEFAULT_POOL)),
    )


def _host(name: str, checks: Sequence[Checked]) -> HostState:
    mine = tuple(
        sorted(
            (one for one in checks if one.check.host == name),
            key=lambda one: (one.check.gateway_name, one.check.target_name),
        )
    )
    problems = tuple(problem for one in mine for problem in one.check.problems)
    ready = any(one.check.ok for one in mine) if mine else None
    return HostState(name, ready, problems, mine)


def _check(primary: Cloud, target: Cloud) -> None:
    for cloud in (primary, target):
        if cloud.pair is not None:
            raise _taken(cloud)
    why, action = _against(primary, target)
    if why:
        raise PairRefused(primary=primary.name, target=target.name, why=why, action=action)


def _against(primary: Cloud, target: Cloud) -> tuple[str, str]:
    """What speaks against it and what to do; empty texts: nothing."""
    if primary.id == target.id:
        return "they are the same cloud", "enrol a gateway at the other site, or make a second cloud."
    if not primary.published:
        publish = f"publish it first: `secondsite cloud publish VAULT {primary.name}`."
        return f"{primary.name} is not published, so its machines are not known here", publish
    for cloud in (primary, target):
        if not cloud.hosts:
            read = "have the site read once (`secondsite site read`), with its gateway running."
            return f"{cloud.name} has no host", read
        if not cloud.gateways:
            return (
                f"no registered gateway tells of a host of {cloud.name}",
                "enrol one at that site (`secondsite gateway enrol`).",
            )
    for host in primary.hosts:
        theirs = {gateway.id for gateway in target.gateways}
        if host.gateways and all({gateway.id} == theirs for gateway in host.gateways):
            only = host.gateways[0].name
            alone = f"{only} is the only gateway of the host {host.name} and of {target.name}"
            why = f"{alone}: a gateway keeps no replica of its own machines"
            return why, f"enrol a second gateway for {target.name}."
    return "", ""


def _taken(cloud: Cloud) -> CloudInPair:
    other = cloud.paired_with
    first, second = (cloud.name, other) if cloud.role == "Primary" else (other, cloud.name)
    return CloudInPair(cloud=cloud.name, primary=first, target=second)
