"""What people want of one running replication: that it rests, that everything is compared again.

A replication that rests captures nothing. The host goes on tracking changes, what was captured is sent and
committed, and the next cycle after it holds all that changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.firstcopy import FirstCopy


class CaptureRests(SecondsiteError):
    """A copy is paused between two slices; it goes on there."""

    code = "replicate.capture-rests"
    outcome = Outcome.UNAVAILABLE
    happened = "The copy of {machine} was paused by {by}."
    cause = "Somebody asked for it."
    action = "Resume it with `secondsite resume`; it goes on with the slice it had come to."


def not_told(_: int) -> None:
    """Nobody keeps the number."""


@dataclass
class Orders:
    """Of one machine; the replication's lock guards changes, its capturing thread reads."""

    paused_by: str = ""  # "": capture goes on
    ending: bool = False  # what was captured is committed, then the loop ends
    resync: int = 0
    resynced: int = 0  # the last one that was done
    keep: Callable[[int], None] = not_told  # makes `resynced` durable
    first_copy: FirstCopy | None = None  # when it may begin; None: at once

    @property
    def rests(self) -> bool:
        """Whether nothing is to be captured."""
        return bool(self.paused_by) or self.ending

    @property
    def why_compare(self) -> str:
        """Why everything is to be compared; empty: nobody asked."""
        return f"it was asked for (resync {self.resync})" if self.resync > self.resynced else ""

    def require_capture(self, machine: str) -> None:
        """Raise CaptureRests while it is paused."""
        by = self.paused_by
        if by:
            raise CaptureRests(machine=machine, by=by)

    def copied(self, number: int) -> None:
        """A copy of everything that began when `number` was the newest order is committed."""
        if number > self.resynced:
            self.resynced = number
            self.keep(number)
