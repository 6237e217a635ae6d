"""Backing up the server, as a job: make it, have it kept at every place there is, drop what lay between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.journal.store import ObjectExists
from secondsite.journal.stores import open_store
from secondsite.server.calls.service import Calls
from secondsite.server.identity.gateways import Gateways
from secondsite.server.jobs.definitions import DONE, Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import LOOK_SECONDS, AnswerUnknown
from secondsite.server.survival.backups import BACKUP_JOB, Backup, Backups, KeptPlace
from secondsite.transfer.backups import PART_BYTES, KeepBackup, KeptBackup, backups_prefix
from secondsite.transfer.calls import Call

SEND_SECONDS_MAX = 1800.0


class BackupServer(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is chosen: all of it, to everywhere."""


class BackupMade(msgspec.Struct, frozen=True, kw_only=True):
    """After the first step."""

    backup: str
    name: str
    size: int


class BackupKept(msgspec.Struct, frozen=True, kw_only=True):
    """After the second."""

    backup: str
    places: tuple[KeptPlace, ...]


class BackupKeptNowhere(SecondsiteError):
    """Made, and nobody took it."""

    code = "server-backup.kept-nowhere"
    outcome = Outcome.UNAVAILABLE
    happened = "The backup {name} of the server is kept nowhere: {why}."
    cause = "No gateway with a store is connected, or their stores are full, and [backup] names no url."
    action = "See `secondsite gateway list`; or set `url` under [backup] in the server's configuration."


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where backups go, as the configuration says."""

    server: str  # this server's id
    keep: int
    gateways: bool
    url: str | None = None
    credentials: Path | None = None


def backup_server(
    backups: Backups, gateways: Gateways, calls: Calls, target: Target
) -> Definition[BackupServer]:
    """The job."""

    def make(run: StepRun[BackupServer]) -> Result:
        made = backups.make(run.job)
        return Done(BackupMade(backup=made.id, name=made.name, size=made.size))

    def unmake(run: StepRun[BackupServer]) -> Result:
        found = backups.of_job(run.job)
        if found is not None:
            backups.drop_parts(found.id)
        return DONE

    def keep(run: StepRun[BackupServer]) -> Result:
        made = backups.get(run.output_of("make", BackupMade).backup)
        places, waiting = [], []
        if target.url is not None:
            places.append(_keep_here(backups, made, target))
        for gateway, name in _connected(gateways, run.clock) if target.gateways else []:
            found = _ask(calls, run, (gateway, name), made, target)
            if found is None:
                waiting.append(name)
            else:
                places.append(found)
        if waiting:
            return RetryAfter(LOOK_SECONDS, f"waits for {', '.join(waiting)}")
        backups.kept(made.id, places)
        if not any(place.store for place in places):
            why = "; ".join(f"{place.gateway}: {place.problem}" for place in places) or "there is no place"
            raise BackupKeptNowhere(name=made.name, why=why)
        for place in places:
            where = place.gateway or "here"
            run.log(f"{where}: {place.store or place.problem}")
        return Done(BackupKept(backup=made.id, places=tuple(places)))

    return Definition(
        kind=BACKUP_JOB,
        version=1,
        input=BackupServer,
        steps=(Step("make", make, undo=unmake, clean_up=unmake), Step("keep", keep, tries=4, weight=4.0)),
        title=lambda _given: "Back up the server",
        locks=lambda _given: ("server:backup",),
    )


def _connected(gateways: Gateways, clock: Clock) -> Iterator[tuple[str, str]]:
    now, after = clock.utc(), ""
    while page := gateways.page(after=after):
        yield from ((one.id, one.name) for one in page if one.contact and one.contact.connected(now))
        after = page[-1].name


def _ask(
    calls: Calls, run: StepRun[BackupServer], to: tuple[str, str], made: Backup, target: Target
) -> KeptPlace | None:
    """What a gateway says (to: its id and name); None while it is at it."""
    gateway, name = to
    asked = KeepBackup(
        backup=made.id, server=target.server, size=made.size, sha256=made.sha256, keep=target.keep
    )
    call = Call(
        id=f"{run.job}:keep:{gateway}",
        method="PUT",
        path=f"/v1/server-backups/{made.name}",
        body=msgspec.json.encode(asked).decode(),
        job=run.job,
        epoch=run.epoch,
    )
    try:
        answer = calls.ask(gateway, call, seconds_max=SEND_SECONDS_MAX)
        if answer is None:
            return None
        if answer.ok:
            return KeptPlace(name, msgspec.json.decode(answer.body, type=KeptBackup).store)
        problem = msgspec.json.decode(answer.body, type=dict[str, object])
        if answer.status == 503:  # tried again with the step
            calls.forget([call.id])
        return KeptPlace(name, problem=str(problem.get("happened", answer.status)))
    except SecondsiteError as error:
        return KeptPlace(name, problem=str(error))
    except msgspec.DecodeError as error:
        return KeptPlace(name, problem=str(AnswerUnknown(gateway=name, why=str(error))))


def _keep_here(backups: Backups, made: Backup, target: Target) -> KeptPlace:
    """Into the place the configuration names."""
    assert target.url is not None
    prefix = backups_prefix(target.server)
    try:
        store = open_store(target.url, credentials=target.credentials)
        with contextlib.suppress(ObjectExists):
            store.put(prefix + made.name, _whole(backups, made))
        names = list(store.list(prefix))
        for old in names[: max(0, len(names) - target.keep)]:
            store.delete(old)
        return KeptPlace("", store.url)
    except SecondsiteError as error:
        return KeptPlace("", problem=str(error))


def _whole(backups: Backups, made: Backup) -> bytes:
    count = -(-made.size // PART_BYTES)
    return b"".join(backups.part(made.id, number) for number in range(count))
