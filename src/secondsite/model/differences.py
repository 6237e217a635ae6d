"""How a machine that was taken over is not what was asked for, in the words of gateways and of the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

# The check which says that it executes; that it does not is told by others.
RUNNING = "running"


class Checked(Protocol):
    """One thing that was looked at."""

    @property
    def name(self) -> str:
        """What was."""

    @property
    def passed(self) -> bool:
        """Whether it is as it was asked for."""

    @property
    def cause(self) -> str:
        """How it is not."""


def differences(checks: Iterable[Checked]) -> str:
    """All that differs; empty where nothing does."""
    return "; ".join(f"{one.name}: {one.cause}" for one in checks if not one.passed and one.name != RUNNING)


def not_as_asked(differs: str) -> str:
    """What a person should know before a commit; empty where nothing differs."""
    return f"It is not what was asked for: {differs}." if differs else ""
