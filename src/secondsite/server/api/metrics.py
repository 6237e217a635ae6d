"""What Prometheus reads from a server: requests by route and status, how long they took, the process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

from secondsite import __version__

# Around the goals: a page below 50 ms, a change below 100 ms; the rest to see what is slow.
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"


class Metrics:
    """One registry a server, so that two servers in one process (tests) do not add up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Info("secondsite_server", "The server", registry=self.registry).info({"version": __version__})
        self._requests = Counter(
            "secondsite_http_requests",
            "Requests answered, by method, route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "secondsite_http_request_seconds",
            "How long requests took, by route",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._running = Gauge(
            "secondsite_http_requests_in_progress", "Requests being answered", registry=self.registry
        )
        self._jobs = Gauge("secondsite_jobs", "Jobs, by state", ["state"], registry=self.registry)
        self._backup_age = Gauge(
            "secondsite_server_backup_age_seconds",
            "Age of the newest backup of the server that is kept somewhere",
            registry=self.registry,
        )
        self.logins = Counter(
            "secondsite_logins", "Log-ins, by how they ended", ["outcome"], registry=self.registry
        )

    def jobs(self, counts: Mapping[str, int]) -> None:
        """How many jobs are in each state."""
        for state, number in counts.items():
            self._jobs.labels(state).set(number)

    def backup_age(self, age: timedelta | None) -> None:
        """How old the server's newest backup is; infinite when there is none."""
        self._backup_age.set(age.total_seconds() if age is not None else math.inf)

    def begun(self) -> None:
        """A request came."""
        self._running.inc()

    def ended(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """It was answered. `route` is the template, not the path: labels stay few."""
        self._running.dec()
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, *others: Collector) -> bytes:
        """All of it, and what others measure, in Prometheus' text format."""
        found = [generate_latest(self.registry)]
        for other in others:
            asked = CollectorRegistry(auto_describe=False)
            asked.register(other)
            found.append(generate_latest(asked))
        return b"".join(found)
