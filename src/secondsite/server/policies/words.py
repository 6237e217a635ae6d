"""What a policy means, in sentences: what it costs, what to know before it is used, what is refused. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.model.policies import ReplicationPolicy
from secondsite.model.retention import RetentionPolicy, in_words
from secondsite.model.retention_cost import Churn, cost_of
from secondsite.server.policies.errors import PolicyRefused

# A cycle that is late once is no news; a threshold below this is missed by a slow one.
RPO_FREQUENCIES = 3.0


def retention_of(policy: ReplicationPolicy) -> RetentionPolicy:
    """Its windows; a policy that was taken has ones that parse."""
    return RetentionPolicy.parse(policy.retention)


def points_at_most(policy: ReplicationPolicy) -> int:
    """How many points are listed once every window is full, when each cycle comes in time."""
    churn = Churn(0.0, 0.0, policy.copy_frequency_seconds)
    return cost_of(retention_of(policy), churn, disk_bytes=0).points


def check(policy: ReplicationPolicy) -> None:
    """Refuse what could never be met, beyond what the model itself refuses. Raises PolicyRefused."""
    often, kept = policy.application_consistent_frequency_seconds, retention_of(policy)
    if often is not None and often > kept.reach_seconds:
        reach = (
            f"reaches {in_words(kept.reach_seconds)} back" if kept.windows else "keeps the latest point only"
        )
        why = (
            f"application-consistent points every {in_words(often)}, but the retention {reach}: "
            "there would be times without one"
        )
        raise PolicyRefused(why=why)
    if policy.rpo_threshold_seconds < policy.copy_frequency_seconds:
        why = (
            f"an alert at {in_words(policy.rpo_threshold_seconds)} without a point, "
            f"but points come every {in_words(policy.copy_frequency_seconds)}: it would never end"
        )
        raise PolicyRefused(why=why)


def warnings(policy: ReplicationPolicy) -> tuple[str, ...]:
    """What to know of it, a sentence each."""
    return tuple(_warnings(policy))


def _warnings(policy: ReplicationPolicy) -> Iterator[str]:
    often = policy.application_consistent_frequency_seconds
    if often is not None:
        yield (
            f"Performance: every {in_words(often)} the machine's applications are asked to write out what "
            "they hold, and its file systems stand still for a moment; busy databases feel it. Once an hour "
            "is usual; points in between are crash-consistent."
        )
    if policy.rpo_threshold_seconds < RPO_FREQUENCIES * policy.copy_frequency_seconds:
        yield (
            f"Alerts: one slow cycle is enough to miss {in_words(policy.rpo_threshold_seconds)}; "
            f"points come every {in_words(policy.copy_frequency_seconds)}."
        )
    if policy.compression_level is None:
        yield "Network: nothing is compressed: more travels and more is stored, encrypted all the same."
    if any(window.bytes_per_second is not None for window in policy.bandwidth):
        yield (
            "Bandwidth: the items of this policy that leave one gateway share its limit, by that gateway's "
            "local time; while it holds, points may come later than asked for."
        )
    yield from _first_copy(policy)
    if policy.delete_replica_on_disable:
        yield "Deletion: when protection is disabled, the replica and all its recovery points are deleted."


def _first_copy(policy: ReplicationPolicy) -> Iterator[str]:
    if policy.first_copy.mode == "scheduled":
        yield (
            f"First copy: it begins at the next {policy.first_copy.at} of the source gateway's local time; "
            "until then there is no recovery point."
        )
    elif policy.first_copy.mode == "offline":
        yield (
            "First copy: it waits for media (`secondsite seed export` at the source gateway); until they are "
            "imported at the other site there is no recovery point."
        )
