"""A test failover stands while gateway B is killed and restarted and its export dies: the guest runs on.

Asked for and cleaned up at the server; what stands is looked at where it stands.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import libvirt
import pytest

from secondsite.lab import processes, proof
from secondsite.lab.machine import read_checks, wait_console
from support.control import run_command
from support.pair import Pair
from support.station import Station

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(400)]


def command(pair: Pair, *arguments: str) -> Any:
    """The command at gateway B, as an operator gives it."""
    ran = run_command(*arguments, "--json", gateway=pair.gateways.control_socket(pair.sites.b))
    assert ran.code == 0, f"{ran.err}\n{pair.log_tails()}"
    return json.loads(ran.out)


def exports(pair: Pair) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = command(pair, "points", "exports", pair.machine)
    return found


def test_a_standing_test_survives_its_gateway_and_its_export(station: Station, pair: Pair) -> None:
    b = pair.sites.b
    pair.wait_records(20)
    pair.item("test-failover")
    assert pair.item("show")["testFailover"]["state"] == "Completed"
    [status] = command(pair, "test-failover", "list")[-1:]
    assert [step["name"] for step in status["steps"]][-1] == "machine defined and started"
    log = b.host_path(status["consoleLog"])
    wait_console(log, "READY", root=pair.sites.root)
    [before] = exports(pair)

    station.gateways.running["B"].kill()
    with contextlib.closing(b.connect()) as connection:
        domain = connection.lookupByName(status["name"])
        domain.reset()  # it reads its disks again, with no gateway at the site
        _wait_checks(pair, log, 2)
        assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING

        station.settle_gateways()
        [known] = exports(pair)
        assert known["process"] == before["process"], "the export was not started a second time"
        assert pair.item("show")["testFailover"]["state"] == "Completed"

        b.run("kill", "-9", str(known["process"]))
        processes.wait_until(
            lambda: exports(pair)[0]["restarts"] == 1, what="a new export", root=pair.sites.root, seconds=60
        )
        domain.reset()
        _wait_checks(pair, log, 3)
        assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING

    # replication went on all the time, or goes on again
    newest = command(pair, "points", "list", pair.machine)[-1]["number"]
    processes.wait_until(
        lambda: command(pair, "points", "list", pair.machine)[-1]["number"] > newest,
        what="further points",
        root=pair.sites.root,
        seconds=120,
        poll_seconds=0.5,
        evidence=pair.log_tails,
    )
    pair.item("clean-up", "--notes", "survived")
    pair.unprotect(delete_replica=True)
    proof.require_nothing_left(pair.sites, pair.machine)
    assert command(pair, "test-failover", "list")[-1]["notes"] == "survived"


def _wait_checks(pair: Pair, log: Path, count: int) -> None:
    """Until the guest's own checker ran `count` times, and found all in order each time."""
    processes.wait_until(
        lambda: len(read_checks(log)) >= count,
        what=f"check {count} of the test machine",
        root=pair.sites.root,
        seconds=120,
        evidence=lambda: processes.tail(log, 5) + pair.log_tails(),
    )
    assert all(check.good for check in read_checks(log))
