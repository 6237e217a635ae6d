"""Saving a network or storage mapping: the target's gateways say once more that they have what is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import SecondsiteError
from secondsite.model.machines import Network, Pool
from secondsite.server.calls.service import Calls
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_mappings import PAIRS
from secondsite.server.jobs.definitions import DONE, Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.mappings.errors import MappingRefused, PairUnknown
from secondsite.server.mappings.pairs import pairs_of
from secondsite.server.mappings.records import DEFAULT_POOL, Kind, Pair
from secondsite.server.mappings.service import Mappings, mapped
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.gathering import gather

SAVE_MAPPING = "mapping.save"
CHECK = "check-target"
# An inventory of a thousand machines takes seconds.
ANSWER_SECONDS_MAX = 60.0


class SaveMapping(msgspec.Struct, frozen=True, kw_only=True):
    """What is to go where; None: not mapped any more."""

    pair: str
    vault_id: str
    primary: str
    target: str
    kind: str  # a `records.Kind`
    wanted: dict[str, str | None]


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What it was, for taking the change back."""

    mapping: dict[str, str | None]


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway has, as far as it matters here."""

    networks: tuple[Network, ...] = ()
    pools: tuple[Pool, ...] = ()


def mapping_operations(database: Database, mappings: Mappings, calls: Calls) -> Sequence[Definition[Any]]:
    """The kind of job that saves a mapping."""

    def check(run: StepRun[SaveMapping]) -> Result:
        return _check(database, calls, run)

    def save(run: StepRun[SaveMapping]) -> Result:
        given = run.input

        def work(connection: Connection) -> None:
            _find(connection, given)
            mappings.write(connection, given.pair, Kind(given.kind), given.wanted)

        run.write(work)
        before = run.output_of(CHECK, Before).mapping
        for source, target in sorted(given.wanted.items()):
            run.log(f"{_source(source)}: {before[source] or 'nothing'} -> {target or 'nothing'}")
        return DONE

    def take_back(run: StepRun[SaveMapping]) -> Result:
        given = run.input
        before = run.output_of(CHECK, Before).mapping
        run.write(lambda connection: mappings.write(connection, given.pair, Kind(given.kind), before))
        return DONE

    return (
        Definition(
            kind=SAVE_MAPPING,
            version=1,
            input=SaveMapping,
            steps=(Step(CHECK, check, weight=4.0), Step("save", save, undo=take_back)),
            title=lambda given: f"Map the {given.kind}s of {given.primary} to {given.target}",
            locks=lambda given: (f"pair:{given.pair}",),
            vault=lambda given: given.vault_id,
        ),
    )


def _check(database: Database, calls: Calls, run: StepRun[SaveMapping]) -> Result:
    given, kind = run.input, Kind(run.input.kind)
    wanted = sorted({target for target in given.wanted.values() if target is not None})
    with database.read() as connection:
        pair = _find(connection, given)
    asks = {
        gateway.name: Asked(
            gateway.id, gateway.name, "GET", "/v1/inventory", seconds_max=ANSWER_SECONDS_MAX, key=gateway.id
        )
        for gateway in pair.target.gateways
    }
    answers = gather(calls, run, asks if wanted else {}, _Told)
    if isinstance(answers, RetryAfter):
        return answers
    for gateway, answer in sorted(answers.items()):
        if isinstance(answer, SecondsiteError):
            raise answer
        found = answer.networks if kind is Kind.NETWORK else answer.pools
        names = {thing.name for thing in found}
        for target in wanted:
            if target not in names:
                raise _missing(pair, kind, target, gateway)
        run.log(f"gateway {gateway} has {', '.join(wanted)}")
    # noted before anything is written, and the pair is this job's alone: what taking back goes back to
    known = mapped(pair, kind)
    return Done(Before(mapping={source: known.get(source) for source in given.wanted}))


def _find(connection: Connection, given: SaveMapping) -> Pair:
    found = pairs_of(connection, PAIRS.c.id == given.pair)
    if not found:
        raise PairUnknown(pair=f"{given.primary} -> {given.target}", vault=given.vault_id)
    return found[0]


def _source(name: str) -> str:
    return "the default pool" if name == DEFAULT_POOL else name


def _missing(pair: Pair, kind: Kind, target: str, gateway: str) -> MappingRefused:
    return MappingRefused(
        kind=kind.value,
        primary=pair.primary.name,
        target=pair.target.name,
        why=f"gateway {gateway} has no {kind.value} {target!r} (any more)",
        cause="It was removed or renamed there since the site was read.",
        action=f"Make it there, or choose one that is at every host of {pair.target.name}.",
    )
