"""What gateways count of a replication: bytes, requests, retries and failures a target; bytes of journals."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from secondsite.base.units import MIB
from secondsite.base.uploads import UploadFigures
from secondsite.gateway.common.events import EventFigures
from secondsite.gateway.control.metrics import TARGETS_TOLD_MAX, GatewayMetrics, Sources
from secondsite.gateway.messages.gateway import GatewayStatus
from secondsite.gateway.messages.unixconnection import UnixConnection
from secondsite.gateway.target import journalbytes
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.until import until


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    monkeypatch.setattr(journalbytes, "COUNTED_SECONDS", 0.0)
    with (
        tempfile.TemporaryDirectory(prefix="um") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def measured(text: str) -> dict[tuple[str, str], float]:
    """Family's sample and target, or name of the machine -> value."""
    return {
        (sample.name, sample.labels.get("target", sample.labels.get("name", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def asked(place: Joined, gateway: str) -> dict[tuple[str, str], float]:
    connection = UnixConnection(place.root / gateway / "c.sock")
    try:
        connection.request("GET", "/metrics")
        return measured(connection.getresponse().read().decode())
    finally:
        connection.close()


def sent(place: Joined) -> UploadFigures:
    found = asked(place, A)
    kinds = ("bytes", "requests", "retries", "failures")
    return UploadFigures(*(int(found[f"secondsite_upload_{kind}_total", B]) for kind in kinds))


def segments(place: Joined) -> list[int]:
    """The sizes of all segments that lie in the store."""
    return [
        path.stat().st_size
        for path in (place.root / B / "store" / "machines").rglob("*")
        if path.is_file() and "segments" in path.parts
    ]


def test_uploads_and_journals_are_counted(place: Joined) -> None:
    fabric = place.fabrics[A]
    machine = fabric.add_machine("shop", {"vda": 2 * MIB})
    fabric.write(machine, "vda", 65536, bytes(range(256)) * 400)
    place.read_site(A)
    assert place.prove_through_server()["state"] == "Succeeded"
    done = place.job("POST", ITEMS, {"machine": machine, "provider": A, "targetProvider": B})
    assert done["state"] == "Succeeded", done["error"]
    with place.client(A) as client:
        client.take_point("shop")
        first = sent(place)
        there = segments(place)
        assert first == UploadFigures(sum(there), len(there), 0, 0)
        assert asked(place, B)["secondsite_replica_journal_bytes", "shop"] == sum(there)

        place.stop(B)
        fabric.write(machine, "vda", MIB, bytes(range(255, -1, -1)) * 700)
        until(lambda: sent(place).failures > 0, "a failed upload")
        assert sent(place).size_bytes == first.size_bytes
        place.start(B)
        until(lambda: sent(place).size_bytes > first.size_bytes, "an upload that was made again")
        client.take_point("shop")
    after, there = sent(place), segments(place)
    assert after.size_bytes == sum(there)
    # each failure was of one request, and each was made again: nothing is left out, nothing counted twice
    assert after.requests == len(there) + after.failures
    assert after.retries == after.failures
    assert asked(place, B)["secondsite_replica_journal_bytes", "shop"] == sum(there)


def test_targets_are_bounded() -> None:
    figures = {f"gateway-{number}": UploadFigures(requests=number) for number in range(TARGETS_TOLD_MAX + 20)}
    status = GatewayStatus(name="g", site="s", version="1", at="now")
    sources = Sources(lambda: status, list, lambda: EventFigures({}, None), lambda: figures)
    found = measured(GatewayMetrics(sources).text().decode())
    told = [target for name, target in found if name == "secondsite_upload_requests_total"]
    assert set(told) == {f"gateway-{number}" for number in range(20, TARGETS_TOLD_MAX + 20)}
