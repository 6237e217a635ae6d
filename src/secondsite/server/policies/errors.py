"""Why a policy is refused, one class a reason."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class PolicyUnknown(SecondsiteError):
    """No such policy."""

    code = "policy.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no replication policy {policy!r} in this vault."
    cause = "A mistyped name, it was deleted, or it belongs to another vault."
    action = "See `secondsite policy list VAULT`."


class PolicyNameTaken(SecondsiteError):
    """Two policies of one name would be mistaken for each other."""

    code = "policy.name-taken"
    outcome = Outcome.REFUSED
    happened = "There is a replication policy {name!r} in this vault already."
    cause = "Names of policies are unique in their vault, capital letters or not; each has a failback policy."
    action = "Choose another name, or change or delete that policy."


class PolicyInUse(SecondsiteError):
    """Items would be left without one."""

    code = "policy.in-use"
    outcome = Outcome.REFUSED
    happened = "The replication policy {name!r} was not deleted: {uses}."
    cause = (
        "An item always replicates by a policy, and the failback policy goes with the one it was made with."
    )
    action = "Give those items another policy, or disable their protection, then delete it."


class PolicyRefused(SecondsiteError):
    """It makes no sense."""

    code = "policy.refused"
    outcome = Outcome.USAGE
    happened = "The replication policy was not taken: {why}."
    cause = "Its settings contradict each other, or one is outside of what is possible."
    action = "Correct it; nothing was changed. `secondsite policy presets` shows sets that fit together."


class FailbackPolicyFixed(SecondsiteError):
    """Not editable."""

    code = "policy.failback-fixed"
    outcome = Outcome.REFUSED
    happened = "{name!r} is a failback policy and was not changed."
    cause = "It is made with its policy and follows it, so that the way back is known to work."
    action = "Change, copy or delete {of!r}, the policy it belongs to."


class PolicyChangedMeanwhile(SecondsiteError):
    """Somebody was faster."""

    code = "policy.changed-meanwhile"
    outcome = Outcome.REFUSED
    happened = "The replication policy {name!r} is at revision {revision} now, not {expected}."
    cause = "Somebody else changed it since it was read; nothing of theirs was overwritten."
    action = "Look at it again (`secondsite policy show`), then make the change once more."
