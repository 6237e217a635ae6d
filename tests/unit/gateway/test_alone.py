"""Replication without the server, on a clock that the test moves: whole gateways, made-up hosts.

Both begin anew without it, with certificates that end within hours and wait to be renewed. Ten minutes in
every run; `./run alone` has nine days, in which a certificate is to be renewed and cannot be.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.events import EVENTS_MAX
from secondsite.gateway.messages.gateway import ExportRequest, Health, PointSummary
from secondsite.gateway.uplink import enrolkeeper
from secondsite.model.events import Event, Severity
from secondsite.model.ids import MachineId
from secondsite.nbd.client import NbdClient
from secondsite.server.people.roles import Grant, Role
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, joined
from support.server import user_with
from support.until import until
from support.virtual import VirtualClock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
DISK, DISK_BYTES, BLOCK = "vda", 2 * MIB, 64 * 1024
# A gateway's certificate is valid for so long. TLS looks at the real time: all of the story lies in its past,
# but not by as much.
LIFE = 30 * DAY
POLICIES = "/api/v1/vaults/North/replicationPolicies"
full = pytest.mark.skipif(os.environ.get("SECONDSITE_MATRIX") != "full", reason="run by ./run alone")


@dataclass
class Alone:
    """A protected machine, whose server comes and goes; what its disk held at each point."""

    place: Joined
    clock: VirtualClock
    every_seconds: float
    machine: MachineId = field(init=False)
    disk: bytearray = field(default_factory=lambda: bytearray(DISK_BYTES))
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    known: dict[int, tuple[str, bytes]] = field(default_factory=dict)  # point -> (asked at, content)
    since: datetime = field(init=False)  # both gateways run, and the server does not
    users: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.place.fabrics = {A: MemoryFabric(clock=self.clock), B: MemoryFabric(clock=self.clock)}
        self.machine = self.fabric.add_machine("shop", {DISK: DISK_BYTES})

    @property
    def fabric(self) -> MemoryFabric:
        return self.place.fabrics[A]

    def start_gateways(self) -> None:
        for gateway in (B, A):
            self.place.start(gateway)

    def stop_gateways(self) -> None:
        for gateway in (A, B):
            self.place.stop(gateway)

    def protect(self, retention: str) -> None:
        """Through the server, by a policy."""
        settings = {
            "copyFrequencySeconds": self.every_seconds,
            "rpoThresholdSeconds": 60 * self.every_seconds,  # while time flows its cycles may come late
            "retention": retention,
        }
        with self.clock.flowing():
            self.place.read_site(A)
            assert self.place.prove_through_server()["state"] == "Succeeded"
            policy = self.place.call("POST", POLICIES, {"friendlyName": "Gold", "settings": settings})
            assert policy.status == 201, policy.data
            new = {"machine": self.machine, "provider": A, "targetProvider": B, "policy": "Gold"}
            done = self.place.job("POST", ITEMS, new)
            assert done["state"] == "Succeeded", done["error"]

    def write(self) -> None:
        """The guest does."""
        block = self.chance.randrange(DISK_BYTES // BLOCK) * BLOCK
        data = self.chance.randbytes(4096)
        self.fabric.write(self.machine, DISK, block, data)
        self.disk[block : block + len(data)] = data

    def points(self) -> list[PointSummary]:
        with self.place.client(B) as client:
            return client.points(self.machine)

    def newest(self) -> int:
        with self.place.client(A) as client:
            return client.protection(self.machine).last_point or 0

    def step(self) -> None:
        """So much time passes as a policy lets pass between two points: there is one more, of that moment."""
        before, at = self.newest(), self.clock.utc() + timedelta(seconds=self.every_seconds)
        self.write()
        self.clock.advance(self.every_seconds)
        until(lambda: self.newest() > before, f"a point of {at}")
        [point] = [each for each in self.points() if each.number > before]
        assert datetime.fromisoformat(point.asked_at) == at
        with self.place.client(A) as client:
            status = client.protection(self.machine)
        assert (status.rpo_seconds, status.health) == (0, Health.NORMAL), status.note
        self.known[point.number] = (point.asked_at, bytes(self.disk))

    def catch_up(self) -> None:
        """Time flows until a point of now is there, and nothing more is on its way."""
        with self.clock.flowing():
            now = self.clock.utc()
            until(lambda: datetime.fromisoformat(self.points()[-1].asked_at) > now, "a point")
        until(self._quiet, "quiet")

    def _quiet(self) -> bool:
        with self.place.client(A) as client:
            status = client.protection(self.machine)
        return status.last_point == self.points()[-1].number and status.spool_bytes == 0

    def require_right(self) -> None:
        """What is left of the known points reads as the disk was."""
        left = [point for point in self.points() if point.number in self.known]
        for point in (left[0], left[len(left) // 2], left[-1]):
            assert (point.asked_at, self._read(point)) == self.known[point.number]

    def _read(self, point: PointSummary) -> bytes:
        with self.place.client(B) as client:
            request = ExportRequest(point=str(point.number), socket_dir=str(self.place.root))
            export = client.start_export(self.machine, request)
            [disk] = export.disks
            name, _, path = disk.uri.removeprefix("nbd+unix:///").partition("?socket=")
            read = bytearray(DISK_BYTES)
            with contextlib.closing(NbdClient.connect_unix(path, name)) as nbd:
                nbd.read_into(0, memoryview(read))
            with self.clock.flowing():  # its process is given time to end
                client.end_export(self.machine, export.id)
        return bytes(read)

    def go_away(self) -> None:
        self.place.stop_server()

    def come_back(self) -> None:
        """The server does; somebody has a token of it again."""
        self.place.start_server()
        server = self.place.server
        assert server is not None
        assert server.services is not None
        name = f"maria-{next(self.users)}"
        self.place.token = user_with(server.services, name, Grant("*", Role.OWNER))

    def told_here(self, gateway: str) -> list[Event]:
        """What happened at a gateway in this run of it."""
        return [event for _, event in self.place.gateways[gateway].events.since(0, 10**6)]

    def told_there(self, gateway: str, since: datetime | None = None) -> list[dict[str, Any]]:
        """What the server knows of that."""
        found: list[dict[str, Any]] = []
        above = 0
        while True:
            query = f"gateway={gateway}&order=oldest&above={above}&limit=1000"
            page = self.place.call("GET", f"/api/v1/events?{query}").json()["value"]
            if not page:
                break
            found += page
            above = page[-1]["number"]
        return [
            one
            for one in found
            if one["toldAt"] and datetime.fromisoformat(one["toldAt"]) >= (since or self.since)
        ]


@contextlib.contextmanager
def story(
    databases: Databases, every_seconds: float, retention: str, *, left: float, away: float
) -> Iterator[Alone]:
    """Protected by a server that is away; both gateways run since, their certificates have `left` seconds.

    away: seconds that the test lets pass until the server is back.
    """
    clock = VirtualClock(SystemClock().utc() - timedelta(seconds=LIFE - left + away + 2 * HOUR))
    with (
        tempfile.TemporaryDirectory(prefix="al") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name), clock) as place,
    ):
        made = Alone(place, clock, every_seconds)
        made.go_away()
        made.stop_gateways()
        clock.advance(LIFE - left)
        made.come_back()
        with mock.patch.object(enrolkeeper, "RENEW_AT", 2.0):  # not yet
            made.start_gateways()
            made.protect(retention)
            made.go_away()
            made.stop_gateways()
        clock.advance(1)
        made.since = clock.utc() - timedelta(seconds=0.5)  # events have milliseconds
        made.start_gateways()
        made.catch_up()
        yield made


@pytest.mark.timeout(300)  # seconds on an idle machine
def test_ten_minutes_without_the_server(databases: Databases) -> None:
    with story(databases, 5.0, "all:2min,1min:5min", left=4 * HOUR, away=10 * MINUTE) as alone:
        begun = alone.clock.utc()
        first = alone.newest()
        flood = alone.place.gateways[B].events
        for number in range(int(10 * MINUTE / alone.every_seconds)):
            alone.step()
            if number % 10 == 0:  # more than can be kept for the server
                for one in range(EVENTS_MAX // 10):
                    flood.emit("test.flood", Severity.INFORMATION, f"one of many, {number} {one}")
        assert alone.clock.utc() - begun == timedelta(minutes=10)
        assert alone.newest() - first == 120
        told = [(event.code, datetime.fromisoformat(event.at)) for event in alone.told_here(A)]
        assert {"server.away", "certificate.expires-soon"} <= {code for code, _ in told}
        assert "replicate.rpo-missed" not in {code for code, at in told if at > begun}, told
        _is_thinned(alone)
        alone.require_right()
        _catches_up(alone)


def _is_thinned(alone: Alone) -> None:
    """By its policy, a look a minute: all of two minutes, one a minute of three more."""
    ages = [
        (alone.clock.utc() - datetime.fromisoformat(point.at)).total_seconds() for point in alone.points()
    ]
    assert len([age for age in ages if age <= 2 * MINUTE]) >= 24
    assert len(ages) <= 24 + 3 + 2 * 12 + 2
    assert max(ages) <= 7 * MINUTE


def _catches_up(alone: Alone) -> None:
    """The server is back: it hears of all once, in its order, and what it wants otherwise is done."""
    place = alone.place
    alone.come_back()
    change = {"settings": {"copyFrequencySeconds": 10.0}}
    changed = place.call("PATCH", f"{POLICIES}/Gold", change)
    assert changed.status == 200, changed.data
    here = {gateway: alone.told_here(gateway) for gateway in (A, B)}
    newest = alone.newest()
    with alone.clock.flowing():
        until(lambda: place.item(alone.machine)["lastPoint"] >= newest, "the report")
        well = ("Protected", "Normal")
        until(
            lambda: (place.item(alone.machine)["state"], place.item(alone.machine)["health"]) == well, "well"
        )
        for gateway in (A, B):
            last = here[gateway][-1]
            until(lambda: _knows(alone, gateway, last), f"the events of {gateway}")  # noqa: B023
        with place.client(A) as client:
            until(lambda: client.protection("shop").copy_frequency_seconds == 10, "what is wanted now")
    with alone.clock.flowing(hurry=8):  # tried again ever more seldom while the server was away
        for gateway in (A, B):
            until(lambda: _renewed(alone, gateway), f"a certificate of {gateway}")  # noqa: B023
    for gateway in (A, B):
        there = [
            _seen(one["toldAt"], one["code"], one["text"]) for one in alone.told_there(gateway, alone.since)
        ]
        kept = [_seen(event.at, event.code, event.text) for event in here[gateway]]
        # B could not keep all of it, and what it had kept longest went with each that came after
        lost = kept.index(there[0])
        assert lost < (100 if gateway == B else 1)
        assert there[: len(kept) - lost] == kept[lost:]
    query = f"/api/v1/events?gateway={B}&code=events.gap"
    assert len(place.call("GET", query).json()["value"]) == 1
    assert place.call("GET", f"/api/v1/events?gateway={A}&code=events.gap").json()["value"] == []


def _standing(alone: Alone) -> tuple[str, str]:
    shown = alone.place.item(alone.machine)
    return shown["state"], shown["health"]


def _seen(at: str, code: str, text: str) -> tuple[datetime, str, str]:
    return datetime.fromisoformat(at), code, text


def _knows(alone: Alone, gateway: str, last: Event) -> bool:
    at = datetime.fromisoformat(last.at)
    return any(one["text"] == last.text for one in alone.told_there(gateway, at))


def _renewed(alone: Alone, gateway: str) -> bool:
    return any(event.code == "server.certificate-renewed" for event in alone.told_here(gateway))


@full
@pytest.mark.timeout(1800)
def test_nine_days_without_the_server_past_the_day_its_certificates_are_to_be_renewed(
    databases: Databases,
) -> None:
    """A point each quarter of an hour; then the server is back, in time."""
    with story(databases, 15 * MINUTE, "all:1d,2h:5d", left=11 * DAY, away=9 * DAY) as alone:
        begun = alone.clock.utc()
        for _ in range(int(9 * DAY / alone.every_seconds)):
            alone.step()
        codes = [event.code for event in alone.told_here(A)]
        assert codes.count("certificate.expires-soon") >= 8, "each day"
        ages = [alone.clock.utc() - datetime.fromisoformat(point.at) for point in alone.points()]
        assert timedelta(days=4) < max(ages) < timedelta(days=6)
        assert len(ages) < 96 + 5 * 12 + 12
        alone.require_right()
        alone.come_back()
        newest = alone.newest()
        with alone.clock.flowing(hurry=8):
            until(lambda: alone.place.item(alone.machine)["lastPoint"] >= newest, "the report")
            for gateway in (A, B):
                until(lambda: _renewed(alone, gateway), f"a certificate of {gateway}")  # noqa: B023
                last = alone.told_here(gateway)[-1]
                until(lambda: _knows(alone, gateway, last), f"the events of {gateway}")  # noqa: B023
        assert alone.clock.utc() - begun > timedelta(days=9)
