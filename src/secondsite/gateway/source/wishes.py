"""Points somebody waits for: asked for now, taken with the next cycle, told once committed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.messages.gateway import PointTaken
from secondsite.gateway.source.cycle import Captured
from secondsite.transfer.protocols import CommittedPoint


class PointNotTaken(SecondsiteError):
    """A point was asked for and did not come in time."""

    code = "replicate.point-not-taken"
    outcome = Outcome.UNAVAILABLE
    happened = "No point of {machine} was committed within {seconds:.0f} s: {why}."
    cause = "The link is slow or cut, the machine is busy at its host, or its first copy is still running."
    action = "Look at `secondsite status` and ask again once the machine is Protected."


@dataclass(eq=False)
class PointWish:
    """A point somebody waits for."""

    done: threading.Event = field(default_factory=threading.Event)
    taken: PointTaken | None = None


class Wishes:
    """Open wishes, and those that a captured instant will fulfil. The owner's lock guards every call."""

    def __init__(self) -> None:
        self.open: list[PointWish] = []
        self._under_way: dict[str, list[PointWish]] = {}

    def add(self) -> PointWish:
        """Somebody asks."""
        wish = PointWish()
        self.open.append(wish)
        return wish

    def withdraw(self, wish: PointWish) -> None:
        """Nobody waits any more."""
        if wish in self.open:
            self.open.remove(wish)

    def captured(self, checkpoint: str, wishes: list[PointWish]) -> None:
        """The instant `checkpoint` fulfils them, if it is committed."""
        self._under_way[checkpoint] = wishes
        self.open = [wish for wish in self.open if wish not in wishes]

    def given_up(self, checkpoint: str) -> None:
        """That instant will not be committed: its wishes are open again."""
        self.open += self._under_way.pop(checkpoint, [])

    def committed(self, captured: Captured, point: CommittedPoint) -> None:
        """Tell those who waited."""
        for wish in self._under_way.pop(point.checkpoint, []):
            wish.taken = PointTaken(
                number=point.number,
                at=point.given_at,
                consistency=point.consistency,
                frozen_seconds=captured.proposal.frozen_seconds,
                note=captured.note,
            )
            wish.done.set()
