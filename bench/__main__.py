"""``python -m bench [--quick] [NAME...]``: run benchmarks, print a table, write bench/results/latest.json.

``--quick``: shorter where a bench can be; such figures are printed and not kept.
"""

from __future__ import annotations

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
    "guest_latency",
    "jobs",
)


def main() -> int:
    """Run the named benches, all without names; 1 when one of them could not run."""
    arguments = sys.argv[1:]
    quick = "--quick" in arguments
    names = [argument for argument in arguments if argument != "--quick"] or list(BENCHES)
    unknown = set(names) - set(BENCHES)
    if unknown:
        print(f"there is no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
        return 2
    report = Report(quick=quick)
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
