"""What can stop a failover, and a person's decisions about one."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class FailoverExists(SecondsiteError):
    """One at a time."""

    code = "failover.exists"
    outcome = Outcome.REFUSED
    happened = "{machine} has a failover already: {id} on point {point}, {state}."
    cause = "A machine is taken over once; that one is neither committed nor rolled back."
    action = "Go on with it: change its point, commit it or roll it back (`secondsite failover status`)."


class FailoverUnknown(SecondsiteError):
    """No such failover."""

    code = "failover.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no failover {wanted} at this gateway."
    cause = "It belongs to another gateway, or the name is mistyped."
    action = "List them with `secondsite failover status`."


class FailoverDiffers(SecondsiteError):
    """The same operation with other wishes."""

    code = "failover.differs"
    outcome = Outcome.REFUSED
    happened = "The operation {id} is under way for {machine} on point {point}, with other settings."
    cause = "An operation's number stands for one request."
    action = "Use a new number, or ask for what was asked for first."


class ChecksFailed(SecondsiteError):
    """Looked at before anything was changed; every failure is listed."""

    code = "failover.prerequisites"
    outcome = Outcome.REFUSED
    happened = "{machine} was not taken over: {failures}."
    cause = "What is needed was looked at first; nothing was changed."
    action = "{actions}"


class AlreadyTakenOver(SecondsiteError):
    """The store says that another site failed it over."""

    code = "failover.taken-over"
    outcome = Outcome.REFUSED
    happened = "{machine} was taken over by {claimant} in epoch {epoch} already ({claimed_at})."
    cause = "The store knows one authority for a machine, and it is that one."
    action = "Roll that failover back where it was made, or begin at that site."


class PointNotLast(SecondsiteError):
    """A planned failover that would lose something."""

    code = "failover.point-not-last"
    outcome = Outcome.REFUSED
    happened = "{machine} was not moved: point {point} is not its newest, {newest} is."
    cause = "The source was not stopped, or something was captured after it was."
    action = "Stop the source again (`secondsite failover stop`), and move to the point that it names."


class NotStopped(SecondsiteError):
    """A planned failover without a stop that is in force: nobody could say that it loses nothing."""

    code = "failover.not-stopped"
    outcome = Outcome.REFUSED
    happened = "{machine} was not moved: no stop of its source is in force whose last point is {point}."
    cause = "It was not stopped in order, the stop was cancelled, or its proof failed or is not over."
    action = "Stop the source (`secondsite failover stop`); without it, fail over unplanned."


class FailoverInterrupted(SecondsiteError):
    """The gateway ended before the claim."""

    code = "failover.interrupted"
    outcome = Outcome.UNAVAILABLE
    happened = "The failover of {machine} ended before it was claimed; nothing was changed."
    cause = "The gateway ended. Hours may have passed since: it is not begun again by itself."
    action = "Look at the source again, and start it again."


class FailoverDefect(SecondsiteError):
    """A defect of ours ended a step."""

    code = "failover.defect"
    happened = "A step of the failover of {machine} failed: {kind}: {text}."
    cause = "A defect in secondsite, or an answer of the hypervisor it does not know; the log has the trace."
    action = "Repeat the step; report it with the gateway's log. The claim in the store stands as it was."


class NotRunning(SecondsiteError):
    """It is committed only after it was seen to run."""

    code = "failover.not-running"
    outcome = Outcome.REFUSED
    happened = "{machine} was not committed: {why}."
    cause = "After a commit there is no other point to turn to, so the machine has to be seen running first."
    action = (
        "Start it and look at its console, change its point, or roll back. "
        "See RUNBOOK.md, recovered machine does not boot."
    )


class NotAsAsked(SecondsiteError):
    """What differs from what was asked for is for a person to read before a commit."""

    code = "failover.not-as-asked"
    outcome = Outcome.REFUSED
    happened = "{machine} was not committed by itself: it is not what was asked for ({differs})."
    cause = "Somebody changed it at the hypervisor, or that made something else of what was asked."
    action = "Put it right, or commit it as it is by `secondsite failover commit`."


class WriterUnknown(SecondsiteError):
    """Nobody to give it back to."""

    code = "failover.writer-unknown"
    outcome = Outcome.REFUSED
    happened = "{machine} cannot be given back: who wrote it before is not known any more."
    cause = "The store keeps the name of each epoch's writer, and has lost this one."
    action = "Commit it here, then protect it in the other direction."


class PlannedStopExists(SecondsiteError):
    """One at a time."""

    code = "planned.exists"
    outcome = Outcome.REFUSED
    happened = "{machine} is being stopped already: {state}, operation {operation}."
    cause = "A machine is stopped once; that one is not over."
    action = "Go on with that operation, or cancel it once it waits."


class PlannedStopRefused(SecondsiteError):
    """It could not be moved with nothing lost."""

    code = "planned.refused"
    outcome = Outcome.REFUSED
    happened = "{machine} was not asked to shut down: {why}."
    cause = "Its last changes could not be carried over, and it would stay off until they can."
    action = "See to that first; the machine runs on."


class PlannedStopUnknown(SecondsiteError):
    """Nothing to show or to cancel."""

    code = "planned.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} was not stopped by this gateway."
    cause = "Nobody asked for it, or another gateway did it."
    action = "Stop it with `secondsite failover stop`."


class SourceDiffers(SecondsiteError):
    """The proof failed: something would be lost."""

    code = "planned.differs"
    outcome = Outcome.DAMAGED
    happened = "Point {point} does not hold what is on the disks of {machine}: {disks} differ."
    cause = "Tracking lied, or something wrote to its images past the hypervisor."
    action = (
        "Cancel the stop and have everything compared: `secondsite resync {machine}`; then stop it again."
    )


class FailoverRecordUnwritten(SecondsiteError):
    """A full disk, mostly."""

    code = "failover.record-unwritten"
    outcome = Outcome.UNAVAILABLE
    happened = "The record {path} of a failover cannot be written: {why}."
    cause = "The volume of the gateway's state is full or read-only. What the store says stands."
    action = "Make room on that volume, then repeat what was asked for; what was under way goes on."


class FailoverRecordDamaged(SecondsiteError):
    """A record does not parse."""

    code = "failover.record-damaged"
    outcome = Outcome.DAMAGED
    happened = "The record {path} of a failover cannot be read: {why}."
    cause = "The gateway's state directory lost or changed bytes, or the file was edited by hand."
    action = "Put the file back from a copy. The claim is in the store, the machine runs on meanwhile."


class MachineNotHeld(SecondsiteError):
    """Nothing to decide."""

    code = "held.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} is not held at this gateway."
    cause = "No failover of it was seen, or it was decided already."
    action = "List held machines with `secondsite held list`."


class DecidedOnAnother(SecondsiteError):
    """A decision that was repeated, or came late: it was about an earlier time."""

    code = "held.another-claim"
    outcome = Outcome.REFUSED
    happened = "Nothing was done to {machine}: it was decided on epoch {decided}, and epoch {epoch} holds it."
    cause = "{claimant} is its authority now. Whoever decided had not seen that."
    action = "Look at it again (`secondsite held list`), and decide anew if that is still meant."


class HeldRecordDamaged(SecondsiteError):
    """A record does not parse."""

    code = "held.record-damaged"
    outcome = Outcome.DAMAGED
    happened = "The record {path} of a held machine cannot be read: {why}."
    cause = "The gateway's state directory lost or changed bytes, or the file was edited by hand."
    action = (
        "Move the file away: the machine stays isolated at its host, and a new record is made as soon as the "
        "other site answers."
    )


class CannotAsk(SecondsiteError):
    """Its target refuses this gateway; told and shown, never raised."""

    code = "held.cannot-ask"
    outcome = Outcome.REFUSED
    happened = "Whether {machine} was taken over elsewhere cannot be asked: {why}. Nothing isolates it here."
    cause = (
        "A certificate ran out while this gateway was away, it was revoked, unregistered or unpaired, or the "
        "machine is not in its target's list: that tells it nothing."
    )
    action = (
        "Look at the other site first (`secondsite failover status`): where {machine} runs there, shut this "
        "copy down. Then enrol this gateway again with a key of `secondsite vault key --again`, or give it "
        "another certificate (`secondsite certificate issue`)."
    )
