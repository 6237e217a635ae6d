"""Pairing two clouds: every host of the primary cloud proves that it reaches the target.

Each gateway of a host is asked to reach each gateway of the target. A host is ready when one of its gateways
reaches one of them; which one that was is kept, and where it was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import SecondsiteError
from secondsite.model.events import Severity
from secondsite.server.calls.service import Calls
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_mappings import PAIRS
from secondsite.server.events.service import Events, NewEvent
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.mappings.errors import HostsNotReady, PairUnknown
from secondsite.server.mappings.pairs import Pairs, pairs_of
from secondsite.server.mappings.records import HostCheck, Pair, PairState, Problem
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.gathering import gather, key_for
from secondsite.server.topology.addresses import Address, addresses_of

CREATE_PAIR = "pair.create"
CHECK_PAIR = "pair.check"
# A gateway that lives asks for calls every few seconds, and a check takes at most some tens of seconds.
CHECK_SECONDS_MAX = 60.0


class PairJob(msgspec.Struct, frozen=True, kw_only=True):
    """Of which pair; the names are for people."""

    pair: str
    vault_id: str
    primary: str
    target: str


class HostResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One host in a job's result."""

    host: str
    ready: bool
    by: str = ""  # the gateway that reached the target
    problems: tuple[str, ...] = ()


class PairChecked(msgspec.Struct, frozen=True, kw_only=True):
    """Every host of the primary cloud."""

    hosts: tuple[HostResult, ...]


class _Told(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a gateway says of its way to another (`gateway.peercheck.PeerCheck`)."""

    ok: bool
    url: str = ""
    version: str = ""
    round_trip_seconds: float | None = None
    clock_seconds: float | None = None
    free_bytes: int | None = None
    problems: tuple[Problem, ...] = ()


class _Way(msgspec.Struct, frozen=True, kw_only=True):
    """From a gateway of a host to a gateway of the target."""

    host: str
    gateway: str
    gateway_name: str
    target: str
    target_name: str


def pair_operations(database: Database, pairs: Pairs, calls: Calls) -> Sequence[Definition[Any]]:
    """The kinds of jobs about pairs."""

    def check(run: StepRun[PairJob]) -> Result:
        return _check(database, pairs, calls, run)

    def take_back(run: StepRun[PairJob]) -> Result:
        run.write(lambda connection: pairs.delete(connection, run.input.pair))
        run.log(f"the pair {run.input.primary} -> {run.input.target} is removed again")
        return DONE

    def save(run: StepRun[PairJob]) -> Result:
        run.write(lambda connection: pairs.set_state(connection, run.input.pair, PairState.PAIRED))
        return DONE

    return (
        Definition(
            kind=CREATE_PAIR,
            version=1,
            input=PairJob,
            steps=(Step("check-hosts", check, undo=take_back, weight=9.0), Step("save", save)),
            title=lambda given: f"Pair the cloud {given.primary} with {given.target}",
            locks=lambda given: (f"pair:{given.pair}",),
            vault=lambda given: given.vault_id,
            on_failure=OnFailure.KEEP,
        ),
        Definition(
            kind=CHECK_PAIR,
            version=1,
            input=PairJob,
            steps=(Step("check-hosts", check, weight=9.0), Step("save", save)),
            title=lambda given: f"Check the hosts of the cloud {given.primary}",
            locks=lambda given: (f"pair:{given.pair}",),
            vault=lambda given: given.vault_id,
            on_failure=OnFailure.KEEP,
        ),
    )


def _check(database: Database, pairs: Pairs, calls: Calls, run: StepRun[PairJob]) -> Result:
    events = Events(database)
    with database.read() as connection:
        pair = _find(connection, run.input)
        ways = list(_ways(pair))
        addresses = addresses_of(connection, sorted({way.target for way in ways}))
    asks = {key_for(way.gateway, way.target): _ask(way, addresses[way.target]) for way in ways}
    answers = gather(calls, run, asks, _Told)
    if isinstance(answers, RetryAfter):
        return answers
    checks = [_result(way, answers[key_for(way.gateway, way.target)]) for way in ways]
    results = [_host(host.name, checks) for host in pair.primary.hosts]
    for result in results:
        for line in _lines(result, pair.target.name):
            run.log(line, level="info" if result.ready else "warning")
    failed = [result for result in results if not result.ready]

    def keep(connection: Connection) -> None:
        pairs.record(connection, pair.id, checks)
        pairs.set_state(connection, pair.id, PairState.FAILED if failed else PairState.PAIRING)
        # last: who writes an event holds up the other writers of events
        events.write(connection, list(_events(pair, results)))

    run.write(keep)
    if failed:
        raise _not_ready(pair, failed, checks)
    return Done(PairChecked(hosts=tuple(results)))


def _find(connection: Connection, given: PairJob) -> Pair:
    found = pairs_of(connection, PAIRS.c.id == given.pair)
    if not found:
        raise PairUnknown(pair=f"{given.primary} -> {given.target}", vault=given.vault_id)
    return found[0]


def _ways(pair: Pair) -> Iterator[_Way]:
    for host in pair.primary.hosts:
        for gateway in host.gateways:
            for target in pair.target.gateways:
                if target.id != gateway.id:
                    yield _Way(
                        host=host.name,
                        gateway=gateway.id,
                        gateway_name=gateway.name,
                        target=target.id,
                        target_name=target.name,
                    )


def _ask(way: _Way, address: Address) -> Asked:
    known = {"url": address.said, "guess": address.guess}
    query = urlencode({name: url for name, url in known.items() if url is not None})
    return Asked(
        gateway=way.gateway,
        name=way.gateway_name,
        method="GET",
        path=f"/v1/peers/{quote(way.target_name, safe='')}/check" + (f"?{query}" if query else ""),
        seconds_max=CHECK_SECONDS_MAX,
        key=key_for(way.gateway, way.target),
    )


def _result(way: _Way, answer: _Told | SecondsiteError) -> HostCheck:
    said = msgspec.structs.asdict(way)
    if isinstance(answer, SecondsiteError):
        told = answer.as_dict()
        fields = {name: str(told.get(name, "")) for name in Problem.__struct_fields__}
        return HostCheck(**said, ok=False, problems=(Problem(**fields),))
    return HostCheck(**said, **msgspec.structs.asdict(answer))


def _host(host: str, checks: Sequence[HostCheck]) -> HostResult:
    mine = [check for check in checks if check.host == host]
    good = next((check for check in mine if check.ok), None)
    problems = [
        f"{check.gateway_name} to {check.target_name}: {problem.happened}"
        for check in mine
        for problem in check.problems
    ]
    if not mine:
        problems = ["no registered gateway tells of it, or only the target's own"]
    by = f"{good.gateway_name} to {good.target_name}" if good else ""
    return HostResult(host=host, ready=good is not None, by=by, problems=tuple(problems))


def _events(pair: Pair, results: Sequence[HostResult]) -> Iterator[NewEvent]:
    """What has changed of a host's way since it was asked before."""
    before = {host.host: host.ready for host in pair.hosts}
    gateways = {host.name: host.gateways for host in pair.primary.hosts}
    for result in results:
        if before.get(result.host) is result.ready or (result.ready and before.get(result.host) is None):
            continue
        told = gateways[result.host]
        gateway = told[0].name if told else ""
        if result.ready:
            text = f"The host {result.host} reaches {pair.target.name} again: {result.by}."
            ready = NewEvent(pair.vault_id, Severity.INFORMATION, "pair.host-ready", text, gateway=gateway)
            yield replace(ready, ends="pair.host-unreachable")
        else:
            text = f"The host {result.host} does not reach {pair.target.name}: {'; '.join(result.problems)}"
            away = NewEvent(pair.vault_id, Severity.WARNING, "pair.host-unreachable", text, gateway=gateway)
            yield replace(away, lasts=True)


def _lines(result: HostResult, target: str) -> Iterator[str]:
    if result.ready:
        yield f"host {result.host} reaches {target}: {result.by}"
    for problem in result.problems:
        yield f"host {result.host}, {problem}"


def _not_ready(pair: Pair, failed: Sequence[HostResult], checks: Sequence[HostCheck]) -> HostsNotReady:
    problems = [problem for check in checks if not check.ok for problem in check.problems]
    first = problems[0] if problems else None
    return HostsNotReady(
        failed=len(failed),
        total=len(pair.primary.hosts),
        primary=pair.primary.name,
        target=pair.target.name,
        hosts="; ".join(f"{one.host} ({one.problems[0]})" for one in failed)[:1500],
        cause=first.cause if first else "No gateway of the host is registered, or none was read yet.",
        action=first.action if first else "Enrol a gateway for that host, and have its site read.",
    )
