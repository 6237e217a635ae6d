"""``python -m bench [--quick] [NAME...]``: run benchmarks, print a table, write bench/results/latest.json.

``--quick``: shorter where a bench can be; such figures are printed and not kept.
``--size``, ``--points``, ``--kind``: only those parts of ``failover``; the figures of its others stay as they
were, so that one that was interrupted is gone on with by naming what is missing:

    python -m bench --size 64g --points 17280 --kind planned,unplanned failover
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench.report import Figure, Report  # noqa: E402

BENCHES = (
    "first_copy",
    "cycles",
    "compare",
    "traffic",
    "churn",
    "journal",
    "export",
    "boot",
    "failover",
    "reprotect",
    "guest_latency",
    "jobs",
    "items",
)


PARTS = {
    "size": ("1g", "64g"),
    "points": ("10", "17280"),
    "kind": ("test", "unplanned", "planned", "flatten"),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure against the peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="shorter where a bench can be; not kept")
    for part, values in PARTS.items():
        parser.add_argument(f"--{part}", default="", help=f"of failover: {', '.join(values)}; none: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHES):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    for part, values in PARTS.items():
        if unknown := set(getattr(arguments, part).split(",")) - {*values, ""}:
            parser.error(f"there is no {part} {', '.join(sorted(unknown))}; there are {', '.join(values)}")
    return arguments


def main() -> int:
    """Run the named benches, all without names; 1 when one of them could not run."""
    arguments = _arguments()
    names = arguments.names or list(BENCHES)
    chosen = {
        part: frozenset(getattr(arguments, part).split(",")) for part in PARTS if getattr(arguments, part)
    }
    report = Report(quick=arguments.quick, chosen=chosen)
    failed = 0
    # on a disk, not in memory, unless told otherwise: what is measured ends with a sync. A short name: the
    # lab's sockets lie below it.
    work = Path(tempfile.mkdtemp(prefix="ssb-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
    work.chmod(0o755)  # QEMU's user looks inside
    try:
        for name in names:
            print(f"{name}:", flush=True)
            try:
                importlib.import_module(f"bench.{name}").run(report, work)
                report.succeeded.append(name)
            except Exception:  # noqa: BLE001 - one bench that cannot run costs none of the others
                failed += 1
                traceback.print_exc()
                report.add(Figure(f"{name}_failed", 1, "", note="see the trace above"))
            report.write()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.table()
    return 1 if failed else 0


sys.exit(main())
