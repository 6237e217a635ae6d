"""Metrics of servers and gateways parse, are bounded, and are all that dashboard and rules ask for."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.cli import dashboard
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.common.loopback import loopback
from secondsite.gateway.control import metrics as gateway_metrics
from secondsite.gateway.control.metrics import GatewayMetrics, Sources
from secondsite.gateway.control.monitoring import metrics_of, open_metrics_port
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.messages.gateway import (
    FirstCopy,
    GatewayStatus,
    Health,
    ProtectionState,
    ProtectionStatus,
    ReplicaStatus,
)
from secondsite.model.events import Severity
from secondsite.model.ids import MachineId
from support.control import Protections
from support.enrolled import Place, enrolled_place
from support.server import owner

ROOT = Path(__file__).resolve().parents[4]
CONTRIB = ROOT / "contrib"


def parsed(text: str) -> dict[str, Metric]:
    """As promtool checks: it parses, each family once with help and type, no sample twice."""
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    samples: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for family in families:
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples.add(key)
    return {family.name: family for family in families}


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(database_url, tmp_path) as made:
        yield made


def server_text(place: Place, name: str = "olga") -> str:
    answer = place.call(owner(place.services, name))("GET", "/metrics")
    assert answer.status == 200
    return answer.data.decode()


def gateway_text(tmp_path: Path) -> str:
    return metrics_of(_gateway(tmp_path)).text().decode()


def _gateway(tmp_path: Path) -> ControlServices:
    events = EventLog(SystemClock(), files=EventFiles(tmp_path / "events"))
    events.emit("a.b", Severity.WARNING, "it is so")
    machine = MachineId("11111111-1111-1111-1111-111111111111")
    status = ProtectionStatus(
        machine=machine,
        name="shop",
        peer="gateway-b",
        state=ProtectionState.PROTECTED,
        health=Health.NORMAL,
        copy_frequency_seconds=5.0,
        rpo_seconds=3.0,
        last_point=7,
        cycle_seconds=0.2,
        first_copy=FirstCopy(done_bytes=1, total_bytes=2, bytes_per_second=1.0),
    )
    return ControlServices(
        name="gateway-a",
        site="a",
        clock=SystemClock(),
        events=events,
        protections=Protections({}, _statuses={machine: status}),
    )


def value(families: dict[str, Metric], name: str, /, **labels: str) -> float:
    [found] = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


def test_a_server_measures(place: Place) -> None:
    place.services.database.run(
        lambda connection: place.services.events.emit(connection, "", Severity.WARNING, "a.b", "it is so")
    )
    families = parsed(server_text(place))
    assert value(families, "secondsite_events_total") == 1
    assert value(families, "secondsite_events_last_hour", severity="Warning") == 1
    assert value(families, "secondsite_gateways", state="Disconnected") == 1
    assert value(families, "secondsite_database_bytes") > 100_000
    assert value(families, "secondsite_calls_waiting") == 0
    assert value(families, "secondsite_items_rpo_missed") == 0
    histories = place.services.telling.histories if place.services.telling else None
    assert histories is not None
    histories.observe("i1", SystemClock().utc(), 900.0, 300.0)
    assert value(parsed(server_text(place, "otto")), "secondsite_items_rpo_missed") == 1


def test_a_gateway_measures_on_its_port(tmp_path: Path) -> None:
    port = open_metrics_port(_gateway(tmp_path), "127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port.port}/metrics", timeout=20) as answer:
            families = parsed(answer.read().decode())
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port.port}/v1/status", timeout=20)
    finally:
        port.close()
    assert value(families, "secondsite_gateway_events_total", severity="Warning") == 1
    assert value(families, "secondsite_gateway_events_untold") == 1
    assert value(families, "secondsite_protection_rpo_seconds", name="shop") >= 0
    assert value(families, "secondsite_gateway_info", name="gateway-a") == 1


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9464", "192.0.2.1:9464", "9464", "[::]:1", "127.0.0.1:x", "::1:70000"]
)
def test_the_port_stays_inside(listen: str) -> None:
    with pytest.raises(InvalidInput):
        loopback(listen)
    assert loopback("[::1]:9464") == ("::1", 9464)


def test_a_gateways_series_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_metrics, "MACHINES_TOLD_MAX", 10)
    replicas = tuple(
        ReplicaStatus(
            machine=MachineId(f"{number:08}-1111-1111-1111-111111111111"),
            name=f"m{number}\n\"'{{}}" + "x" * 500,
            epoch=1,
            points=number,
            rpo_seconds=float(number),
        )
        for number in range(50)
    )
    status = GatewayStatus(name="g", site="s", version="1", at="now", replicas=replicas)
    events = EventLog(SystemClock())
    families = parsed(GatewayMetrics(Sources(lambda: status, list, events.figures)).text().decode())
    ages = [sample.value for sample in families["secondsite_replica_age_seconds"].samples]
    assert sorted(ages) == [float(number) for number in range(40, 50)]
    assert value(families, "secondsite_replicas_left_out") == 40


def _names(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:secondsite|process)_[a-z_0-9]+", expr))


def test_the_dashboard_and_the_rules_ask_for_what_there_is(tmp_path: Path) -> None:
    with enrolled_place(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as place:
        server = parsed(server_text(place))
    families = {**server, **parsed(gateway_text(tmp_path))}
    known = set(families)
    for name, family in families.items():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [])
        known |= {f"{name}{suffix}" for suffix in suffixes}
    asked = [expr for _, row in dashboard.PANELS for panel in row for expr, _ in panel[3]]
    asked += [alert[1] for alert in dashboard.ALERTS]
    assert len(asked) > 30
    for expr in asked:
        assert _names(expr), expr
        assert _names(expr) <= known, _names(expr) - known


def test_the_files_are_what_the_tables_say() -> None:
    board = json.loads((CONTRIB / dashboard.DASHBOARD).read_text())
    assert board == dashboard.dashboard(), "run: python -m secondsite.cli.dashboard contrib"
    assert (CONTRIB / dashboard.RULES).read_text() == dashboard.rules()
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    for x, _, width, _ in places:
        assert x + width <= 24
    [group] = yaml.safe_load(dashboard.rules())["groups"]
    assert len(group["rules"]) == len(dashboard.ALERTS)
