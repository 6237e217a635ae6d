"""What can be in the way of protecting a machine in the other direction, or of failing it back."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class TurnedBack(SecondsiteError):
    """What a job waits for will not come."""

    code = "item.turned-back"
    outcome = Outcome.REFUSED
    happened = "{name} is not being protected from {gateway} any more: its item was turned back meanwhile."
    cause = "Its gateway said that it protects nothing of it, while no job was working on it."
    action = "Cancel this job, then begin again with `secondsite item reprotect`."


class Migrated(SecondsiteError):
    """There is no way back any more."""

    code = "item.migrated"
    outcome = Outcome.REFUSED
    happened = "{name} is not protected in the other direction: its migration to {gateway} was completed."
    cause = "Somebody said that it stays there for good."
    action = "End this protection (`secondsite item disable`), then protect the machine there as any other."


class RecoveryMachineGone(SecondsiteError):
    """The machine that was taken over is not there, or nobody has told of it."""

    code = "item.recovery-machine-gone"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} has not told of the machine {name} within {seconds:.0f} s."
    cause = "The machine was deleted at that site, or moved to a host that this gateway does not see."
    action = (
        "Read the site (`secondsite site read {gateway}`) and look for it (`secondsite site machines`); then "
        "retry the job. A machine that was deleted can only be recovered from what its old site still has."
    )


class NotHeldYet(SecondsiteError):
    """Its old site does not know that it lost it."""

    code = "item.not-held-yet"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} has not isolated its old copy of {name} within {seconds:.0f} s."
    cause = "It has not learnt of the failover yet: it reaches neither its target nor this server for long."
    action = "See `secondsite held list` at {gateway} and its log; then retry the job."


class NoWayBack(SecondsiteError):
    """The new source does not reach its target."""

    code = "item.no-way-back"
    outcome = Outcome.REFUSED
    happened = "Gateway {source} does not reach gateway {target}: {why}"
    cause = "The traffic of a return needs a way from the site that has the machine now to the other one."
    action = "{action} Then retry the job."


class ReturnRefused(SecondsiteError):
    """Looked at first; nothing was changed."""

    code = "item.return-prerequisites"
    outcome = Outcome.REFUSED
    happened = "{name} cannot be protected from {source} to {target} now: {failures}."
    cause = "What is needed was looked at first; nothing was changed."
    action = "{actions}"


class SiteUnread(SecondsiteError):
    """What the target's site has is not known."""

    code = "item.site-unread"
    outcome = Outcome.REFUSED
    happened = "The site of gateway {gateway} was never read: its pools and networks are not known."
    cause = "The gateway was enrolled a moment ago, or its hypervisor does not answer."
    action = "Read it (`secondsite site read {gateway}`), which says what is wrong; then retry the job."


class TargetIsSource(SecondsiteError):
    """It runs there."""

    code = "item.return-to-itself"
    outcome = Outcome.REFUSED
    happened = "{name} runs at gateway {gateway} now and cannot be protected to it."
    cause = "Its replica has to be at another site."
    action = "Name another gateway, or none: then it is the site the machine came from."


class ReversalStopped(SecondsiteError):
    """The old site could not make room for the other direction."""

    code = "item.reversal-stopped"
    outcome = Outcome.FAILED
    happened = "Gateway {gateway} cannot take the old disks of {name} for the other direction: it is {state}."
    cause = "Somebody took it back there meanwhile."
    action = "Retry the job to begin it anew, or cancel it: then the machine is held there as before."
