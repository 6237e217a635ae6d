"""Hosts of qcow2 bases: waiting until they have ended."""

from __future__ import annotations

import threading
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.gateway.basehost import BaseHost

SECONDS_MAX = 20.0


def gone(host: BaseHost) -> None:
    """Wait until no host of this image lives."""
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SECONDS_MAX
    while host.process() is not None:
        assert clock.monotonic() < deadline, f"the host of {host.path} does not end"
        clock.wait(never, 0.005)


def using(directory: Path) -> list[str]:
    """Command lines of hosts whose image lies below `directory`; ended ones nobody waited for have none."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode("utf-8", "replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0] == "qemu-nbd" and any(word.startswith(f"{directory}/") for word in words):
            found.append(" ".join(words))
    return found


def wait_gone(directory: Path) -> None:
    """Wait until no host has an image below `directory` open: the last one to leave ends it."""
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SECONDS_MAX
    while left := using(directory):
        assert clock.monotonic() < deadline, f"still there: {left}"
        clock.wait(never, 0.005)
