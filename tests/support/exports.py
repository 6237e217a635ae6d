"""Processes that serve points: they outlive their gateway by design, and must not outlive a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from secondsite.gateway.recovery.exportdir import is_served
from support.until import until


def end_exports(root: Path) -> None:
    """End those of the gateways below `root`, each in a directory of its own, as their restarted hosts do."""
    for run in root.glob("*/state/exports/*/run.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(run.read_text())["process"], signal.SIGTERM)
        until(lambda directory=run.parent: not is_served(directory), "the end of an export")  # type: ignore[misc]
