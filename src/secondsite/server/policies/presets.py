"""Sets of settings that fit together, by how often a machine is copied; the policy of the way back. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from secondsite.model.policies import ReplicationPolicy


@dataclass(frozen=True)
class Preset:
    """A named set. name: what it is chosen by."""

    name: str
    title: str
    description: str
    settings: ReplicationPolicy


PRESETS = (
    Preset(
        "5s",
        "Every 5 seconds",
        "For what may lose next to nothing: a link that is always there, and room for many points.",
        ReplicationPolicy(
            copy_frequency_seconds=5, rpo_threshold_seconds=900, retention="all:2h,1h:1d,2h:7d"
        ),
    ),
    Preset(
        "30s",
        "Every 30 seconds",
        "For most servers: a sixth of the captures, and what is written twice in 30 s travels once.",
        ReplicationPolicy(
            copy_frequency_seconds=30, rpo_threshold_seconds=900, retention="all:4h,1h:1d,2h:7d"
        ),
    ),
    Preset(
        "5min",
        "Every 5 minutes",
        "For quiet machines and narrow links.",
        ReplicationPolicy(
            copy_frequency_seconds=300, rpo_threshold_seconds=1800, retention="all:1d,1h:3d,2h:7d"
        ),
    ),
    Preset(
        "15min",
        "Every 15 minutes",
        "For what changes little and may lose a quarter of an hour.",
        ReplicationPolicy(
            copy_frequency_seconds=900, rpo_threshold_seconds=3600, retention="all:1d,1h:3d,2h:7d"
        ),
    ),
)
DEFAULT_PRESET = PRESETS[0]

FAILBACK_RPO_THRESHOLD_SECONDS = 15 * 60.0
FAILBACK_RETENTION = "all:24h"
FAILBACK_APPLICATION_CONSISTENT_SECONDS = 60 * 60.0


def failback_of(policy: ReplicationPolicy) -> ReplicationPolicy:
    """How a machine replicates on its way back: threshold, retention and application-consistent are fixed.

    It copies as often and compresses as the way there; bandwidth, start and end were said of the other site.
    """
    frequency = min(policy.copy_frequency_seconds, FAILBACK_RPO_THRESHOLD_SECONDS)
    return ReplicationPolicy(
        copy_frequency_seconds=frequency,
        rpo_threshold_seconds=FAILBACK_RPO_THRESHOLD_SECONDS,
        retention=FAILBACK_RETENTION,
        application_consistent_frequency_seconds=FAILBACK_APPLICATION_CONSISTENT_SECONDS,
        compression_level=policy.compression_level,
    )
