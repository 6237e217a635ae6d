"""What a person says, word for word, to what cannot be undone by itself. Pure.

The gateways ask for the same sentences on their own command line: whoever has said one has understood what it
is about, at whichever end.
"""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.reversals import removed


class ConfirmationMissing(SecondsiteError):
    """Danger has to be said."""

    code = "failover.confirmation-missing"
    outcome = Outcome.REFUSED
    happened = "Nothing was done to {machine}: this cannot be undone by itself, and was not confirmed."
    cause = "{why}"
    action = 'Say so, word for word: --confirm "{confirm}".'


def taken_over(name: str, writer: str) -> str:
    """To a failover of a machine whose source was not stopped in order."""
    return f"{name} may still run at {writer or 'its source'}"


def stopped(name: str, writer: str) -> str:
    """To the failover of a machine that was stopped in order; the server says it itself, having seen it."""
    return f"{name} was stopped at {writer or 'its source'}"


def moved(name: str, source: str, target: str) -> str:
    """To a planned failover: there is downtime from now on until it runs at the other site."""
    return f"{name} is shut down at {source} and moves to {target}"


def lost(name: str) -> str:
    """To what throws away the writes of the machine since it was taken over."""
    return f"what {name} wrote here is lost"


def kept(name: str) -> str:
    """To a commit."""
    return f"{name} stays here and has no other point to turn to"


def former(name: str) -> str:
    """To giving up the writes on points the machine does not run on any more."""
    return f"what {name} wrote on former points is lost"


def released(name: str, claimant: str) -> str:
    """To letting a held machine run again."""
    return f"{name} may run at {claimant} as well"


def why_released(claimant: str, epoch: int) -> str:
    """The danger of it; epoch: of the claim that is decided about."""
    harm = "two copies of a machine on one network harm each other."
    return f"{claimant} is the authority in epoch {epoch}; {harm}"


def discarded(name: str, remove: str = "nothing") -> str:
    """To shutting a held machine off for good. remove: nothing, machine or machine-and-disks."""
    if remove != "nothing":
        return removed(name, disks=remove == "machine-and-disks")
    return f"what {name} wrote here last is given up"


def forgotten(name: str) -> str:
    """To giving up an item whose failover stands and whose gateways are gone."""
    return f"{name} may run at both sites and nobody looks after it"


def require(machine: str, said: str, wanted: str, why: str) -> None:
    """Raise ConfirmationMissing unless the sentence was said; a full stop at its end is forgiven."""
    if said.strip().rstrip(".") != wanted:
        raise ConfirmationMissing(machine=machine, why=why, confirm=wanted)
