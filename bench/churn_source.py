"""A source gateway over the simulated hypervisor of `churn_host`; it ends with its standard input.

    python -m bench.churn_source ROOT HOST_DIRECTORY

It prints ``ready`` once the gateway runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.churn_fabric import HostFabric
from secondsite.base.memory import give_back_large_buffers
from secondsite.gateway.common.config import load_config
from secondsite.gateway.main import Gateway
from support.gateway_pair import A


def main() -> None:
    """See the module's text."""
    give_back_large_buffers()
    fabric = HostFabric(Path(sys.argv[2]))
    gateway = Gateway(load_config(Path(sys.argv[1]) / A / "gateway.toml"), fabric=fabric)
    gateway.start()
    print("ready", flush=True)
    sys.stdin.read()
    gateway.stop()


if __name__ == "__main__":
    main()
