"""What a gateway tells its server of what it protects and keeps (`transfer.reports`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from secondsite.base.clock import Clock
from secondsite.gateway.common.desired import Everything
from secondsite.gateway.messages.failover import FailoverStatus, HeldMachine
from secondsite.gateway.messages.gateway import FirstCopy, ProtectionStatus, ReplicaStatus
from secondsite.model.differences import not_as_asked
from secondsite.model.failover import FailoverState
from secondsite.model.ids import MachineId
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.reports import (
    Copying,
    FailoverReport,
    HeldReport,
    ProtectionReport,
    ReplicaReport,
    Report,
)

TEXT_MAX = 4000
RETENTION_MAX = 400
# What a change of makes a report go out at once; everything else waits for the next one.
Signature = tuple[tuple[object, ...], ...]


def signature(
    statuses: Sequence[ProtectionStatus],
    failovers: Sequence[FailoverStatus] = (),
    held: Sequence[HeldMachine] = (),
) -> Signature:
    """Of states and healths."""
    return (
        *(
            (s.machine, s.state, s.health, s.code, s.item, s.revision, s.resynced, s.paused_by)
            for s in statuses
        ),
        *(
            (f.id, f.state, f.point, f.error is None, f.console_at, f.userspace_at, f.kept)
            for f in newest(failovers)
        ),
        *((h.machine, h.state, h.epoch, h.isolated_at, h.final) for h in held),
    )


def newest(failovers: Sequence[FailoverStatus]) -> list[FailoverStatus]:
    """The last of each machine. failovers: oldest first."""
    return list({one.machine: one for one in failovers}.values())


def make_report(
    clock: Clock,
    now: Everything,
    statuses: Sequence[ProtectionStatus],
    replicas: Sequence[ReplicaStatus],
    *,
    refused: Mapping[str, str],
    tell: Collection[str],
    failovers: Sequence[FailoverStatus] = (),
    held: Sequence[HeldMachine] = (),
    left_behind: Mapping[str, str] | None = None,
) -> Report:
    """A whole report. tell: machines whose `wanted` the server asked for.

    left_behind: of protections that ended: by item, what could not be removed.
    """
    return Report(
        sent_at=time_text(clock.utc()),
        generation=now.generation,
        refused={item: why[:TEXT_MAX] for item, why in refused.items()},
        left_behind={item: what[:TEXT_MAX] for item, what in (left_behind or {}).items()},
        protections=tuple(_protection(now, status, status.machine in tell) for status in statuses),
        replicas=tuple(_replica(now, replica) for replica in replicas),
        failovers=tuple(_failover(one) for one in newest(failovers)),
        held=tuple(_held(one) for one in held),
    )


def _protection(now: Everything, status: ProtectionStatus, with_wanted: bool) -> ProtectionReport:
    protection = now.protections.get(status.machine)
    return ProtectionReport(
        machine=status.machine,
        name=status.name,
        peer=status.peer,
        item=status.item,
        revision=status.revision,
        wanted=protection.as_wanted() if protection is not None and with_wanted else None,
        state=status.state.value,
        health=status.health.value,
        code=status.code[:100],
        note=status.note[:TEXT_MAX],
        bitmap_mode=status.bitmap_mode,
        epoch=status.epoch,
        copying=_copying(status.first_copy),
        resynced=status.resynced,
        points=status.points,
        last_point=status.last_point,
        last_point_at=status.last_point_at,
        last_consistency=status.last_consistency.value if status.last_consistency is not None else "",
        rpo_seconds=None if status.rpo_seconds is None else max(0.0, status.rpo_seconds),
        spool_bytes=max(0, status.spool_bytes),
        total_changed_bytes=status.total_changed_bytes,
        total_sent_bytes=status.total_sent_bytes,
    )


def _copying(copy: FirstCopy | None) -> Copying | None:
    if copy is None:
        return None
    return Copying(
        done_bytes=copy.done_bytes,
        total_bytes=copy.total_bytes,
        bytes_per_second=max(0.0, copy.bytes_per_second),
        seconds_left=copy.seconds_left,
        differed_bytes=copy.differed_bytes,
    )


def _replica(now: Everything, replica: ReplicaStatus) -> ReplicaReport:
    wanted = now.replicas.get(MachineId(replica.machine))
    error = replica.error or {}
    doubt, test = replica.doubt, replica.test_failover
    return ReplicaReport(
        machine=replica.machine,
        name=replica.name or (wanted.name if wanted is not None else "") or replica.machine,
        epoch=replica.epoch,
        revision=wanted.revision if wanted is not None else 0,
        points=replica.points,
        oldest_at=replica.oldest.at if replica.oldest is not None else None,
        newest=replica.newest.number if replica.newest is not None else None,
        newest_at=replica.newest.at if replica.newest is not None else None,
        retention=(replica.retention or "")[:RETENTION_MAX],
        test_state=test.state.value if test is not None else "",
        test_name=test.name if test is not None else "",
        doubt=doubt.reason[:TEXT_MAX] if doubt is not None else "",
        code=error.get("code", "")[:100],
        note=_sentences(error)[:TEXT_MAX],
    )


def _failover(status: FailoverStatus) -> FailoverReport:
    error = status.error or {}
    return FailoverReport(
        id=status.id,
        machine=status.machine,
        machine_name=status.machine_name,
        name=status.name,
        kind=status.kind.value,
        state=status.state.value,
        point=status.point,
        point_at=status.point_at,
        requested_at=status.requested_at,
        requested_by=status.requested_by,
        writer=status.writer,
        expected_loss_seconds=max(0.0, status.expected_loss_seconds),
        loss_seconds=status.loss_seconds,
        epoch=status.epoch,
        claimed_at=status.claimed_at,
        booted_at=status.booted_at,
        console_at=status.console_at,
        userspace_at=status.userspace_at,
        ended_at=status.ended_at,
        flattened_bytes=status.flattened_bytes,
        total_bytes=status.total_bytes,
        serial=status.serial,
        kept=status.kept.value if status.kept is not None else "",
        code=error.get("code", "failover.failed" if error else "")[:100],
        note=(_sentences(error) or status.note or _differs(status))[:TEXT_MAX],
    )


def _differs(status: FailoverStatus) -> str:
    """Until it is decided: what a person should know before a commit."""
    return not_as_asked(status.differs) if status.state is FailoverState.COMPLETED else ""


def _held(held: HeldMachine) -> HeldReport:
    return HeldReport(
        machine=held.machine,
        name=held.name,
        state=held.state.value,
        claimant=held.claimant,
        epoch=held.epoch,
        claimed_at=held.claimed_at,
        held_at=held.held_at,
        isolated_at=held.isolated_at,
        last_point=held.last_point,
        last_point_at=held.last_point_at,
        decided_at=held.decided_at,
        decided_by=held.decided_by,
        final=held.final,
        note=held.note[:TEXT_MAX],
    )


def _sentences(error: Mapping[str, str]) -> str:
    return " ".join(error[key] for key in ("happened", "cause", "action") if key in error)
