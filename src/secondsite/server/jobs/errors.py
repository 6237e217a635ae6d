"""What can go wrong with jobs, in sentences."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class JobNotFound(SecondsiteError):
    """There is no such job, or no longer."""

    code = "job.not-found"
    outcome = Outcome.NOT_FOUND
    happened = "There is no job {job!r}."
    cause = "A mistyped id, or a job that ended long ago and was removed."
    action = "List the jobs and take an id from there."


class JobKindUnknown(SecondsiteError):
    """No definition has that name."""

    code = "job.kind"
    outcome = Outcome.USAGE
    happened = "There is no kind of job called {kind!r}."
    cause = "A mistyped name, or a job of a newer version of secondsite."
    action = "Use one of these: {known}."


class ApprovalNeeded(SecondsiteError):
    """An answer is not enough."""

    code = "job.approval-needed"
    outcome = Outcome.REFUSED
    happened = "The job {job} waits for an approval of {operation}, not for an answer."
    cause = "The vault's settings want a second person for it."
    action = "Let somebody with the role approver decide: `secondsite job approve {job}`, or `reject`."


class LockHeld(SecondsiteError):
    """Another live job works on the same thing."""

    code = "job.locked"
    outcome = Outcome.REFUSED
    happened = "{key} is being worked on by the job {job} ({title})."
    cause = "One live job a machine: two at once would undo each other's work."
    action = "Wait until that job has ended, or cancel it, and try again."


class LeaseLost(SecondsiteError):
    """Another worker has the job now: what this one still does counts for nothing."""

    code = "job.lease-lost"
    outcome = Outcome.REFUSED
    happened = "The job {job} is no longer this worker's (it had epoch {epoch})."
    cause = "The worker did not show a sign of life for too long, and a peer took the job over."
    action = "Nothing: the peer goes on with the step. Look at the server's load if it happens often."


class DefinitionChanged(SecondsiteError):
    """The steps in the database are not this program's, and nothing says how to get from there to here."""

    code = "job.definition-changed"
    outcome = Outcome.REFUSED
    happened = "The job's steps are of version {found} of {kind}, this server has version {here}: {why}."
    cause = "The server was updated while the job was under way."
    action = "Start the job again with `restart`, or run the former version of secondsite until it has ended."


class StepBroken(SecondsiteError):
    """A step ended with an error nobody foresaw."""

    code = "job.step-broken"
    happened = "The step {step} ended unexpectedly: {error}."
    cause = "A defect of secondsite."
    action = "Retry the job; if it fails again, report it with the server's log of that minute."


class StepGivenUp(SecondsiteError):
    """A step took its workers with it too often."""

    code = "job.step-given-up"
    happened = "The step {step} was begun {lost} times by servers that then vanished."
    cause = "The step makes the server end (out of memory?), or the servers are restarted all the time."
    action = "Find out why the servers end, then retry the job."


class OutputMissing(SecondsiteError):
    """A step asked for what an earlier one did not give."""

    code = "job.output-missing"
    happened = "The step {step} has left no output."
    cause = "A defect of secondsite: a step asks for the output of one that gives none."
    action = "Report it."


class CancelAsked(SecondsiteError):
    """A job that is about to be taken back starts nothing new."""

    code = "job.cancel-asked"
    outcome = Outcome.REFUSED
    happened = "The job {job} starts no child job any more: a cancel was asked for."
    cause = "A person cancelled the job while the step ran."
    action = "Nothing: what was done is taken back."
