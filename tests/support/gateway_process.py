"""A whole gateway over a `ReplayedFabric` as a process of its own, to be killed at a mark."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.config import load_config
from secondsite.gateway.main import Gateway, serve
from secondsite.gateway.source import copying
from secondsite.gateway.source import firstcopying as seed
from support.guest_log import ReplayedFabric

if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    slice_bytes = int(os.environ.get("TEST_SLICE_BYTES", "0"))
    if slice_bytes:
        copying.Seed = functools.partial(seed.Seed, slice_bytes=slice_bytes)  # type: ignore[assignment,attr-defined]
    seed.SMALL_BYTES = 0  # a copy of a few MiB goes through several increments, as one of TiB does
    config, directory = map(Path, sys.argv[1:3])
    fabric = ReplayedFabric(directory, SystemClock())
    sys.exit(serve(Gateway(load_config(config), fabric=fabric)))
