"""From a gateway's reports over TLS to the days a person is shown: objective, health, events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.cli.main import main
from secondsite.client.histories import RpoHistory
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.server.events.service import Search
from secondsite.transfer.reports import (
    PATH_EVENTS,
    PATH_REPORTS,
    EventAnswer,
    EventBatch,
    ProtectionReport,
    Report,
    ReportAnswer,
    ToldEvent,
)
from support.enrolled import Place, enrolled_place
from support.server import owner
from support.until import until

MACHINE = "11111111-2222-3333-4444-555555555555"
CLOCK = SystemClock()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as made:
        yield made


def _report(place: Place, rpo: float | None, health: str = "Normal", code: str = "") -> None:
    said = ProtectionReport.model_validate(
        {
            "machine": MACHINE,
            "name": "büro 東京",
            "peer": "gateway-b",
            "state": "Protected",
            "health": health,
            "code": code,
            "rpo_seconds": rpo,
            "points": 3,
            "last_point": 3,
        }
    )
    sent = Report(sent_at=CLOCK.utc().isoformat(timespec="milliseconds"), protections=(said,))
    EnrolledClients(place.files).open().post(PATH_REPORTS, sent, ReportAnswer)


def test_from_reports_to_days(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = owner(place.services)
    call = place.call(token)
    _report(place, 5.0)
    items = "/api/v1/vaults/North/replicationProtectedItems"
    until(lambda: bool(call("GET", items).json()["value"]), "the machine becomes no item")
    [item] = call("GET", items).json()["value"]
    path = f"{items}/{item['id']}"
    assert call("GET", f"{path}/rpoHistory").json()["days"] == []

    def missed() -> float:
        _report(place, 1900.0, "Warning", "replicate.trouble")
        return float(sum(day["missedSeconds"] for day in call("GET", f"{path}/rpoHistory").json()["days"]))

    until(lambda: missed() > 0, "nothing is missed")
    found = call("GET", f"{path}/rpoHistory?days=90").json()
    assert found["thresholdSeconds"] == 900
    assert set(found) == {field.encode_name for field in _fields()}
    assert 1000 <= missed() < 1300  # 1900 s old, 900 s are allowed
    [interval] = found["missed"]
    assert interval["since"] < interval["until"]
    telling = place.services.telling
    assert telling is not None
    telling.histories.flush()
    changes = call("GET", f"{path}/healthHistory").json()["value"]
    assert (changes[0]["health"], changes[0]["code"]) == ("Warning", "replicate.trouble")
    assert call("GET", f"{path}/rpoHistory?days=91").status == 400
    assert call("GET", f"{items}/nothing/rpoHistory").status == 404

    told = ToldEvent.model_validate(
        {
            "number": 1,
            "at": "2026-01-02T03:04:05Z",
            "code": "a.b",
            "severity": "Warning",
            "text": "t",
            "machine": MACHINE,
        }
    )
    batch = EventBatch(log="x", events=(told,))
    EnrolledClients(place.files).open().post(PATH_EVENTS, batch, EventAnswer)
    assert len(place.services.events.after(Search(item=item["id"], codes=["a.b"]), 0, limit=9)) == 1

    assert place.server.address is not None
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
    url, authority = f"https://127.0.0.1:{place.server.address[1]}", tmp_path / "server" / "authority.crt"
    log_in = ["login", "--server", url, "--authority", str(authority), "--token-file", str(file)]
    assert main(log_in) == 0
    assert main(["item", "health", "North", "büro 東京"]) == 0
    shown = capsys.readouterr().out
    assert "recovery point objective 15:00" in shown
    assert "replicate.trouble" in shown


def _fields() -> tuple[msgspec.structs.FieldInfo, ...]:

    return msgspec.structs.fields(RpoHistory)
