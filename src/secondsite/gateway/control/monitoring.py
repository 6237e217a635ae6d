"""A gateway's whole status and its metrics, from what its control API is a face of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from secondsite import __version__
from secondsite.gateway.common.events import EventFigures, EventLog
from secondsite.gateway.common.loopback import loopback
from secondsite.gateway.control.metrics import CONTENT_TYPE, GatewayMetrics, Sources
from secondsite.gateway.control.metricsport import MetricsPort
from secondsite.gateway.messages.gateway import ExportStatus, GatewayStatus, ReplicaStatus
from secondsite.gateway.target.journalbytes import JournalBytes

if TYPE_CHECKING:
    from secondsite.gateway.control.services import ControlServices


def whole_status(services: ControlServices) -> GatewayStatus:
    """Everything at once."""
    recovery = services.recovery
    return GatewayStatus(
        name=services.name,
        site=services.site,
        version=__version__,
        at=services.clock.utc().isoformat(),
        protections=tuple(services.protections.statuses()) if services.protections else (),
        replicas=tuple(_replicas(services)),
        test_failovers=tuple(recovery.test_failovers()) if recovery else (),
    )


def _replicas(services: ControlServices) -> list[ReplicaStatus]:
    scrubs, found = services.scrubs, services.recovery.replicas() if services.recovery else []
    if scrubs is None:
        return found
    return [
        msgspec.structs.replace(replica, verification=scrubs.summary(replica.machine)) for replica in found
    ]


def metrics_of(services: ControlServices) -> GatewayMetrics:
    """What Prometheus reads."""

    def exports() -> Sequence[ExportStatus]:
        return services.recovery.all_exports() if services.recovery is not None else ()

    def figures() -> EventFigures:
        events = services.events
        return events.figures() if isinstance(events, EventLog) else EventFigures({}, None)

    recovery = services.recovery
    sources = Sources(lambda: whole_status(services), exports, figures, services.uploads)
    if recovery is not None:
        sources = replace(sources, journal_bytes=JournalBytes(recovery.journal, services.clock).of)
    return GatewayMetrics(sources)


def metrics_routes(services: ControlServices) -> list[Route]:
    """``GET /metrics``."""
    metrics = metrics_of(services)

    async def answer(_request: Request) -> Response:
        return Response(await run_in_threadpool(metrics.text), headers={"content-type": CONTENT_TYPE})

    return [Route("/metrics", answer, methods=["GET"])]


def open_metrics_port(services: ControlServices, listen: str) -> MetricsPort:
    """Answer on a loopback address, `HOST:PORT`. Raises InvalidInput."""
    port = MetricsPort(metrics_of(services), loopback(listen))
    port.start()
    return port
