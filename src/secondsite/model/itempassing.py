"""States of an item that a job leads out of, and what does where that job is gone. Pure.

A server that was restored from a backup has items in the middle of what its jobs did, and those jobs are for
a person to look at: they may have ended long ago, or never begun. So every such state is led on by what the
gateways tell, or offers an operation that leads on; none needs the job that brought the item there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from secondsite.model.items import ProtectedState


class LedBy(enum.Enum):
    """Who knows where an item in a passing state is."""

    SOURCE = "what the source reports of its replication"
    TARGET = "what the target reports of its failovers"
    BOTH = "which of its two gateways protects the machine, and towards whom"
    PERSON = "the operation that began it, which may be asked for again"
    ENDED = "what both gateways report to be gone; the end may be asked for again as well"


_S = ProtectedState
PASSING: Mapping[ProtectedState, LedBy] = {
    _S.ENABLING: LedBy.SOURCE,
    _S.COPYING: LedBy.SOURCE,
    _S.RESYNCHRONIZING: LedBy.SOURCE,
    _S.FINALIZING: LedBy.PERSON,
    _S.DISABLING: LedBy.ENDED,
    _S.PLANNED: LedBy.TARGET,
    _S.PLANNED_COMPLETING: LedBy.TARGET,
    _S.UNPLANNED: LedBy.TARGET,
    _S.UNPLANNED_COMPLETING: LedBy.TARGET,
    _S.CHANGING: LedBy.TARGET,
    _S.COMMITTING: LedBy.TARGET,
    _S.CANCELLING: LedBy.TARGET,
    _S.REPROTECTING: LedBy.BOTH,
}
# The words of the field for what is under way; `Resynchronizing` is a word of ours.
UNDER_WAY: tuple[str, ...] = ("Initiated", "InProgress", "InProgressOnRecovery", "Completing")
UNDER_WAY += ("EnablingProtection", "DisablingProtection", "Resynchronizing")
# Looked at with every report, whether it says something new or not: a job may have ended meanwhile.
LOOKED_AT = frozenset(PASSING) - {_S.ENABLING, _S.COPYING, _S.RESYNCHRONIZING, _S.FINALIZING} | {
    _S.DISABLING_FAILED,
    _S.REPROTECT_FAILED,
    _S.PLANNED_COMPLETED,
    _S.PLANNED_NOT_COMPLETED,
    _S.UNPLANNED_COMPLETED,
    _S.UNPLANNED_NOT_COMPLETED,
    _S.CHANGE_FAILED,
    _S.COMMIT_FAILED,
    _S.CANCEL_FAILED,
}
