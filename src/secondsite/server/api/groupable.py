"""What may be asked of several protected items at once: the table of operations, and what each needs.

An operation of single items that is to be one of groups too gets a row here: what its parameters are, which
job it is, which gateway does the work, and, where it is dangerous, the sentences somebody says to it for each
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from secondsite.model import confirmations, reversals
from secondsite.model.items import ItemOperation
from secondsite.server.api.itemfailovers import (
    CommitBody,
    ConfirmBody,
    PlannedBody,
    UnplannedBody,
    committed,
    planned,
    rolled_back,
    unplanned,
)
from secondsite.server.api.itemreturns import FailbackBody, ReprotectBody, moved_home, turned
from secondsite.server.api.items import disabled, ending, pointed
from secondsite.server.api.itemtests import CleanupBody, TestFailoverBody, cleaned_up, tested
from secondsite.server.api.schemas import Model
from secondsite.server.api.services import Services
from secondsite.server.items.records import Item, job_input
from secondsite.server.operations.changing import PAUSE, RESUME, RESYNC, Change
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.failback import FAILBACK, sentences
from secondsite.server.operations.failover import FAILOVER
from secondsite.server.operations.failoverends import COMMIT, ROLL_BACK
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER
from secondsite.server.operations.points import TAKE_POINT
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.testfailover import TEST_CLEANUP, TEST_FAILOVER
from secondsite.server.people.roles import Operation


class NoParameters(Model):
    """It has none."""


class DisableParameters(Model):
    """As for a single item. with_replica absent: as each item's policy says."""

    with_replica: bool | None = None
    force: bool = False


@dataclass(frozen=True)
class Asked:
    """An operation on one item: the body's parameters with those of this item, and who asks."""

    item: Item
    body: Any  # of the row's `body`
    by: str
    services: Services


Given = Callable[[Asked], msgspec.Struct]


def _at_source(item: Item) -> str:
    return item.source_name


def _at_target(item: Item) -> str:
    return item.target_name


def _nothing(_asked: Asked) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Groupable:
    """One row of the table. sentences: what somebody says to it for a machine, each word for word."""

    title: str
    needs: Operation
    kind: str
    given: Given
    checks: Callable[[Asked], ItemOperation]
    body: type[Model] = NoParameters
    gateway: Callable[[Item], str] = _at_source  # who does the work
    sentences: Callable[[Asked], Sequence[str]] = _nothing


def _change(asked: Asked) -> Change:
    return Change(**job_input(asked.item))


def _disable(asked: Asked) -> Disable:
    return disabled(asked.item, with_replica=asked.body.with_replica, force=asked.body.force)


def _disable_sentence(asked: Asked) -> str:
    return f"the recovery points of {asked.item.name} are deleted" if _disable(asked).with_replica else ""


# Failing over. What is said to the group for a machine is what its own job is told that was said.


def _said(asked: Asked, sentence: str) -> Any:
    return asked.body.model_copy(update={"confirm": sentence})


def _may_run(asked: Asked) -> str:
    return confirmations.taken_over(asked.item.name, asked.item.source_name)


def _moves(asked: Asked) -> str:
    return confirmations.moved(asked.item.name, asked.item.source_name, asked.item.target_name)


def _stays(asked: Asked) -> str:
    return confirmations.kept(asked.item.name)


def _lost(asked: Asked) -> str:
    return confirmations.lost(asked.item.name)


def _onto_old_disks(asked: Asked) -> str:
    body: ReprotectBody = asked.body
    home = body.target_provider in (None, asked.item.source_name)
    return reversals.reversed_onto(asked.item.name) if home else ""


def _one(sentence: Callable[[Asked], str]) -> Callable[[Asked], Sequence[str]]:
    """Of an operation that needs one at most; an empty one is none."""
    return lambda asked: tuple(filter(None, (sentence(asked),)))


def _always(operation: ItemOperation) -> Callable[[Asked], ItemOperation]:
    return lambda _asked: operation


_O, _N = ItemOperation, Operation
GROUPABLE: Mapping[str, Groupable] = {
    "pause": Groupable("Pause", _N.ITEM_OPERATE, PAUSE, _change, _always(_O.PAUSE)),
    "resume": Groupable("Go on", _N.ITEM_OPERATE, RESUME, _change, _always(_O.RESUME)),
    "resync": Groupable("Compare everything", _N.ITEM_OPERATE, RESYNC, _change, _always(_O.RESYNC)),
    "takePoint": Groupable(
        "Take a recovery point",
        _N.POINT_TAKE,
        TAKE_POINT,
        lambda asked: pointed(asked.item),
        _always(_O.TAKE_POINT),
    ),
    "testFailover": Groupable(
        "Test the failover",
        _N.ITEM_TEST,
        TEST_FAILOVER,
        lambda asked: tested(asked.item, asked.body, asked.by),
        _always(_O.TEST_FAILOVER),
        body=TestFailoverBody,
        gateway=_at_target,
    ),
    "testFailoverCleanup": Groupable(
        "Clean up the test failover",
        _N.ITEM_TEST,
        TEST_CLEANUP,
        lambda asked: cleaned_up(asked.item, asked.body, asked.by),
        _always(_O.TEST_FAILOVER_CLEANUP),
        body=CleanupBody,
        gateway=_at_target,
    ),
    "disable": Groupable(
        "End the protection",
        _N.ITEM_DISABLE,
        DISABLE,
        _disable,
        lambda asked: ending(_disable(asked)),
        body=DisableParameters,
        sentences=_one(_disable_sentence),
    ),
    "unplannedFailover": Groupable(
        "Fail over",
        _N.ITEM_FAILOVER,
        FAILOVER,
        lambda asked: unplanned(asked.item, _said(asked, _may_run(asked)), asked.by),
        _always(_O.UNPLANNED_FAILOVER),
        body=UnplannedBody,
        gateway=_at_target,
        sentences=_one(_may_run),
    ),
    "plannedFailover": Groupable(
        "Move to the other site",
        _N.ITEM_FAILOVER,
        PLANNED_FAILOVER,
        lambda asked: planned(asked.item, _said(asked, _moves(asked)), asked.by),
        _always(_O.PLANNED_FAILOVER),
        body=PlannedBody,
        gateway=_at_target,
        sentences=_one(_moves),
    ),
    "failoverCommit": Groupable(
        "Commit the failover",
        _N.ITEM_FAILOVER,
        COMMIT,
        lambda asked: committed(asked.item, _said(asked, _stays(asked)), asked.by),
        _always(_O.COMMIT),
        body=CommitBody,
        gateway=_at_target,
        sentences=_one(_stays),
    ),
    "failoverCancel": Groupable(
        "Roll the failover back",
        _N.ITEM_FAILOVER,
        ROLL_BACK,
        lambda asked: rolled_back(asked.item, _said(asked, _lost(asked)), asked.by),
        _always(_O.CANCEL_FAILOVER),
        body=ConfirmBody,
        gateway=_at_target,
        sentences=_one(_lost),
    ),
    "reprotect": Groupable(
        "Protect in the other direction",
        _N.ITEM_FAILOVER,
        REPROTECT,
        lambda asked: turned(asked.services, asked.item, _said(asked, _onto_old_disks(asked)), asked.by),
        _always(_O.REPROTECT),
        body=ReprotectBody,
        gateway=_at_target,
        sentences=_one(_onto_old_disks),
    ),
    "failback": Groupable(
        "Fail back",
        _N.ITEM_FAILOVER,
        FAILBACK,
        lambda asked: moved_home(asked.item, asked.body, asked.by),
        _always(_O.FAILBACK),
        body=FailbackBody,
        gateway=_at_target,
        sentences=lambda asked: sentences(moved_home(asked.item, asked.body, asked.by)),
    ),
}
