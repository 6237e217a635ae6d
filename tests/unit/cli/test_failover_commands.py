"""The commands of a failover, as an operator types them, against two gateways and imaginary hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.control import Ran, run_command
from support.gateway_pair import A, B
from support.two_sites import LOST, OPERATION, SURE, Two, two_sites


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def run(two: Two, name: str, *arguments: str) -> Ran:
    return run_command(*arguments, gateway=two.pair.root / name / "c.sock")


def test_a_failover_is_said_and_undone(two: Two) -> None:
    """What the runbook's pages do not type (tests/e2e/test_runbook_failover.py)."""
    unsaid = run(two, B, "failover", "shop")
    assert unsaid.code == 4, unsaid.err
    assert f'--confirm "{SURE}"' in unsaid.err
    assert "what was written since is lost" in unsaid.out
    assert "it will be attached to no network" in unsaid.out
    done = run(
        *(two, B, "failover", "shop", "--confirm", SURE, "--operation", OPERATION),
        *("--auto-roll-back-after", "4h", "--confirm-timer", LOST),
    )
    assert done.code == 0, done.err
    assert "machine started" in done.out
    [status] = run(two, B, "failover", "status", "shop", "--json").json
    assert (status["id"], status["state"], status["epoch"]) == (OPERATION, "Completed", 2)
    assert status["timer"]["seconds"] == 4 * 3600
    assert "RollBack by itself" in run(two, B, "failover", "status", "shop").out
    assert "until somebody commits it" in run(two, B, "failover", "cancel-timer", "shop").out
    assert "by itself" not in run(two, B, "failover", "status", "shop").out
    gone = run(two, B, "failover", "remove-former", "shop")
    assert (gone.code, gone.out) == (0, "0 B of what shop wrote on former points are gone\n")
    undone = run(two, B, "failover", "rollback", "shop", "--confirm", LOST)
    assert undone.code == 0, undone.err
    assert f"given back to {A}" in undone.out
    assert run(two, B, "failover", "commit", "nothing").code == 3
