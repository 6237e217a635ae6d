"""Server, database and backups are lost for good: one from the store and its key takes both gateways."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.server.config import Listen, ServerConfig
from secondsite.transfer.registration import parse_key
from secondsite.up.rebuild import plan, rebuild
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.server import owner
from support.until import until


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="gr") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def test_gateways_enter_a_rebuilt_server_and_what_they_do_is_its_own(
    place: Joined, databases: Databases, tmp_path: Path
) -> None:
    fabric = place.fabrics[A]
    machine = fabric.add_machine("büro 東京", {"vda": 2 * MIB, "vdb": MIB})
    fabric.write(machine, "vda", 65536, b"before" * 4000)
    place.read_site(A)
    assert place.prove_through_server()["state"] == "Succeeded"
    new = {"machine": machine, "provider": A, "targetProvider": B, "leftOut": ["vdb"]}
    done = place.job("POST", ITEMS, new)
    assert done["state"] == "Succeeded", done["error"]
    epoch = place.item(machine)["epoch"]
    with place.client(B) as client:
        kept = [point.number for point in client.points(machine)]

    place.stop_server()
    shutil.rmtree(place.root / "server")
    with place.client(A) as client:  # nobody needs it for that
        assert client.take_point(machine).number > kept[-1]
    with databases.ready("sqlite") as url:
        place.database_url = url
        found = plan([f"file://{place.root / B / 'store'}"], place.root / B / "vault.key")
        assert [(one.machine, one.name, one.source) for one in found.machines] == [(machine, "büro 東京", A)]
        listen = Listen(host="127.0.0.1", port=place.port)
        config = ServerConfig(state_dir=place.root / "server", database=url, listen=listen, url=place.url)
        rebuild(found, config, vault="North", key_out=tmp_path / "key", clock=SystemClock())
        place.start_server()
        assert place.server is not None
        assert place.server.services is not None
        place.token = owner(place.server.services)
        key = (tmp_path / "key").read_text()
        enter_again(place, A, key)
        until(lambda: known(place, machine), "the machine among the rebuilt server's items")
        enter_again(place, B, key)  # until then the server knows its replicas' place by name only
        until(lambda: place.item(machine)["state"] == "Protected", "Protected")
        item = place.item(machine)
        assert (item["name"], item["leftOut"], item["epoch"]) == ("büro 東京", ["vdb"], epoch)
        fabric.write(machine, "vda", 0, b"after it")
        taken = place.job("POST", f"{ITEMS}/{machine}/recoveryPoints")
        assert taken["state"] == "Succeeded", taken["error"]
        with place.client(B) as client:
            points = [point.number for point in client.points(machine)]
        assert set(kept) <= set(points), "no point is lost, and nothing was copied anew"
        with place.client(A) as client:
            assert client.protection(machine).epoch == epoch
        assert place.job("POST", f"{ITEMS}/{machine}/pause")["state"] == "Succeeded"
        assert place.job("POST", f"{ITEMS}/{machine}/resume")["state"] == "Succeeded"
        ended = place.job("DELETE", f"{ITEMS}/{machine}?withReplica=true")
        assert ended["state"] == "Succeeded", ended["error"]
        place.stop_server()


def enter_again(place: Joined, name: str, text: str) -> None:
    """As `secondsite gateway enrol --replace` does it, while the gateway runs."""
    member, files = NewMember(name, name, f"site {name[-1]}"), place.root / name / "tls"
    enrol(parse_key(text), member, files, way=Way(place.url), clock=SystemClock(), replace=True)


def known(place: Joined, machine: str) -> bool:
    found = place.call("GET", f"{ITEMS}/{machine}")
    return found.status == 200 and bool(found.json()["managed"])
