"""What is told at once and what is counted: a group for each rule and subject. Pure.

The first event of a subject is told at once. What follows within the rule's quiet time is counted and told as
one message when that time is over; so is a trouble that comes and goes within it. Where some event says that
the trouble is over, that is told too, and the group waits for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

# code of an event -> the codes of those that are over with it, beside what an event says itself
ENDS: dict[str, tuple[str, ...]] = {
    "certificate.renewed": ("certificate.expires-soon", "certificate.expired", "certificate.unusable"),
    "gateway.heard": ("gateway.silent",),
    "key.rotation-finished": ("key.rotation-failed", "key.rotation-waits"),
    "replicate.rpo-met": ("replicate.rpo-missed",),
    "scrub.done": ("scrub.failed",),
    "ship.link-back": ("ship.link-trouble",),
    "signals.dismissed": ("signals.suspicious",),
}
HAVE_AN_END = frozenset(code for codes in ENDS.values() for code in codes)


class Kind(enum.Enum):
    """What a message says."""

    FIRST = "First"  # something happened
    MORE = "More"  # it happened so often again
    OVER = "Over"  # it is well again
    TOGETHER = "Together"  # several messages, put together for a channel's rate
    TEST = "Test"


@dataclass(frozen=True)
class Group:
    """What was told of a subject. quiet_until None: it only waits until the trouble is over."""

    wrong: bool
    lasts: bool  # some event will say that it is over
    since: datetime
    quiet_until: datetime | None
    more: int = 0
    over_told: bool = False  # in this quiet time
    last: int = 0  # number of the newest event of it


@dataclass(frozen=True)
class Tell:
    """A message is due. more: how often it happened beside what was told; wrong: it is not over."""

    kind: Kind
    more: int = 0
    wrong: bool = True


def happened(
    group: Group | None, number: int, *, lasts: bool, quiet: timedelta, now: datetime
) -> tuple[Group, Tell | None]:
    """An event of the subject came."""
    if group is None or group.quiet_until is None or group.quiet_until <= now:
        return Group(True, lasts, now, now + quiet, last=number), Tell(Kind.FIRST)
    return replace(group, wrong=True, more=group.more + 1, last=number), None


def over(group: Group, *, quiet: timedelta, now: datetime) -> tuple[Group, Tell | None]:
    """An event came that says the subject is well again."""
    if not group.wrong:
        return group, None
    if group.over_told:  # it comes and goes: how it stands is told when the quiet time is over
        return replace(group, wrong=False), None
    until = group.quiet_until if group.quiet_until is not None else now + quiet
    done = replace(group, wrong=False, quiet_until=until, more=0, over_told=True)
    return done, Tell(Kind.OVER, group.more, wrong=False)


def quiet_ended(group: Group, *, quiet: timedelta, now: datetime) -> tuple[Group | None, Tell | None]:
    """The quiet time is over. None: the group is done with."""
    if group.more:
        told = Tell(Kind.MORE, group.more, group.wrong)
        return replace(group, more=0, over_told=False, quiet_until=now + quiet), told
    if group.wrong and group.lasts:
        return replace(group, quiet_until=None), None
    return None, None
