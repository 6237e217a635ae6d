"""Writes the Grafana dashboard and the Prometheus rules: ``python -m secondsite.cli.dashboard contrib``.

Both are made from the two tables below; a test holds every query against the metrics that servers and
gateways really have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from secondsite.base.files import replace_file

DASHBOARD = "grafana-dashboard.json"
RULES = "prometheus-rules.yml"

_COPY = "secondsite_protection_copy"
_SECONDS = "sum by (le) (rate(secondsite_http_request_seconds_bucket[5m]))"

# title, unit of Grafana, kind of panel, queries with their legends
Panel = tuple[str, str, str, tuple[tuple[str, str], ...]]
PANELS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            (
                "Items by health",
                "short",
                "stat",
                (("sum by (health) (max by (state, health) (secondsite_items))", "{{health}}"),),
            ),
            ("Items that miss their objective", "short", "stat", (("max(secondsite_items_rpo_missed)", ""),)),
            ("Gateways", "short", "stat", (("max by (state) (secondsite_gateways)", "{{state}}"),)),
            (
                "Events of the last hour",
                "short",
                "stat",
                (("max by (severity) (secondsite_events_last_hour)", "{{severity}}"),),
            ),
            ("Alerts not delivered", "short", "stat", (("max(secondsite_alerts_waiting)", ""),)),
        ),
    ),
    (
        "Replication",
        (
            (
                "Oldest newest points",
                "s",
                "timeseries",
                (("topk(10, secondsite_item_rpo_seconds)", "{{name}}"),),
            ),
            (
                "Age of the newest point, at the source",
                "s",
                "timeseries",
                (("secondsite_protection_rpo_seconds", "{{name}}"),),
            ),
            (
                "Changed and sent",
                "Bps",
                "timeseries",
                (
                    ("sum(rate(secondsite_protection_changed_bytes_total[5m]))", "changed"),
                    ("sum(rate(secondsite_protection_sent_bytes_total[5m]))", "sent"),
                ),
            ),
            (
                "Uploads",
                "Bps",
                "timeseries",
                (("sum by (target) (rate(secondsite_upload_bytes_total[5m]))", "{{target}}"),),
            ),
            (
                "Uploads made again and failed, a second",
                "reqps",
                "timeseries",
                (
                    ("sum by (target) (rate(secondsite_upload_retries_total[5m]))", "{{target}} again"),
                    ("sum by (target) (rate(secondsite_upload_failures_total[5m]))", "{{target}} failed"),
                ),
            ),
            (
                "Waits for the link",
                "bytes",
                "timeseries",
                (("secondsite_protection_spool_bytes", "{{name}}"),),
            ),
            (
                "Points an hour",
                "short",
                "timeseries",
                (("sum(increase(secondsite_protection_points_total[1h]))", ""),),
            ),
            (
                "Duration of a cycle",
                "s",
                "timeseries",
                (("secondsite_protection_cycle_seconds", "{{name}}"),),
            ),
            (
                "First copies",
                "percentunit",
                "timeseries",
                ((f"{_COPY}_done_bytes / ({_COPY}_total_bytes > 0)", "{{name}}"),),
            ),
            (
                "Items by state",
                "short",
                "timeseries",
                (("sum by (state) (max by (state, health) (secondsite_items))", "{{state}}"),),
            ),
        ),
    ),
    (
        "Replicas",
        (
            ("Points kept", "short", "timeseries", (("secondsite_replica_points", "{{name}}"),)),
            (
                "Journals",
                "bytes",
                "timeseries",
                (("secondsite_replica_journal_bytes", "{{name}}"),),
            ),
            (
                "Age of the newest point, at the target",
                "s",
                "timeseries",
                (("secondsite_replica_age_seconds", "{{name}}"),),
            ),
            (
                "Damaged or in doubt",
                "short",
                "timeseries",
                (
                    ("secondsite_replica_damaged > 0", "{{name}} damaged"),
                    ("secondsite_replica_in_doubt > 0", "{{name}} in doubt"),
                ),
            ),
            (
                "Served now",
                "short",
                "timeseries",
                (
                    ("sum(secondsite_exports)", "exports"),
                    ("sum(secondsite_test_failovers)", "test failovers"),
                ),
            ),
        ),
    ),
    (
        "Server and gateways",
        (
            ("Jobs", "short", "timeseries", (("max by (state) (secondsite_jobs)", "{{state}}"),)),
            ("Calls without an answer", "short", "timeseries", (("max(secondsite_calls_waiting)", ""),)),
            (
                "Requests",
                "reqps",
                "timeseries",
                (("sum by (status) (rate(secondsite_http_requests_total[5m]))", "{{status}}"),),
            ),
            (
                "95 % of requests within",
                "s",
                "timeseries",
                ((f"histogram_quantile(0.95, {_SECONDS})", ""),),
            ),
            (
                "Age of the server's newest backup",
                "s",
                "timeseries",
                (("max(secondsite_server_backup_age_seconds)", ""),),
            ),
            ("Database", "bytes", "timeseries", (("max(secondsite_database_bytes)", ""),)),
            ("Memory", "bytes", "timeseries", (("process_resident_memory_bytes", "{{instance}}"),)),
            ("Events", "short", "timeseries", (("increase(secondsite_events_total[5m])", "server"),)),
            (
                "Events of gateways",
                "short",
                "timeseries",
                (
                    ("increase(secondsite_gateway_events_total[5m])", "{{instance}} {{severity}}"),
                    ("secondsite_gateway_events_untold", "{{instance}} untold"),
                ),
            ),
        ),
    ),
)

# name, expression, for how long, severity, what it says
ALERTS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "SecondsiteItemCritical",
        'max(secondsite_items{health="Critical"}) > 0',
        "5m",
        "critical",
        "Items are critical.",
    ),
    (
        "SecondsiteRpoMissed",
        "max(secondsite_items_rpo_missed) > 0",
        "5m",
        "warning",
        "Items miss their objective.",
    ),
    (
        "SecondsiteGatewayDisconnected",
        'max(secondsite_gateways{state="Disconnected"}) > 0',
        "5m",
        "critical",
        "Gateways are not heard of.",
    ),
    (
        "SecondsiteJobFailed",
        'sum(delta(secondsite_jobs{state=~"Failed|UndoFailed"}[15m])) > 0',
        "1m",
        "warning",
        "Jobs failed: see secondsite job list.",
    ),
    (
        "SecondsiteServerBackupOld",
        "max(secondsite_server_backup_age_seconds) > 172800",
        "1h",
        "warning",
        "The server has no backup of the last two days.",
    ),
    (
        "SecondsiteAlertsNotDelivered",
        "max(secondsite_alert_channel_failing) > 0",
        "10m",
        "warning",
        "Alerts do not reach a channel: nobody is told by it.",
    ),
    (
        "SecondsiteReplicaDamaged",
        "max(secondsite_replica_damaged) > 0",
        "1m",
        "critical",
        "A replica is damaged: see secondsite verify.",
    ),
    (
        "SecondsiteReplicaInDoubt",
        "max(secondsite_replica_in_doubt) > 0",
        "1m",
        "critical",
        "Points may hold what somebody encrypted.",
    ),
    (
        "SecondsiteProtectionUnwell",
        "min(secondsite_protection_healthy) < 1",
        "10m",
        "warning",
        "A gateway says that a protection is not well.",
    ),
    (
        "SecondsiteCacheFull",
        "max(secondsite_protection_bitmap_mode) > 0",
        "10m",
        "warning",
        "Captures wait for room: the link is too slow, or cut.",
    ),
)


def dashboard() -> dict[str, object]:
    """The dashboard as Grafana imports it (schema 39: Grafana 10 and later)."""
    panels: list[dict[str, object]] = []
    y = 0
    for title, row in PANELS:
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": _at(0, y, 24, 1), "panels": []}
        )
        y += 1
        x = 0
        for panel in row:
            width, height = (24 // len(row), 5) if panel[2] == "stat" else (12, 8)
            if x + width > 24:
                x, y = 0, y + height
            panels.append(_panel(len(panels) + 1, panel, _at(x, y, width, height)))
            x += width
        y += height
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "uid": "secondsite",
        "title": "secondsite",
        "tags": ["secondsite"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": panels,
    }


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, object]:
    title, unit, kind, queries = panel
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    return {
        "id": number,
        "type": kind,
        "title": title,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": source, "expr": expr, "legendFormat": legend}
            for at, (expr, legend) in enumerate(queries)
        ],
    }


def rules() -> str:
    """The rules as Prometheus reads them."""
    lines = [
        "# Made by `python -m secondsite.cli.dashboard contrib`.",
        "groups:",
        "  - name: secondsite",
        "    rules:",
    ]
    for name, expr, wait, severity, text in ALERTS:
        lines += [
            f"      - alert: {name}",
            f"        expr: {json.dumps(expr)}",
            f"        for: {wait}",
            "        labels:",
            f"          severity: {severity}",
            "        annotations:",
            f"          summary: {json.dumps(text)}",
        ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write both into the directory named."""
    directory = Path(arguments[0])
    replace_file(directory / DASHBOARD, (json.dumps(dashboard(), indent=2) + "\n").encode(), mode=0o644)
    replace_file(directory / RULES, rules().encode(), mode=0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
