"""Every kind of job on protected items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secondsite.server.jobs.definitions import Definition
from secondsite.server.operations.changing import changes
from secondsite.server.operations.ending import disable
from secondsite.server.operations.failback import fail_back
from secondsite.server.operations.failover import fail_over
from secondsite.server.operations.failoverends import change_point, commit, roll_back
from secondsite.server.operations.finalise import finalise_item
from secondsite.server.operations.forget import forget
from secondsite.server.operations.group import group
from secondsite.server.operations.held import decisions
from secondsite.server.operations.keyproof import prove_key
from secondsite.server.operations.migration import complete_migration
from secondsite.server.operations.plannedfailover import move
from secondsite.server.operations.protect import protect
from secondsite.server.operations.reprotect import reprotect
from secondsite.server.operations.testfailover import boot_test, remove_test
from secondsite.server.operations.tools import Tools


def item_operations(tools: Tools) -> Sequence[Definition[Any]]:
    """All of them."""
    tests: tuple[Definition[Any], ...] = (boot_test(tools), remove_test(tools))
    over: list[Definition[Any]] = [
        fail_over(tools),
        move(tools),
        change_point(tools),
        commit(tools),
        roll_back(tools),
    ]
    back: list[Definition[Any]] = [reprotect(tools), fail_back(tools), complete_migration(tools)]
    kept: tuple[Definition[Any], ...] = (
        protect(tools),
        finalise_item(tools),
        disable(tools),
        forget(tools),
        *changes(tools),
    )
    held: tuple[Definition[Any], ...] = decisions(tools)
    return (*kept, *tests, *over, *held, *back, prove_key(tools), group(tools))
