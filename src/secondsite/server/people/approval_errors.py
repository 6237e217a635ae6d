"""What can go wrong with approvals, in sentences."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ApprovalNone(SecondsiteError):
    """Nothing is asked."""

    code = "approval.none"
    outcome = Outcome.REFUSED
    happened = "The job {job} waits for no approval."
    cause = "It was decided already, the job went on or was cancelled, or it never asked."
    action = "See what waits with `secondsite job approvals`."


class FourEyes(SecondsiteError):
    """Somebody else must do it."""

    code = "approval.four-eyes"
    outcome = Outcome.REFUSED
    happened = "{who} cannot approve what the job {job} asks: {why}."
    cause = "An approval is another person's than who wants it, and nobody's counts twice."
    action = "Ask somebody else who has the role approver on the vault."


class ApprovalRejected(SecondsiteError):
    """Somebody said no."""

    code = "approval.rejected"
    outcome = Outcome.REFUSED
    happened = "{who} rejected {operation}: {why}."
    cause = "It needs the approval of another person, who did not give it."
    action = "Talk to them; `secondsite job retry` asks anew."


class ApprovalExpired(SecondsiteError):
    """Nobody said anything."""

    code = "approval.expired"
    outcome = Outcome.REFUSED
    happened = "Nobody decided on {operation} until {at}."
    cause = "It needs the approval of another person, and none looked at it in time."
    action = "Tell an approver of the vault; `secondsite job retry` asks anew."


class ApprovalUnknown(SecondsiteError):
    """No such operation."""

    code = "approval.operation-unknown"
    outcome = Outcome.USAGE
    happened = "Nothing asks for an approval of {operation!r}."
    cause = "A mistyped name, or an operation of another version."
    action = "Use one of these: {known}."
