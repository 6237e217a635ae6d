"""What may stand in the way of being a standby, and of taking over."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class NotActive(SecondsiteError):
    """Whoever asks a standby for anything but whether it follows."""

    code = "server.standby"
    outcome = Outcome.UNAVAILABLE
    happened = "This server is a standby and does no work: the active one is {active}."
    cause = "It waits, with the newest state it could verify, for a person to have it take over."
    action = (
        "Use the active server; if that is lost: `secondsite server take-over` here. See RUNBOOK.md, standby "
        "takeover."
    )


class NotStandby(SecondsiteError):
    """The role is another."""

    code = "standby.not-standby"
    outcome = Outcome.REFUSED
    happened = "The server in {directory} is no standby."
    cause = "It is the active one, or it was never started with --standby."
    action = "Do this at the standby's machine, with its configuration; nothing was changed."


class StandbyNotSet(SecondsiteError):
    """No configuration for it."""

    code = "standby.not-set"
    outcome = Outcome.USAGE
    happened = "The configuration does not say where a standby follows from: {why}."
    cause = "The section [standby] is missing, or says too little."
    action = (
        'Add it, with store = "file:///srv/replicas" (the replica store of its own site) and active = "https://'
        'HOST"; see docs/standby.md.'
    )


class NothingToTakeOver(SecondsiteError):
    """No verified copy."""

    code = "standby.nothing-held"
    outcome = Outcome.NOT_FOUND
    happened = "This standby holds no state that it could verify: {why}."
    cause = "No backup of the server has reached the store yet, or the store cannot be read."
    action = (
        "See `secondsite server standby status`; where a backup is elsewhere, `secondsite server restore` "
        "brings it back."
    )


class ConfirmTakeover(SecondsiteError):
    """A person is asked."""

    code = "standby.confirm"
    outcome = Outcome.REFUSED
    happened = "Nothing was taken over: what cannot be excluded from here has to be said."
    cause = "{why}"
    action = 'Where that is so, run it again with --confirm "{sentence}".'


class ActiveLives(SecondsiteError):
    """It answers, and works."""

    code = "standby.active-lives"
    outcome = Outcome.REFUSED
    happened = "The active server {active} answers and is at work."
    cause = "It is not lost: what it does from now on until it is fenced would be lost."
    action = (
        "Have it stop in order, which loses nothing: `secondsite server hand-over` there, then this again; "
        "or add --although-active-answers."
    )


class ClaimedElsewhere(SecondsiteError):
    """Another standby was first."""

    code = "standby.claimed-elsewhere"
    outcome = Outcome.REFUSED
    happened = "Claim {number} in the store {store} is {url}'s, of {at}: it took over already."
    cause = "Another standby took over, or is in the middle of it."
    action = (
        "Use that server. If it is lost as well, and will not come back: run this again with --over-claim "
        "{number}."
    )


class ServerRuns(SecondsiteError):
    """Its process is there."""

    code = "standby.server-runs"
    outcome = Outcome.REFUSED
    happened = "A server is running in {directory}."
    cause = "A state directory is one server's: nobody else works with its database, or puts it aside."
    action = "Stop it (`systemctl stop secondsite-server`), then run this again."


class NotSuperseded(SecondsiteError):
    """It is the active one, as far as can be known."""

    code = "standby.not-superseded"
    outcome = Outcome.REFUSED
    happened = "This server, incarnation {incarnation}, is the active one as far as can be seen from here."
    cause = "No gateway told it of a later one, and the store {store} has no claim of one."
    action = (
        "Switch over in order: `secondsite server hand-over` here, `secondsite server take-over` at the "
        "standby, then this."
    )


class TakeoverBusy(SecondsiteError):
    """Two at once."""

    code = "standby.busy"
    outcome = Outcome.UNAVAILABLE
    happened = "Another command works with this standby's state in {directory}."
    cause = "A takeover is under way, or the standby is just taking a copy."
    action = "Wait for it to end, then run this again."


class StandbyDamaged(SecondsiteError):
    """A file of ours does not parse."""

    code = "standby.damaged"
    outcome = Outcome.DAMAGED
    happened = "The file {path} cannot be read: {why}."
    cause = "It was edited by hand, or its volume was damaged."
    action = (
        "role.json says which server this is: restore it from the other machine's knowledge, never by "
        "guessing. Files below standby/ may be removed: they are fetched again."
    )


class WrongClaimOver(SecondsiteError):
    """Not the newest."""

    code = "standby.claim-unknown"
    outcome = Outcome.REFUSED
    happened = "The newest claim is {newest}, not {number}."
    cause = "Another one was made meanwhile, or the number is mistyped."
    action = "Look at `secondsite server standby status`, and decide again."


class HelloRefused(SecondsiteError):
    """Not of this server."""

    code = "standby.hello-refused"
    outcome = Outcome.REFUSED
    happened = "Who says hello as a standby does not prove that it belongs to this server: {why}."
    cause = "It has another master key, is of another server, or its clock is wrong."
    action = "Copy master.key of the active server to the standby, and set both clocks."
