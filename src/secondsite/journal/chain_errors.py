"""Why a journal refuses a record."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ChainBroken(SecondsiteError):
    """The records are not the chain that was written."""

    code = "journal.chain-broken"
    outcome = Outcome.DAMAGED
    happened = "The journal of machine {machine} is not whole at record {number}: {why}."
    cause = "Objects were deleted or changed outside secondsite, or the store is an incomplete copy."
    action = (
        "Restore the record from a copy of the store; points from there on cannot be trusted without it."
        " See RUNBOOK.md, damaged object."
    )


class PointUnknown(SecondsiteError):
    """There is no such point."""

    code = "journal.point-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "Machine {machine} has no recovery point {number}."
    cause = "It was promoted into the base or pruned by the retention, or the number is mistyped."
    action = "List the points with `secondsite points list` and choose one shown there."


class EpochSuperseded(SecondsiteError):
    """Another writer has become the authority."""

    code = "journal.epoch-superseded"
    outcome = Outcome.REFUSED
    happened = "Machine {machine}: a point of epoch {epoch} was refused, epoch {current} is in force."
    cause = "Another writer claimed the machine (a failover, a resync or a reversal): {claim}."
    action = "Stop this source until a person decides which copy of the machine goes on."


class HeadMoved(SecondsiteError):
    """The journal is not where the caller saw it."""

    code = "journal.head-moved"
    outcome = Outcome.REFUSED
    happened = "The journal of machine {machine} moved on from record {expected} to {number}."
    cause = "Another writer added a point or a claim meanwhile."
    action = "Look at the newest point again and repeat the command if it is still what you want."


class NotFresh(SecondsiteError):
    """A first copy arrives where there are points already."""

    code = "journal.not-fresh"
    outcome = Outcome.REFUSED
    happened = "A first copy of machine {machine} was refused: its journal has point {number} already."
    cause = "The first copy came another way meanwhile, e.g. on media that were imported."
    action = "None: the source compares its disks with that point, and sends what differs."


class ParentMismatch(SecondsiteError):
    """The proposal's changes are counted from another instant than the newest point."""

    code = "journal.parent-mismatch"
    outcome = Outcome.REFUSED
    happened = (
        "Machine {machine}: changes since checkpoint {parent} were refused, the newest point is {newest}."
    )
    cause = "The acknowledgement of a commit was lost, or the source was rolled back."
    action = "None: the source asks for the newest point and counts its changes from there."


class SegmentsMissing(SecondsiteError):
    """Segments of the proposal are not in the store, or not as long as they should be."""

    code = "journal.segments-missing"
    outcome = Outcome.UNAVAILABLE
    happened = "Machine {machine}: {count} segments of the point are not in the store, the first is {first}."
    cause = "An upload did not end, or the store lost objects."
    action = "None: the source sends the missing segments again and repeats the commit."

    def __init__(self, *, machine: str, names: list[str]) -> None:
        self.names = names
        super().__init__(machine=machine, count=len(names), first=names[0])


class ProposalInvalid(SecondsiteError):
    """The proposal contradicts itself or the journal."""

    code = "journal.proposal-invalid"
    outcome = Outcome.REFUSED
    happened = "Machine {machine}: a point was refused: {why}."
    cause = "A fault of the source's program, or two sources with one identity."
    action = "Report it with the logs of both gateways; the points before are not touched."
