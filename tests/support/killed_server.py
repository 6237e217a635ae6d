"""A server in a process that dies at every step, and two whole gateways that live, on imaginary hosts.

On SQLite there is one, and the next follows it; on PostgreSQL two behind a balancer, of which one goes on.
What hosts were made to do, and what gateways carried out for the server, is written down: to compare with
what one run of the operation does that nobody disturbs.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.gateway.parts import server as serverparts
from secondsite.gateway.uplink import calls as gateway_calls
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import MachineId
from secondsite.model.points import Claim
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.database.engine import open_database
from secondsite.server.database.tables_calls import CALLS
from secondsite.server.database.tables_jobs import job_locks
from secondsite.server.identity.service import MASTER_KEY_NAME
from secondsite.server.main import AUTHORITY_NAME, Server
from secondsite.server.people.roles import Grant, Role
from secondsite.transfer.calls import Answer, Call
from support.balancer import Balancer
from support.circle import CircleFabric
from support.control import command_environment
from support.exports import end_exports
from support.joined import GATEWAYS_OFTEN, ITEMS, A, B, free_port
from support.joined_circle import JoinedCircle
from support.server import Answer as ApiAnswer
from support.server import Caller, cheap_passwords, tls_caller, trusting, user_with
from support.until import until

TESTS = Path(__file__).resolve().parents[1]
ENDED = {"Succeeded", "Failed", "Cancelled"}
DISK, SIZE = "vda", 2 * MIB
# A step may be died at six times; with forty steps on a busy machine that takes a while.
JOB_SECONDS_MAX = 3000.0


class WatchedHost(CircleFabric):
    """Writes down what changes who runs, and refuses to begin two copies at once where that is certain."""

    def __init__(self, directory: Path, site: str, did: list[tuple[str, str]]) -> None:
        super().__init__(directory)
        self.site, self.did = site, did
        self.other: WatchedHost | None = None
        self.together = False  # whether both may run: the source cannot know yet
        self.twice: list[str] = []

    def _note(self, what: str, machine: MachineId) -> None:
        self.did.append((self.site, what))
        if self.other is not None and not self.together and self.runs(machine) and self.other.runs(machine):
            self.twice.append(what)

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        made = super().start_recovered(spec)
        self._note("started", made.id)
        return made

    def run_recovered(self, recovered: Recovered) -> bool:
        before = self.runs(recovered.id)
        found = super().run_recovered(recovered)
        if not before:
            self._note("run", recovered.id)
        return found

    def remove_recovered(self, recovered: Recovered) -> None:
        if recovered.id in self._recovered:
            self.did.append((self.site, "removed"))
        super().remove_recovered(recovered)

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        if recovered.id in self._recovered:
            self.did.append((self.site, "settled"))
        super().settle_recovered(recovered, autostart=autostart)

    def ask_to_shut_down(self, machine: MachineId, *, agent: bool) -> None:
        self.did.append((self.site, "asked to shut down"))
        super().ask_to_shut_down(machine, agent=agent)

    def power_off(self, machine: MachineId) -> None:
        if self.runs(machine):
            self.did.append((self.site, "switched off"))
        super().power_off(machine)

    def lift_isolation(self, machine: MachineId, *, run: bool) -> None:
        before = self.runs(machine)
        super().lift_isolation(machine, run=run)
        if not before and self.runs(machine):
            self._note("let run", machine)

    def remove_machine(self, machine: MachineId, *, disks: bool) -> Sequence[str]:
        if machine in self._machines:
            self.did.append((self.site, "old machine removed"))
        return super().remove_machine(machine, disks=disks)


@dataclass
class KilledServer(JoinedCircle):
    """`start_processes` once both gateways are enrolled; from then on servers are processes.

    ports: of the servers; `port` is the one where they are reached, which may be a balancer's.
    """

    ports: tuple[int, ...] = ()
    did: list[tuple[str, str]] = field(default_factory=list)  # by the hosts, in order
    carried: list[tuple[Call, bool]] = field(default_factory=list)  # by gateways for the server; whether ok
    bob: str = ""  # a second person's token
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    machine: MachineId = field(init=False)

    @property
    def plan(self) -> Path:
        return self.root / "plan"

    def host(self, name: str) -> WatchedHost:
        found = self.fabrics[name]
        assert isinstance(found, WatchedHost)
        return found

    def start_server(self) -> None:
        """The first of them, in this process."""
        listen = Listen(host="127.0.0.1", port=self.ports[0])
        config = ServerConfig(
            state_dir=self.root / "server", database=self.database_url, listen=listen, url=self.url
        )
        self.server = Server(config, passwords=cheap_passwords())
        self.server.start()

    def start_processes(self) -> None:
        (self.plan / "died").mkdir(parents=True)
        for number, port in enumerate(self.ports):
            home = self.root / ("server" if number == 0 else f"server-{number}")
            if number:
                home.mkdir(mode=0o700)
                shutil.copy2(self.root / "server" / MASTER_KEY_NAME, home)
            self._spawn(home, port)
        until(lambda: self.steady("GET", "/api/v1/health").status == 200, "the server")

    def _spawn(self, home: Path, port: int) -> None:
        lines = [
            f"state_dir = {json.dumps(str(home))}",
            f"database = {json.dumps(self.database_url)}",
            f"url = {json.dumps(self.url)}",
            f'[listen]\nhost = "127.0.0.1"\nport = {port}',
        ]
        config = home.with_suffix(".toml")
        config.write_text("\n".join(lines))
        words = [sys.executable, "-m", "support.server_process", str(config), str(self.plan)]
        with (self.root / "server.log").open("ab") as output:
            environment = command_environment(PYTHONPATH=str(TESTS))
            self.processes.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))

    def end_processes(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)

    # asking a server that dies

    def once(self, method: str, path: str, body: object = None, token: str = "") -> ApiAnswer | None:
        """None: it died of it, or is not there yet."""
        assert all(process.poll() is None for process in self.processes), self.evidence()
        try:
            return self._often(method, path, body, {"authorization": f"Bearer {token or self.token}"})
        except (OSError, http.client.HTTPException):
            return None

    @functools.cached_property
    def _often(self) -> Caller:
        authority = trusting(self.root / "server" / AUTHORITY_NAME)
        return tls_caller("127.0.0.1", self.port, authority, keep=True)

    def steady(self, method: str, path: str, body: object = None, token: str = "") -> ApiAnswer:
        """Asked until it answers: for what may be asked again."""
        found: list[ApiAnswer] = []

        def asked() -> bool:
            answer = self.once(method, path, body, token)
            if answer is not None and answer.status != 503:
                found.append(answer)
            return bool(found)

        until(asked, f"an answer to {method} {path}", 120)
        return found[0]

    def item(self, machine: str) -> dict[str, Any]:
        found = self.steady("GET", f"{ITEMS}/{machine}")
        assert found.status == 200, found.data
        return dict(found.json())

    def _newest(self) -> str:
        found = self.steady("GET", "/api/v1/jobs?limit=20").json()["value"]
        return next((str(job["id"]) for job in found if job["kind"].startswith("item.")), "")

    def begin(self, path: str, body: object) -> str:
        """Start a job as a person does whose server may die before it says that it has begun: they look."""
        before = self._newest()
        while True:
            answer = self.once("POST", path, body)
            if answer is not None and answer.status == 202:
                return str(answer.json()["id"])
            if (there := self._newest()) != before:
                return there
            assert answer is None or answer.status == 503, answer.data

    def ended(self, job: str, answers: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Once it has; what it asks meanwhile is answered by `answers`, which is given the job."""
        shown: dict[str, Any] = {}

        def over() -> bool:
            shown.update(self.steady("GET", f"/api/v1/jobs/{job}").json())
            if shown["question"] is not None:
                assert answers is not None, shown
                answers(shown)
            return shown["state"] in ENDED

        try:
            until(over, f"the end of {job}", JOB_SECONDS_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}: {shown}\n{self.evidence(job)}") from None
        return shown

    def run(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        answers: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """A job that nobody disturbs."""
        begun = self.steady(method, path, body)
        assert begun.status == 202, begun.data
        done = self.ended(str(begun.json()["id"]), answers)
        assert done["state"] == "Succeeded", (done["error"], self.evidence(done["id"]))
        return done

    # dying

    def arm(self, at: Sequence[str]) -> None:
        shutil.rmtree(self.plan / "died")
        (self.plan / "died").mkdir()
        (self.plan / "new").write_text("\n".join(at))
        (self.plan / "new").rename(self.plan / "at")
        self.did.clear()
        self.carried.clear()

    def disarm(self) -> set[str]:
        """Where it died since it was armed."""
        (self.plan / "at").unlink()
        return {path.name.replace("|", "/") for path in (self.plan / "died").iterdir()}

    # what must hold afterwards

    def claims(self, name: str) -> list[Claim]:
        journal = Journal(LocalStore(self.root / name / "store"), self.machine, self.vault)
        return [record for record in journal.records() if isinstance(record, Claim)]

    def require_nothing_half(self) -> None:
        """No lock, no call and no job is left, and each change was carried out at its gateway once."""
        for host in (self.host(A), self.host(B)):
            assert host.twice == [], "two copies ran at once"
        done = Counter(call.id for call, ok in self.carried if ok and call.method != "GET")
        assert [one for one, times in done.items() if times > 1] == [], done
        database = open_database(self.database_url, SystemClock())
        try:
            with database.read() as connection:
                assert connection.execute(sa.select(job_locks)).all() == []
                mine = sa.and_(CALLS.c.job != "", CALLS.c.answered_at.is_(None), CALLS.c.method != "GET")
                assert connection.execute(sa.select(CALLS.c.id).where(mine)).all() == []
        finally:
            database.close()

    def require_one_operation(self, path: str) -> None:
        """Whatever was asked of gateways there was asked under one number."""
        bodies = [json.loads(call.body) for call, _ in self.carried if call.path == path and call.body]
        assert len({body.get("operation") for body in bodies}) <= 1, bodies

    def evidence(self, job: str = "") -> str:
        log = (self.root / "server.log").read_text()[-6000:]
        told = []
        if job:
            with contextlib.suppress(AssertionError):
                found = self.steady("GET", f"/api/v1/jobs/{job}/log?limit=1000").json()["value"]
                told = [f"{line['at']} {line['step']} {line['text']}" for line in found[-40:]]
        return "\n".join([*told, *(" ".join(one) for one in self.did), log])


@contextlib.contextmanager
def killed_server(database_url: str, root: Path) -> Iterator[KilledServer]:
    """The machine shop runs at A and is protected to B."""
    if database_url.startswith("sqlite"):
        port = free_port()
        with _killed_server(database_url, root, (port,), port) as made:
            yield made
        return
    ports = (free_port(), free_port())
    with Balancer(ports) as balancer, _killed_server(database_url, root, ports, balancer.port) as made:
        yield made


@contextlib.contextmanager
def _killed_server(
    database_url: str, root: Path, ports: tuple[int, ...], port: int
) -> Iterator[KilledServer]:
    did: list[tuple[str, str]] = []
    hosts = {name: WatchedHost(root / f"images-{name}", name[-1].upper(), did) for name in (A, B)}
    hosts[A].other, hosts[B].other = hosts[B], hosts[A]
    made = KilledServer(root, database_url, port, fabrics=dict(hosts), did=did, ports=ports)

    def watched(socket: Path) -> Callable[[Call], Answer]:
        carry_out = gateway_calls.over_socket(socket)

        def carry(call: Call) -> Answer:
            answer = carry_out(call)
            made.carried.append((call, answer.ok))
            return answer

        return carry

    with contextlib.ExitStack() as stack:
        often = {**GATEWAYS_OFTEN, "secondsite.gateway.uplink.calls.RETRY_SECONDS": 0.1}
        for name, value in often.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.object(serverparts, "over_socket", watched))
        stack.callback(end_exports, root)
        _enrol(made)
        stack.callback(made.end_processes)
        made.start_processes()
        stack.callback(_stop_gateways, made)
        for name in (B, A):
            made.start(name)
        made.machine = machine = hosts[A].add_machine("shop", {DISK: SIZE})
        hosts[A].write(machine, DISK, 65536, b"hello" * 4000)
        for name in (A, B):
            made.prove(name)
        made.read_site(A)
        made.run(ITEMS, {"machine": machine, "provider": A, "targetProvider": B})
        yield made


def _enrol(made: KilledServer) -> None:
    """In this process, which makes the vault, its people and its gateways' certificates."""
    made.start_server()
    try:
        made.enrol()
        assert made.server is not None
        assert made.server.services is not None
        made.bob = user_with(made.server.services, "bob", Grant("*", Role.OWNER))
    finally:
        made.stop_server()


def _stop_gateways(made: KilledServer) -> None:
    for name in list(made.gateways):
        made.stop(name)
