"""What can stop a reversal, and what follows a committed failover."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ReverseUnknown(SecondsiteError):
    """There is none."""

    code = "reverse.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} was not reversed onto at this gateway."
    cause = "Nobody asked for it, or another gateway did it."
    action = "See `secondsite held list`; begin it with `secondsite held reverse`."


class ReverseExists(SecondsiteError):
    """One at a time."""

    code = "reverse.exists"
    outcome = Outcome.REFUSED
    happened = "{machine} is being reversed onto already: {state}, operation {operation}."
    cause = "It was asked for before, by somebody else or under another number."
    action = "Go on with that operation, or take it back first (`secondsite held take-back`)."


class ReverseRefused(SecondsiteError):
    """Looked at before anything was changed; every failure is listed."""

    code = "reverse.prerequisites"
    outcome = Outcome.REFUSED
    happened = "Nothing was done to {machine}: {failures}."
    cause = "What is needed was looked at first; nothing was changed."
    action = "{actions}"


class ReverseSuperseded(SecondsiteError):
    """Its store is written by who took the machine over later, of which this gateway has not heard."""

    code = "reverse.superseded"
    outcome = Outcome.REFUSED
    happened = "{other} writes {machine} here in epoch {epoch}, later than all that is known of {writer}."
    cause = "{other} took the machine over from {writer}, or from who had it since."
    action = (
        "Leave the store to {other}: take the reversal back if it was begun, and see at {other} who has the "
        "machine (`secondsite failover status`)."
    )


class MachineGone(SecondsiteError):
    """The old copy is not here."""

    code = "reverse.machine-gone"
    outcome = Outcome.REFUSED
    happened = "{machine} is not at this host any more: there is nothing to reverse onto."
    cause = "It was removed, or it is at another host."
    action = (
        "Nothing is needed here: protect the machine at {writer} to this site, or to any other. Its first "
        "copy is a plain one, everything travels once. See RUNBOOK.md, failback to new hardware."
    )


class DisksGone(SecondsiteError):
    """None of its disks can be begun with."""

    code = "reverse.disks-gone"
    outcome = Outcome.REFUSED
    happened = "None of the disks of {machine} can be begun with: {why}."
    cause = "Its images were removed, or lie on what is no file of this host."
    action = (
        "Nothing is needed here: protect the machine at {writer} to this site, or to any other. Its first "
        "copy is a plain one, everything travels once. See RUNBOOK.md, failback to new hardware."
    )


class MovedForGood(SecondsiteError):
    """Somebody completed the migration."""

    code = "reverse.migration-completed"
    outcome = Outcome.REFUSED
    happened = "{machine} is neither reversed nor failed back: its migration was completed at {site}."
    cause = "Somebody said there that it stays for good."
    action = (
        "Discard the copy at the site it came from. To protect the machine, protect it anew, as any other."
    )


class ReverseComplete(SecondsiteError):
    """Too late to take it back."""

    code = "reverse.complete"
    outcome = Outcome.REFUSED
    happened = "The reversal of {machine} was not taken back: {writer} has point {point} here."
    cause = "The machine is protected in the other direction by now."
    action = "End its protection at {writer} first and delete its replica here, or go on: it is protected."


class ReverseDamaged(SecondsiteError):
    """A record does not parse."""

    code = "reverse.record-damaged"
    outcome = Outcome.DAMAGED
    happened = "The record {path} of a reversal cannot be read: {why}."
    cause = "The gateway's state directory lost or changed bytes, or the file was edited by hand."
    action = "Move the file away and begin the reversal again; the machine stays off and guarded meanwhile."


class ReverseDefect(SecondsiteError):
    """A defect of ours ended a step."""

    code = "reverse.defect"
    happened = "A step of the reversal of {machine} failed: {kind}: {text}."
    cause = "A defect in secondsite, or an answer of the hypervisor it does not know; the log has the trace."
    action = "Ask for it again under the same number; report it with the gateway's log."


class NotRetired(SecondsiteError):
    """The replica is the machine's only other copy, or its only holder."""

    code = "retire.needed"
    outcome = Outcome.REFUSED
    happened = "What is left of the replica of {machine} was not deleted: {why}."
    cause = "Until the machine has a point elsewhere, or moved for good, it may be needed."
    action = "Protect the machine to its new target and wait for its first point, or complete its migration."


class NotMigrated(SecondsiteError):
    """It is on its way somewhere else."""

    code = "migration.refused"
    outcome = Outcome.REFUSED
    happened = "The migration of {machine} was not completed: {why}."
    cause = "A migration is the last word on a machine's move: what is under way comes first."
    action = "End what is named, or leave the migration open."
