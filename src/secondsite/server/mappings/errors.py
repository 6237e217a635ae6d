"""What can go wrong with pairs and mappings, in sentences."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class PairUnknown(SecondsiteError):
    """None of that name."""

    code = "pair.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no pair {pair!r} in the vault {vault}."
    cause = "A mistyped name, or it was deleted. A pair goes by its id or by the name of either cloud."
    action = "List them with `secondsite pair list`."


class PairRefused(SecondsiteError):
    """The clouds do not make a pair."""

    code = "pair.refused"
    outcome = Outcome.REFUSED
    happened = "The clouds {primary} and {target} were not paired: {why}."
    cause = (
        "A pair needs two clouds of one vault, the primary one published, each with at least one host that a "
        "registered gateway tells of, and at the target a gateway that is not the only one of the primary."
    )
    action = "See `secondsite cloud list` for the clouds, their hosts and gateways; {action}"


class CloudInPair(SecondsiteError):
    """A cloud is in one pair only."""

    code = "pair.cloud-taken"
    outcome = Outcome.REFUSED
    happened = "The cloud {cloud} is in a pair already: {primary} -> {target}."
    cause = "A cloud belongs to one pair, as the primary or as the target."
    action = (
        "To change where its machines go, delete that pair (`secondsite pair delete`) and make the new one."
    )


class TargetFixed(SecondsiteError):
    """A pair's clouds stay what they are."""

    code = "pair.target-fixed"
    outcome = Outcome.REFUSED
    happened = "The target of the pair {primary} -> {target} was not changed."
    cause = "Replicas lie at the target that was chosen: another one would begin them all anew, unnoticed."
    action = "Delete the pair (`secondsite pair delete`) and create it anew with the other target."


class PairInUse(SecondsiteError):
    """Protected machines stand on it."""

    code = "pair.in-use"
    outcome = Outcome.REFUSED
    happened = "The pair {primary} -> {target} was not deleted: {uses}."
    cause = "What is protected goes where the pair says."
    action = "End those protections first; then delete the pair."


class HostsNotReady(SecondsiteError):
    """Some hosts do not reach the target."""

    code = "pair.hosts-not-ready"
    outcome = Outcome.FAILED
    happened = "{failed} of {total} hosts of the cloud {primary} cannot replicate to {target}: {hosts}."
    cause = "{cause}"
    action = (
        "{action} Then retry the job: all hosts are asked again. Or cancel it: the pair is taken back. "
        "Machines on the other hosts can be protected meanwhile."
    )


class MappingRefused(SecondsiteError):
    """What was to be saved could not work."""

    code = "mapping.refused"
    outcome = Outcome.REFUSED
    happened = "The {kind} mapping of the pair {primary} -> {target} was not saved: {why}."
    cause = "{cause}"
    action = "{action}"


class NotPaired(SecondsiteError):
    """Nothing says where a machine goes."""

    code = "pair.none"
    outcome = Outcome.REFUSED
    happened = "The cloud {cloud} is the primary of no pair."
    cause = "Where machines go is decided for their cloud, once, by pairing it with another."
    action = "Pair it: `secondsite pair create VAULT {cloud} TARGET`."
