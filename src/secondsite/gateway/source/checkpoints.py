"""Our checkpoints at one source: naming them, which of them are usable, and forgetting them (rule 9)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from secondsite.base.crash import crash_point, mark
from secondsite.fabrics.base import Source
from secondsite.gateway.source import plan

BEFORE_FORGET = mark("replicate.before-forget")
AFTER_FORGET = mark("replicate.after-forget")


class Checkpoints:
    """Used by the capturing thread alone, with no capture open: hosts refuse changes while a job runs."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._number = 0  # of the newest name given or seen
        self._lost_until = 0  # none up to this number can be counted from

    def seen(self, names: Iterable[str]) -> None:
        """Names in use anywhere: the next one's number is above all of theirs."""
        self._number = max([self._number, *(plan.checkpoint_number(name) for name in names)])

    def next_name(self, epoch: int) -> str:
        """A name never used before."""
        self._number += 1
        return plan.checkpoint_name(epoch, self._number, secrets.token_hex(4))

    def lost_all(self) -> None:
        """The source cannot count from the newest, although it may go on listing it: from none of them.

        What broke one bitmap of an image (a killed hypervisor, another image in its place) broke all.
        """
        self._lost_until = self._number

    def listed(self) -> list[str]:
        """Ours at the source, oldest first."""
        return list(self._source.checkpoints())

    def usable(self) -> list[str]:
        """Ours at the source without the lost ones, oldest first."""
        listed = self._source.checkpoints()
        return [name for name in listed if plan.checkpoint_number(name) > self._lost_until]

    def tidy(self, *, committed: str | None, newest: str) -> None:
        """Forget what rule 9 does not keep."""
        for name in plan.to_forget(self._source.checkpoints(), committed=committed, newest=newest):
            crash_point(BEFORE_FORGET)
            self._source.forget(name)
            crash_point(AFTER_FORGET)

    def drop_all(self) -> None:
        """Before everything is copied again no earlier checkpoint of ours is of use."""
        for name in self._source.checkpoints():
            self._source.forget(name)
