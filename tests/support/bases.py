"""Hosts of qcow2 bases: waiting until they have ended."""

from __future__ import annotations

from pathlib import Path

from secondsite.gateway.target.basehost import BaseHost
from support.until import until

SECONDS_MAX = 20.0


def gone(host: BaseHost) -> None:
    """Wait until no host of this image lives."""
    until(lambda: host.process() is None, f"the end of the host of {host.path}", SECONDS_MAX)


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
    until(lambda: not using(directory), f"the end of all hosts below {directory}", SECONDS_MAX)
