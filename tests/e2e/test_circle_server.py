"""The same circle as tests/e2e/test_circle.py, by the server's commands alone, as an operator types them.

Protected, tested, moved in order, committed, protected back onto the old disks, moved back, committed, and
protected in the first direction again; the guest checks its records at each boot. Once in every run, twice by
`./run circle`. On the first way there and back the server and both gateways die by kill -9, at a mark of each
sort of step, and are started again; who typed a command sees no more of it than that it takes longer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.reverse import kept
from secondsite.gateway.reverse import steps as reversesteps
from secondsite.gateway.source import committing
from secondsite.lab import processes
from secondsite.lab.gateways import Gateways
from secondsite.lab.machine import Guest, read_checks, read_console
from secondsite.lab.place import Site
from secondsite.lab.server import VAULT, LabServer
from secondsite.lab.sites import Sites
from secondsite.model import confirmations
from secondsite.model.reversals import reversed_onto
from support.lab import SMALL_GUEST, RunningGuest, running_guest, running_sites
from support.mortals import SERVER, Mortals

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(1200)]

ROUNDS = 2 if os.environ.get("SECONDSITE_MATRIX") == "full" else 1
SHOP = "shop"
# Those of a planned stop and of flattening are in tests/e2e/test_guests.py, those of an unplanned failover, a
# roll-back and a held source in tests/e2e/test_failover.py; at all marks they die by `./run kills`.
DEATHS = {
    SERVER: [
        "jobs.called@item.planned-failover/claimed/do/Done",  # the store has the claim, the server not
        "jobs.noted@item.commit/disks-plain/do",  # it waits while the disks are copied
        "jobs.noted@item.reprotect/reverse/do",  # the old disks are being offered
        "jobs.begun@item.planned-failover/booted/do",  # on the way back
    ],
    "A": [reversesteps.OFFERED, fencing.ROOM_MADE],
    "B": [failoverrun.AFTER_EXPORT, committing.AFTER_COMMIT, kept.RETIRE_ASKED],
}


@dataclass
class Operator:
    """Whoever types, with what the guest's witness knows to compare with."""

    sites: Sites
    server: LabServer
    gateways: Gateways
    running: RunningGuest
    mortals: Mortals
    said: list[str] = field(default_factory=list)  # what was typed, for a failure's message

    def item(self, verb: str, *words: str | Path) -> Any:
        """An order about the machine, to its end; what it says as JSON."""
        self.said.append(" ".join(map(str, (verb, *words))))
        order = ("item", verb, VAULT, SHOP, *words, "--json")
        try:
            return json.loads(self.server.run(*order, timeout_seconds=600))
        except Exception:  # root: the logs go with the sites, so they are shown before
            print(self.evidence())
            raise

    def shows(self, state: str) -> dict[str, Any]:
        """Until the server shows the machine like this."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.item("show")
            self.said.pop()
            return found if found["state"] == state else None

        return processes.wait_until(
            look, what=f"{SHOP} as {state}", root=self.sites.root, seconds=180, evidence=self.evidence
        )

    def evidence(self) -> str:
        """What was typed, and the ends of all logs."""
        logs = [site.directory / "log" / f"{self.gateways.name(site)}.log" for site in self.sites.sites]
        logs.append(self.server.site.directory / "log" / "server.log")
        died = [" ".join(one) for one in self.mortals.died]
        return "\n".join([*self.said, *died, *(f"--- {log.name}\n{processes.tail(log, 15)}" for log in logs)])

    def records(self, more: int) -> None:
        """Until the guest acknowledged `more` further records."""
        witness = self.running.witness
        wanted = witness.acknowledged + more
        processes.wait_until(
            lambda: witness.acknowledged >= wanted,
            what=f"{more} records",
            root=self.sites.root,
            seconds=120,
            evidence=lambda: witness.trouble,
        )


@pytest.fixture
def operator() -> Iterator[Operator]:
    with (
        running_sites() as sites,
        running_guest(sites.a, replace(SMALL_GUEST, name=SHOP)) as running,
    ):
        server = LabServer(sites)
        gateways = Gateways(sites, server)
        mortals = Mortals(server, gateways, DEATHS)
        mortals.start_server()
        gateways.prepare()
        mortals.start_gateways()
        made = Operator(sites, server, gateways, running, mortals)
        for site in sites.sites:
            server.run("gateway", "prove-key", gateways.name(site), "--recovery-key", gateways.recovery_key)
        try:
            yield made
        finally:
            mortals.end()
            gateways.stop()


def test_there_and_back_again_by_the_servers_commands(operator: Operator) -> None:
    a, b = operator.sites.sites
    operator.item("protect", "--to", operator.gateways.name(b), *_mapped(a, b))
    operator.shows("Protected")
    operator.records(20)
    for number in range(ROUNDS):
        _drill(operator, b)
        _move(operator, a, b, old=number > 0)
        _protect_back(operator, b, a)
        _move(operator, b, a, old=True)
        _protect_back(operator, a, b)
    operator.mortals.require_all_died()


def _mapped(source: Site, target: Site) -> list[str]:
    return ["--network", f"{source.network}={target.network}", "--pool", f"{source.pool}={target.pool}"]


def _drill(operator: Operator, site: Site) -> None:
    before = operator.running.witness.acknowledged
    operator.item("test-failover", "--point", "latest")
    with operator.gateways.client(site) as client:
        status = client.test_failovers()[-1]
    check = _checked(operator, site.host_path(status.console_log or ""))
    assert check.last > 0
    assert before > 0
    operator.item("clean-up", "--notes", "comes up")


def _move(operator: Operator, source: Site, target: Site, *, old: bool) -> None:
    names = operator.gateways.name(source), operator.gateways.name(target)
    words = ["--network", target.network, "--confirm", confirmations.moved(SHOP, *names)]
    operator.item("planned-failover", *words, *(["--old-machine", "remove-with-disks"] if old else []))
    operator.shows("PlannedFailoverCompleted")
    witness = operator.running.witness
    last = witness.acknowledged
    witness.close()
    with FailoverClient(operator.gateways.control_socket(target)) as client:
        status = client.failovers()[-1]
    check = _checked(operator, target.host_path(status.console_log or ""))
    assert check.last >= last, "a record was lost"
    assert status.loss_seconds == 0
    operator.item("commit", "--confirm", confirmations.kept(SHOP))
    operator.shows("CommitFailoverCompleted")
    guest = Guest(target, operator.running.guest.spec)
    processes.wait_until(
        guest.agent_answers,
        what="its agent",
        root=operator.sites.root,
        seconds=120,
        evidence=operator.evidence,
    )
    witness.attach(guest.channel_path())
    operator.records(1)


def _protect_back(operator: Operator, source: Site, target: Site) -> None:
    operator.item("reprotect", *_mapped(source, target), "--confirm", reversed_onto(SHOP))
    shown = operator.shows("Protected")
    names = operator.gateways.name(source), operator.gateways.name(target)
    assert (shown["provider"], shown["targetProvider"]) == names
    operator.records(20)


def _checked(operator: Operator, log: Path) -> Any:
    """What its own checker found."""
    root = operator.sites.root
    processes.wait_until(lambda: read_checks(log), what="a check", root=root, seconds=180)
    processes.wait_until(lambda: "READY" in "".join(read_console(log)), what="READY", root=root, seconds=120)
    check = read_checks(log)[-1]
    assert check.good, check
    return check
