"""``./run simulate N [--seed S]``: more seeds than the tests take, or one again.

Without ``--seed`` the first seed is drawn by chance, so that every run is a new one. A failure prints the
seed, the commit and the end of what happened; the rest goes on.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from support.sim_kernel import RunFailed
from support.sim_run import Result, commit, run_seed

SEED_MAX = 1 << 48


def _one(seed: int) -> Result | str:
    logging.disable(logging.CRITICAL)
    try:
        return run_seed(seed)
    except RunFailed as error:
        return str(error)


def main() -> int:
    """Run them; 1 when any failed."""
    parser = argparse.ArgumentParser(prog="./run simulate", description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--seed", type=int, help="the first one; the others follow")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    first = arguments.seed if arguments.seed is not None else secrets.randbelow(SEED_MAX)
    print(f"commit {commit()}, seeds {first} to {first + arguments.count - 1}", flush=True)
    started, failed, points = time.monotonic(), 0, 0
    faults: Counter[str] = Counter()
    seeds = range(first, first + arguments.count)
    context = multiprocessing.get_context("spawn")  # each begins with nothing installed
    with ProcessPoolExecutor(min(arguments.jobs, arguments.count), mp_context=context) as pool:
        for done, found in enumerate(pool.map(_one, seeds, chunksize=4), 1):
            if isinstance(found, str):
                failed += 1
                print(f"\n{found}\n", flush=True)
            else:
                points += found.points
                faults.update(found.faults)
            if done % 100 == 0:
                seconds = time.monotonic() - started
                print(f"{done} seeds, {points} points, {failed} failed, {seconds:.0f} s", flush=True)
    told = ", ".join(f"{fault} {count}" for fault, count in sorted(faults.items()))
    print(f"{arguments.count} seeds, {points} points, {failed} failed; {told}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
