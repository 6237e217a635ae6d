"""What people change of a protected item, each as a job: wanted at once, done when its gateway took it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from secondsite.model.items import ProtectedEvent
from secondsite.server.database.values import to_json
from secondsite.server.items.records import Item, lock_key
from secondsite.server.jobs.definitions import DONE, Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.protect import check_disks, machine_of
from secondsite.server.operations.tools import (
    LOOK_SECONDS,
    Tools,
    action_of,
    change_once,
    tell_progress,
    wait_taken,
)
from secondsite.transfer.desired import WantedMapping

PAUSE, RESUME, RESYNC, CHANGE = "item.pause", "item.resume", "item.resync", "item.change"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Which item, and for a change what is to be another; what is left out stays."""

    vault: str
    item: str
    machine: str
    name: str
    what: str = ""  # for the title: "policy, disks"
    policy: str | None = None  # its id
    disks: tuple[str, ...] | None = None
    all_disks: bool = False  # also those to come
    left_out: tuple[str, ...] | None = None
    mapping: str | None = None  # JSON of WantedMapping
    pair_mapping: bool = False  # as the sites are mapped


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The columns as they were, for taking back."""

    columns: dict[str, str | int | None]


Run = StepRun[Change]
Values = Callable[[Tools, Any, Change, Item], Mapping[str, object]]


@dataclass(frozen=True)
class _Kind:
    kind: str
    title: Callable[[Change], str]
    event: ProtectedEvent
    back: ProtectedEvent
    values: Values


def _changed(tools: Tools, connection: Any, given: Change, item: Item) -> Mapping[str, object]:
    values: dict[str, object] = {}
    if given.policy is not None:
        policy, revision = tools.items.seams.policies.get(connection, given.policy)
        text = policy.model_dump_json(by_alias=True)
        values |= {"policy_id": given.policy, "policy_revision": revision, "policy": text}
    if given.all_disks:
        values["disks"] = None
    elif given.disks is not None:
        values["disks"] = to_json(list(given.disks))
    if given.left_out is not None:
        values["left_out"] = to_json(list(given.left_out))
    mapping = None if given.mapping is None else WantedMapping.model_validate_json(given.mapping)
    if given.pair_mapping:
        # a peer that is none of this server's gateways is in no pair
        target = item.target_id or item.target_name
        mapping = tools.items.seams.mappings.for_pair(connection, item.source_id, target, item.machine)
    if mapping is not None:
        values["own_mapping"] = int(not given.pair_mapping)
        values["mapping"] = mapping.model_dump_json(by_alias=True)
    return values


_E = ProtectedEvent
_KINDS = (
    _Kind(
        PAUSE,
        lambda given: f"Pause the replication of {given.name}",
        _E.PAUSED,
        _E.RESUMED,
        lambda _tools, _connection, _given, _item: {"paused": 1},
    ),
    _Kind(
        RESUME,
        lambda given: f"Go on with the replication of {given.name}",
        _E.RESUMED,
        _E.PAUSED,
        lambda _tools, _connection, _given, _item: {"paused": 0},
    ),
    _Kind(
        RESYNC,
        lambda given: f"Compare everything of {given.name}",
        _E.RESYNC_ASKED,
        _E.REPLICATES,
        lambda _tools, _connection, _given, item: {"resync": _next_resync(item)},
    ),
    _Kind(
        CHANGE,
        lambda given: f"Change {given.what} of {given.name}",
        _E.CHANGED,
        _E.CHANGED,
        _changed,
    ),
)


def _next_resync(item: Item) -> int:
    done = item.reported.resynced if item.reported is not None else 0
    return max(item.resync, done) + 1


def changes(tools: Tools) -> Sequence[Definition[Change]]:
    """Every kind of them."""
    return [_definition(tools, one) for one in _KINDS]


def _definition(tools: Tools, one: _Kind) -> Definition[Change]:
    steps: list[Step[Change]] = [
        Step("change", do=lambda run: _do(tools, run, one), undo=lambda run: _undo(tools, run, one)),
        Step("taken-by-gateway", do=lambda run: _taken(tools, run), tries=1, weight=3.0),
    ]
    if one.kind == CHANGE:
        steps.insert(0, Step("check", do=lambda run: _check(tools, run)))
    if one.kind == RESYNC:
        steps.append(Step("compare", do=lambda run: _compared(tools, run), weight=20.0))
    return Definition(
        kind=one.kind,
        version=1,
        input=Change,
        steps=tuple(steps),
        title=one.title,
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
    )


def _check(tools: Tools, run: Run) -> Result:
    given = run.input
    item = tools.item(given.item)
    if given.disks is not None or given.left_out is not None:
        machine = machine_of(tools, item.source_name, item.machine)
        disks = None if given.all_disks else item.disks if given.disks is None else given.disks
        check_disks(machine, disks, item.left_out if given.left_out is None else given.left_out)
    return DONE


def _do(tools: Tools, run: Run, one: _Kind) -> Result:
    given = run.input

    def work(connection: Any) -> Before | None:
        found = tools.items.get(connection, given.item)
        if found.changed_by == action_of(run):
            return None
        before = _before(found)
        values = {**one.values(tools, connection, given, found), "changed_by": action_of(run)}
        values["before_change"] = to_json(before)
        tools.items.change(connection, given.item, one.event, values)
        return before

    run.write(work)
    return Done(msgspec.json.decode(tools.item(given.item).before_change, type=Before))


def _before(item: Item) -> Before:
    columns: dict[str, str | int | None] = {
        "policy_id": item.policy_id,
        "policy_revision": item.policy_revision,
        "policy": item.policy_text,
        "disks": None if item.disks is None else to_json(list(item.disks)),
        "left_out": to_json(list(item.left_out)),
        "mapping": item.mapping_text,
        "own_mapping": int(item.own_mapping),
        "paused": int(item.paused),
        "resync": item.resync,
    }
    return Before(columns=columns)


def _undo(tools: Tools, run: Run, one: _Kind) -> Result:
    item = tools.item(run.input.item)
    if not item.changed_by.startswith(f"{run.job}/"):
        return DONE  # the change was cut before it was one
    before = msgspec.json.decode(item.before_change, type=Before).columns
    change_once(tools, run, item.id, one.back, lambda _item: before)
    return DONE


def _taken(tools: Tools, run: Run) -> Result:
    found = wait_taken(tools, run.input.item)
    return found if isinstance(found, RetryAfter) else DONE


def _compared(tools: Tools, run: Run) -> Result:
    item = tools.item(run.input.item)
    if item.reported is not None and item.reported.resynced >= item.resync:
        copying = item.reported.copying or {}
        differed = copying.get("differedBytes")
        if differed is not None:
            run.log(f"{differed} bytes differed")
        return DONE
    return RetryAfter(LOOK_SECONDS, tell_progress(run, item, "comparison"))
