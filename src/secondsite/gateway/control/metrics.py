"""What Prometheus reads from a gateway: protections, replicas, exports, events, the process.

Read anew with each question, on the control socket (``GET /metrics``) and, where the configuration says so,
on a loopback port. Series are bounded: of more machines than `MACHINES_TOLD_MAX` those are told whose newest
point is oldest, and how many are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from secondsite.base.uploads import UploadFigures
from secondsite.gateway.common.events import EventFigures
from secondsite.gateway.messages.gateway import (
    ExportStatus,
    GatewayStatus,
    Health,
    ProtectionStatus,
    ReplicaStatus,
)
from secondsite.model.ids import MachineId

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A gateway protects some hundred machines; a series costs Prometheus some kilobytes.
MACHINES_TOLD_MAX = 500
# A site sends to one or two others; a vault may have a thousand.
TARGETS_TOLD_MAX = 100
NAME_CHARACTERS_MAX = 100
_LABELS = ("machine", "name")


@dataclass(frozen=True)
class Sources:
    """Where the numbers come from. Each is asked with each question; thread-safe."""

    status: Callable[[], GatewayStatus]
    exports: Callable[[], Sequence[ExportStatus]]
    events: Callable[[], EventFigures]
    uploads: Callable[[], Mapping[str, UploadFigures]] = dict
    journal_bytes: Callable[[Sequence[MachineId]], Mapping[MachineId, int]] = lambda _machines: {}


class GatewayMetrics(Collector):
    """All families of a gateway."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        asked = CollectorRegistry(auto_describe=False)
        asked.register(self)
        return generate_latest(self._process) + generate_latest(asked)

    def collect(self) -> Iterator[Metric]:
        """All families but the process's."""
        status = self._sources.status()
        about = {"name": status.name, "site": status.site, "version": status.version}
        yield InfoMetricFamily("secondsite_gateway", "The gateway", value=about)
        yield from _protections(status.protections)
        yield from _uploads(self._sources.uploads())
        yield from _replicas(status.replicas, self._sources.journal_bytes)
        exports = self._sources.exports()
        yield _one("secondsite_exports", "Points that are served over NBD", len(exports))
        restarts = sum(export.restarts for export in exports)
        yield _one("secondsite_export_restarts", "How often their processes were started again", restarts)
        yield _one("secondsite_test_failovers", "Test failovers that stand", len(status.test_failovers))
        events = CounterMetricFamily(
            "secondsite_gateway_events", "Events since the gateway began, by severity", labels=["severity"]
        )
        figures = self._sources.events()
        for severity, count in figures.by_severity.items():
            events.add_metric([severity.value], count)
        yield events
        if figures.untold is not None:
            text = "Events that the server does not have yet"
            yield _one("secondsite_gateway_events_untold", text, figures.untold)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


# name, what it is, how it is read of a protection (None: unknown, no sample)
_GAUGES: tuple[tuple[str, str, Callable[[ProtectionStatus], float | None]], ...] = (
    ("rpo_seconds", "Age of the newest recovery point", lambda one: one.rpo_seconds),
    ("healthy", "1: nothing is wrong", lambda one: float(one.health is Health.NORMAL)),
    ("last_point", "Number of the newest recovery point", lambda one: one.last_point),
    ("cycle_seconds", "How long the last cycle took", lambda one: one.cycle_seconds),
    ("spool_bytes", "What waits for the link", lambda one: one.spool_bytes),
    ("bitmap_mode", "1: captures wait for room in the cache", lambda one: float(one.bitmap_mode)),
    (
        "copy_done_bytes",
        "How far a first copy is",
        lambda one: None if one.first_copy is None else one.first_copy.done_bytes,
    ),
    (
        "copy_total_bytes",
        "Its whole size, 0 while unknown",
        lambda one: None if one.first_copy is None else one.first_copy.total_bytes,
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ProtectionStatus], float]], ...] = (
    ("points", "Recovery points committed", lambda one: one.points),
    ("changed_bytes", "What the host's tracking counted", lambda one: one.total_changed_bytes),
    ("sent_bytes", "What was sent, as stored", lambda one: one.total_sent_bytes),
)


def _protections(protections: Sequence[ProtectionStatus]) -> Iterator[Metric]:
    states = Counter(one.state.value for one in protections)
    found = GaugeMetricFamily("secondsite_protections", "Protected machines, by state", labels=["state"])
    for state, count in sorted(states.items()):
        found.add_metric([state], count)
    yield found
    told = sorted(protections, key=_urgency)[:MACHINES_TOLD_MAX]
    left_out = len(protections) - len(told)
    yield _one("secondsite_protections_left_out", "Protections without series of their own", left_out)
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(f"secondsite_protection_{name}", text, labels=_LABELS)
        for one in told:
            value = read(one)
            if value is not None:
                gauge.add_metric(_named(one), value)
        yield gauge
    for name, text, count_of in _COUNTERS:
        counter = CounterMetricFamily(f"secondsite_protection_{name}", text, labels=_LABELS)
        for one in told:
            counter.add_metric(_named(one), count_of(one))
        yield counter


def _urgency(one: ProtectionStatus) -> float:
    """Without a point first, then the oldest."""
    return float("-inf") if one.rpo_seconds is None else -one.rpo_seconds


_UPLOADS: tuple[tuple[str, str, Callable[[UploadFigures], int]], ...] = (
    ("bytes", "Bytes of segments, and of a store's other objects, that arrived", lambda one: one.size_bytes),
    ("requests", "Requests that sent an object, retries included", lambda one: one.requests),
    ("retries", "Those of them that sent again what had failed", lambda one: one.retries),
    ("failures", "Those of them that came to nothing", lambda one: one.failures),
)


def _uploads(figures: Mapping[str, UploadFigures]) -> Iterator[Metric]:
    told = sorted(figures, key=lambda target: (-figures[target].requests, target))[:TARGETS_TOLD_MAX]
    for name, text, count_of in _UPLOADS:
        counter = CounterMetricFamily(f"secondsite_upload_{name}", text, labels=["target"])
        for target in told:
            counter.add_metric([target], count_of(figures[target]))
        yield counter


def _replicas(
    replicas: Sequence[ReplicaStatus],
    journal_bytes: Callable[[Sequence[MachineId]], Mapping[MachineId, int]],
) -> Iterator[Metric]:
    told = sorted(replicas, key=lambda one: -(one.rpo_seconds or 0.0))[:MACHINES_TOLD_MAX]
    yield _one("secondsite_replicas", "Machines whose replicas are kept", len(replicas))
    yield _one(
        "secondsite_replicas_left_out", "Replicas without series of their own", len(replicas) - len(told)
    )
    points = GaugeMetricFamily("secondsite_replica_points", "Recovery points of the journal", labels=_LABELS)
    ages = GaugeMetricFamily("secondsite_replica_age_seconds", "Age of the newest one", labels=_LABELS)
    damaged = GaugeMetricFamily(
        "secondsite_replica_damaged",
        "1: it cannot be listed, or its last verification found damage",
        labels=_LABELS,
    )
    doubted = GaugeMetricFamily(
        "secondsite_replica_in_doubt", "1: points may hold what somebody encrypted", labels=_LABELS
    )
    sizes = GaugeMetricFamily(
        "secondsite_replica_journal_bytes", "Of the segments of the journal, in the store", labels=_LABELS
    )
    counted = journal_bytes([one.machine for one in told if one.error is None])
    for one in told:
        points.add_metric(_named(one), one.points)
        if one.machine in counted:
            sizes.add_metric(_named(one), counted[one.machine])
        if one.rpo_seconds is not None:
            ages.add_metric(_named(one), one.rpo_seconds)
        bad = one.error is not None or bool(one.verification and one.verification.damaged)
        damaged.add_metric(_named(one), float(bad))
        doubted.add_metric(_named(one), float(one.doubt is not None))
    yield from (points, sizes, ages, damaged, doubted)


def _named(one: ProtectionStatus | ReplicaStatus) -> list[str]:
    return [str(one.machine), one.name[:NAME_CHARACTERS_MAX]]
