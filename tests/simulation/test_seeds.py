"""A thousand lives of a replica, each from its seed: see docs/proof.md.

Ten items, so that several workers share them. The seeds are the same in every run: what is green stays green
until the code changes. `./run simulate N` runs others.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sim_run import FAULTS, run_seed

SEEDS = 1000
ITEMS = 10
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of events a second would go into the log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("item", range(ITEMS))
def test_seeds(item: int) -> None:
    share = SEEDS // ITEMS
    points, met = 0, dict.fromkeys(FAULTS, 0)
    for seed in range(item * share, (item + 1) * share):
        result = run_seed(seed)
        points += result.points
        for fault, count in result.faults.items():
            met[fault] += count
    # a simulation in which nothing happens proves nothing
    assert points > 5 * share
    assert min(met.values()) > 0, f"never met: {[fault for fault, count in met.items() if not count]}"


def test_the_same_seed_is_the_same_run() -> None:
    """Also in another process, whose hashes of strings differ."""
    here = [run_seed(seed).trace for seed in range(3000, 3006)]
    assert len(set(here)) == len(here)
    code = (
        "import logging; logging.disable(50)\n"
        "from support.sim_run import run_seed\n"
        "print(*(run_seed(seed).trace for seed in range(3000, 3006)))"
    )
    paths = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": paths, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == here


def test_a_failure_tells_how_to_run_it_again() -> None:
    from support.sim_kernel import RunFailed
    from support.sim_run import Run, commit

    def spoil(run: Run) -> None:
        run.world.at(10.0, lambda: run.world.fail("J1: spoiled for a test"))

    with pytest.raises(RunFailed) as raised:
        run_seed(3001, change=spoil)
    text = str(raised.value)
    assert f"seed 3001 at commit {commit()} failed" in text
    assert "./run simulate 1 --seed 3001" in text
