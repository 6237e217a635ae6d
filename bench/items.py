"""Ten thousand protected items: listing, filtering and changing them while their gateways report every 30 s.

A whole server in a process of its own, over TLS, on SQLite and on PostgreSQL; ten gateways with a thousand
protections and a thousand replicas each. Every report says something new of every machine (its newest point),
which is the most a report can cost. Listings come all the while from a client beside it.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from bench.report import Figure, Report
from secondsite import __version__
from secondsite.base.clock import SystemClock
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import ServerClient, Way
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.database.tables_items import ITEMS as ITEMS_TABLE
from secondsite.server.database.values import fresh_id
from secondsite.server.items.service import GatewayRef, Items, NewItem
from secondsite.server.main import Server
from secondsite.server.operations.changing import PAUSE
from secondsite.transfer.desired import WantedMapping
from secondsite.transfer.enrolment import PATH_HEARTBEATS, Heartbeat, HeartbeatAnswer, time_text
from secondsite.transfer.reports import PATH_REPORTS, ProtectionReport, ReplicaReport, ReportAnswer
from secondsite.transfer.reports import Report as GatewayReport
from support.databases import PostgreSQL
from support.server import Caller, cheap_passwords, owner, tls_caller, trusting

ITEMS, GATEWAYS = 10_000, 10
EACH = ITEMS // GATEWAYS
REPORT_SECONDS, HEARTBEAT_SECONDS = 30.0, 10.0
MEASURE_SECONDS, QUICK_SECONDS = 90.0, 30.0
LISTINGS_PER_SECOND = 4.0
CHANGES = 20
PORT = 18443
PAGE = "/api/v1/vaults/North/replicationProtectedItems?limit=100"
CLOCK = SystemClock()


def run(report: Report, work: Path) -> None:
    """Both databases."""
    measure(report, "sqlite", f"sqlite:///{work}/items.db", work / "items-sqlite")
    cluster = PostgreSQL()
    try:
        cluster.start()
        measure(report, "postgresql", cluster.url("postgres"), work / "items-postgresql")
    finally:
        cluster.remove()


def measure(report: Report, name: str, url: str, home: Path) -> None:
    home.mkdir()
    token, members = fill(url, home)
    process = start(url, home)
    stop = threading.Event()
    loops = [threading.Thread(target=gateway, args=(member, stop), daemon=True) for member in members]
    try:
        call = tls_caller("127.0.0.1", PORT, trusting(home / "server" / "authority.crt"), token)
        ready(call)
        for number, loop in enumerate(loops):
            time.sleep(REPORT_SECONDS / len(loops) / 4 if number else 0)
            loop.start()
        time.sleep(REPORT_SECONDS / 2)  # the first reports change everything
        used(process.pid)
        seconds = QUICK_SECONDS if report.quick else MEASURE_SECONDS
        began, cpu = time.monotonic(), used(process.pid)
        times = listings(call, began + seconds)
        span, busy = time.monotonic() - began, used(process.pid) - cpu
        note = f"{ITEMS:,} items, reports every 30 s, {len(times['list'])} of each, over TLS"
        for kind, taken in times.items():
            p95 = statistics.quantiles(taken, n=20)[-1] * 1000
            report.add(Figure(f"items_{kind}_p95_{name}", p95, "ms", at_most=50, note=note))
        share = busy / span * 100
        report.add(
            Figure(f"items_cpu_{name}", share, "% of one core", at_most=30, note="the server, meanwhile")
        )
        changed = statistics.quantiles(changes(call), n=20)[-1] * 1000
        words = "p95 from asking for a pause to the item being Paused"
        report.add(Figure(f"items_change_p95_{name}", changed, "ms", at_most=100, note=words))
        report.add(
            Figure(f"items_rss_{name}", peak_mib(process.pid), "MiB", at_most=400, note="the most it had")
        )
    finally:
        stop.set()
        for loop in loops:
            if loop.ident is not None:
                loop.join(60)
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fill(url: str, home: Path) -> tuple[str, list[Member]]:
    """A vault with enrolled gateways and items, made by a server that then ends."""
    listen = Listen(host="127.0.0.1", port=PORT)
    config = ServerConfig(state_dir=home / "server", database=url, listen=listen)
    server = Server(config, passwords=cheap_passwords())
    server.start()
    try:
        services = server.services
        assert services is not None
        assert services.identity is not None
        assert services.items is not None
        vault = services.identity.vaults.create("North").id
        address = f"https://127.0.0.1:{PORT}"
        members = []
        for number in range(GATEWAYS):
            key, _ = services.identity.keys.create("North", url=address, by="bench")
            name = f"gateway-{number}"
            made = enrol(key, NewMember(name, name, "site"), home / name, way=Way(address), clock=CLOCK)
            members.append(Member(number, made.gateway_id, home / name))
        refs = [GatewayRef(member.id, f"gateway-{member.number}") for member in members]
        items = services.items.items
        for source in range(GATEWAYS):
            with services.database.write() as connection:
                _protect(items, connection, vault, refs, source)
        return owner(services), members
    finally:
        server.stop()


def _protect(items: Items, connection: Connection, vault: str, refs: list[GatewayRef], source: int) -> None:
    """One item as the service makes it, and copies of its row: what is measured is not how they came."""
    target = refs[(source + 1) % GATEWAYS]
    named = f"shop-{source}-0000"
    new = NewItem(vault, machine(source, 0), named, refs[source], target, mapping=WantedMapping())
    first = items.enable(connection, new, by="")
    found = connection.execute(sa.select(ITEMS_TABLE).where(ITEMS_TABLE.c.id == first.id)).one()
    rows = []
    for number in range(1, EACH):
        name = f"shop-{source}-{number:04}"
        row = {**found._mapping, "id": fresh_id(CLOCK), "machine": machine(source, number)}  # noqa: SLF001
        rows.append({**row, "name": name, "name_key": name})
    connection.execute(sa.insert(ITEMS_TABLE), rows)


class Member(msgspec.Struct, frozen=True):
    number: int
    id: str
    files: Path


def machine(source: int, number: int) -> str:
    return f"00000000-0000-4000-8000-{source:04}{number:08}"


def start(url: str, home: Path) -> subprocess.Popen[bytes]:
    config = home / "server.toml"
    lines = [f'state_dir = "{home / "server"}"', f'database = "{url}"', "[listen]", 'host = "127.0.0.1"']
    config.write_text("\n".join([*lines, f"port = {PORT}"]))
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "secondsite", "server", "--config", str(config)], stdout=log, stderr=log
        )


def ready(call: Caller) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if call("GET", "/api/v1/ready").status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


def gateway(member: Member, stop: threading.Event) -> None:
    """Heartbeats and reports, as a gateway of a thousand machines sends them; what is paused, it pauses."""
    client: ServerClient = EnrolledClients(member.files).open()
    generation, point, next_report = 0, 1, 0.0
    while not stop.is_set():
        now = time.monotonic()
        beat = Heartbeat(version=__version__, sent_at=time_text(CLOCK.utc()), protected=EACH)
        found = client.post(PATH_HEARTBEATS, beat, HeartbeatAnswer, seconds=30.0)
        generation = max(generation, found.generation)
        if now >= next_report:
            next_report = now + REPORT_SECONDS
            point += 6
            client.post(PATH_REPORTS, said(member.number, point, generation), ReportAnswer, seconds=30.0)
        stop.wait(HEARTBEAT_SECONDS)


def said(source: int, point: int, generation: int) -> GatewayReport:
    protections = tuple(
        ProtectionReport(
            machine=machine(source, number),
            name=f"shop-{source}-{number:04}",
            peer=f"gateway-{(source + 1) % GATEWAYS}",
            item="x",
            revision=1,
            state="Protected",
            health="Normal",
            points=point,
            last_point=point,
            last_point_at=time_text(CLOCK.utc()),
            rpo_seconds=2.0,
            total_changed_bytes=point << 20,
            total_sent_bytes=point << 18,
        )
        for number in range(EACH)
    )
    kept = (source - 1) % GATEWAYS
    replicas = tuple(
        ReplicaReport(
            machine=machine(kept, number),
            name=f"shop-{kept}-{number:04}",
            revision=1,
            points=point,
            newest=point,
            newest_at=time_text(CLOCK.utc()),
            retention="all:2h",
        )
        for number in range(EACH)
    )
    return GatewayReport(
        sent_at=time_text(CLOCK.utc()), generation=generation, protections=protections, replicas=replicas
    )


def listings(call: Caller, until: float) -> dict[str, list[float]]:
    """Pages from anywhere, and four filters; each timed alone, handshake included."""
    kinds: dict[str, Callable[[int], str]] = {
        "list": lambda _turn: PAGE,
        "filter_name": lambda turn: f"{PAGE}&name=-{turn % 10}-0{turn % 10}",
        "filter_state": lambda _turn: f"{PAGE}&state=InitialReplicationCompletedOnRecovery",
        "filter_health": lambda _turn: f"{PAGE}&health=Critical",
        "filter_gateway": lambda turn: f"{PAGE}&provider=gateway-{turn % 10}",
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    link, turn = PAGE, 0
    while time.monotonic() < until:
        for kind, path in kinds.items():
            began = time.monotonic()
            answer = call("GET", link if kind == "list" else path(turn))
            times[kind].append(time.monotonic() - began)
            assert answer.status == 200, answer.data
            if kind == "list":
                link = answer.json()["nextLink"] or PAGE
        turn += 1
        time.sleep(1 / LISTINGS_PER_SECOND)
    return times


def changes(call: Caller) -> list[float]:
    """How long until the state is what was asked for."""
    taken = []
    for number in range(CHANGES):
        item = f"/api/v1/vaults/North/replicationProtectedItems/shop-3-{number:04}"
        if "finalize" in call("GET", item).json()["allowedOperations"]:
            done = call("POST", f"{item}/finalize")
            assert done.status == 202, done.data
            while call("GET", done.headers["location"]).json()["endedAt"] is None:
                time.sleep(0.01)
        began = time.monotonic()
        asked = call("POST", f"{item}/pause")
        assert (asked.status, asked.json().get("kind")) == (202, PAUSE), asked.data
        while call("GET", item).json()["state"] != "Paused":
            time.sleep(0.002)
        taken.append(time.monotonic() - began)
    return taken


def used(pid: int) -> float:
    """Seconds of processor time a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The most memory a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")
