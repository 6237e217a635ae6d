"""What the routes of replication policies take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from secondsite.model.policies import RATE_MIN, ReplicationPolicy
from secondsite.server.api.schemas import Model, View
from secondsite.server.policies import words
from secondsite.server.policies.errors import PolicyRefused
from secondsite.server.policies.estimate import Estimate
from secondsite.server.policies.presets import Preset
from secondsite.server.policies.service import Policy, Revision

_Name = Annotated[str, Field(min_length=1, max_length=80)]
_Description = Annotated[str, Field(max_length=500)]
_Seconds = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]
_TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", examples=["22:00"])]


class WindowBody(Model):
    """Between two times of day, of the source gateway's local time. bytesPerSecond null: no limit."""

    from_: Annotated[_TimeOfDay, Field(alias="from")]
    until: _TimeOfDay
    bytes_per_second: Annotated[float, Field(ge=RATE_MIN, le=1e12, allow_inf_nan=False)] | None = None


class FirstCopyBody(Model):
    """When the first copy begins. at: of a scheduled one, the source gateway's local time."""

    mode: Literal["now", "scheduled", "offline"] = "now"
    at: _TimeOfDay | None = None


class SettingsBody(Model):
    """Settings to be others; what is left out stays, null is a value of its own."""

    copy_frequency_seconds: _Seconds | None = None
    rpo_threshold_seconds: Annotated[float, Field(ge=1, le=30 * 86_400, allow_inf_nan=False)] | None = None
    retention: Annotated[str, Field(min_length=1, max_length=400)] | None = Field(
        default=None, examples=["all:2h,1h:1d,2h:7d", "latest+4"]
    )
    application_consistent_frequency_seconds: _Seconds | None = None
    compression_level: Annotated[int, Field(ge=-5, le=19)] | None = Field(
        default=None, description="null: what travels is not compressed."
    )
    bandwidth: Annotated[list[WindowBody], Field(max_length=24)] | None = None
    first_copy: FirstCopyBody | None = None
    delete_replica_on_disable: bool | None = None

    def over(self, before: ReplicationPolicy) -> ReplicationPolicy:
        """`before` with what was given. Raises PolicyRefused."""
        given: dict[str, Any] = {
            name: value
            for name, value in self.model_dump(by_alias=False, exclude_unset=True).items()
            if value is not None or name in _NULL_IS_A_VALUE
        }
        if self.first_copy is not None:  # whole: a mode without its time is another mode
            given["first_copy"] = self.first_copy.model_dump(by_alias=False)
        try:
            return ReplicationPolicy.model_validate({**before.model_dump(by_alias=False), **given})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise PolicyRefused(why=first["msg"].removeprefix("Value error, ")) from None


# of the others null says the same as leaving them out
_NULL_IS_A_VALUE = frozenset({"application_consistent_frequency_seconds", "compression_level"})


class NewPolicy(Model):
    """A policy to be made: of a preset, with settings of its own over it."""

    friendly_name: _Name
    description: _Description = ""
    preset: Annotated[str, Field(max_length=20)] | None = Field(default=None, examples=["30s"])
    settings: SettingsBody = SettingsBody()


class PolicyChange(Model):
    """What is to be another; what is left out stays."""

    friendly_name: _Name | None = None
    description: _Description | None = None
    settings: SettingsBody = SettingsBody()
    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Refuse the change unless the policy is at this revision."
    )


class PolicyCopy(Model):
    """A copy to be made."""

    friendly_name: _Name


class PolicyView(View):
    """A replication policy. What travels and what is stored is encrypted with every one."""

    id: str
    vault: str = Field(description="The vault's id.")
    friendly_name: str
    description: str
    revision: int
    settings: ReplicationPolicy
    encryption: Literal["Always"] = "Always"
    retention_text: str
    recovery_points: int = Field(description="Listed at most, once every window of the retention is full.")
    warnings: list[str] = Field(description="What to know before it is used.")
    protected_items: int = Field(description="Items that use it.")
    failback_policy: str | None = Field(description="The id of the policy of the way back, made with it.")
    failback_of: str | None = Field(description="Of a failback policy: whose. It cannot be changed.")
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str

    @classmethod
    def of(cls, policy: Policy) -> PolicyView:
        """As it goes out."""
        return cls(
            id=policy.id,
            vault=policy.vault_id,
            friendly_name=policy.friendly_name,
            description=policy.description,
            revision=policy.revision,
            settings=policy.settings,
            retention_text=words.retention_of(policy.settings).describe(),
            recovery_points=words.points_at_most(policy.settings),
            warnings=list(words.warnings(policy.settings)),
            protected_items=policy.items,
            failback_policy=policy.failback,
            failback_of=policy.failback_of,
            created_at=policy.created_at,
            created_by=policy.created_by,
            changed_at=policy.changed_at,
            changed_by=policy.changed_by,
        )


class PresetView(View):
    """A set of settings that fit together."""

    name: str
    title: str
    description: str
    settings: ReplicationPolicy
    retention_text: str
    recovery_points: int

    @classmethod
    def of(cls, preset: Preset) -> PresetView:
        """As it goes out."""
        return cls(
            name=preset.name,
            title=preset.title,
            description=preset.description,
            settings=preset.settings,
            retention_text=words.retention_of(preset.settings).describe(),
            recovery_points=words.points_at_most(preset.settings),
        )


class WindowView(View):
    """What one window of a retention lists."""

    every_seconds: float = Field(description="0: every point.")
    reach_seconds: float
    recovery_points: int
    point_bytes: int | None = Field(description="Stored for one of them; null where nothing was measured.")


class MeasuredView(View):
    """What the gateway that keeps a machine's replica measured, and what that comes to."""

    provider: str
    machine: str
    machine_name: str
    seconds: float = Field(description="Over how much time it was measured.")
    stored_bytes_per_day: float | None
    recovery_points: int = Field(description="Listed now.")
    stored_bytes: int = Field(description="Of the journal, now.")
    stored_bytes_at_most: int | None = Field(description="Once every window is full, if it goes on so.")


class EstimateView(View):
    """What a retention keeps at most, once every window is full, and what that costs where measured."""

    retention: str
    retention_text: str
    recovery_points: int
    windows: list[WindowView]
    measured: MeasuredView | None

    @classmethod
    def of(cls, found: Estimate, retention: str, provider: str) -> EstimateView:
        """As it goes out."""
        report = found.measured
        return cls(
            retention=retention,
            retention_text=found.retention.describe(),
            recovery_points=found.points,
            windows=[
                WindowView(
                    every_seconds=one.every_seconds,
                    reach_seconds=one.reach_seconds,
                    recovery_points=one.points,
                    point_bytes=one.point_bytes,
                )
                for one in found.windows
            ],
            measured=None
            if report is None
            else MeasuredView(
                provider=provider,
                machine=report.machine,
                machine_name=report.name,
                seconds=report.measured_seconds,
                stored_bytes_per_day=report.stored_bytes_per_day,
                recovery_points=report.points,
                stored_bytes=report.journal_bytes,
                stored_bytes_at_most=report.cost.journal_bytes if report.cost else None,
            ),
        )


class RevisionView(View):
    """What a policy said from a moment on."""

    revision: int
    settings: ReplicationPolicy
    at: datetime
    by: str

    @classmethod
    def of(cls, revision: Revision) -> RevisionView:
        """As it goes out."""
        return cls(revision=revision.revision, settings=revision.settings, at=revision.at, by=revision.by)
