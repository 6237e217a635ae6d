"""A gateway of `support.kill_sites` as a process: ``python -m support.kill_process SITE CONFIG ROOT``.

SIGUSR1: from now on it dies by SIGKILL at the mark that stands in ``ROOT/SITE.arm``; the file goes when it
is read.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from secondsite.base import crash
from secondsite.base.clock import SystemClock
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.main import Gateway, serve
from support.gateway_pair import B
from support.kill_hosts import RunLog, SourceHost, TargetHost


def main(site: str, config: Path, root: Path) -> int:
    arm = root / f"{site}.arm"

    def take(*_: object) -> None:
        crash._target, crash._count = arm.read_text(), ""
        arm.unlink()

    signal.signal(signal.SIGUSR1, take)
    # what a gateway does every few seconds: often enough here
    fencing.ASK_SECONDS, fencing.KEEP_SECONDS, failoverrun.FLATTEN_SECONDS = 0.5, 0.2, 0.05
    log = RunLog(root / "runs.log", root / B / "store")
    fabric: Fabric
    if site == "A":
        fabric = SourceHost(root / "guest", log, SystemClock())
    else:
        fabric = TargetHost(root / "b-host.json", log)
    return serve(Gateway(load_config(config), fabric=fabric))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
