"""Two whole gateways in processes of their own over imaginary hosts, to be killed wherever a test says.

Whoever dies is started again, and what was asked is asked again, under the same number, as a server does it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from secondsite.base.clock import SystemClock
from secondsite.base.units import KIB
from secondsite.gateway.control.client import GatewayUnreachable
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import MachineId
from support.exports import end_exports
from support.file_fabric import FileFabric
from support.forked import Forked, forked_gateway
from support.gateway_pair import A, B, Pair
from support.guest_log import DISKS, MACHINE, GuestLog, contents_at, positions_of
from support.kill_hosts import Ran, RunLog
from support.until import until

T = TypeVar("T")
_NAMES = {"A": A, "B": B}


class KillSites:
    """`root` is short: sockets lie below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pair = Pair(root)
        self.machine = MachineId(MACHINE)
        (root / "guest").mkdir()
        self.guest = GuestLog(root / "guest")
        self.log = RunLog(root / "runs.log", root / B / "store")
        self.processes: dict[str, Forked] = {}
        self.died: list[str] = []
        self._writes = 0
        ports = {name: _free_port() for name in (A, B)}
        self.configs = {}
        for site, name, other in (("A", A, B), ("B", B, A)):
            self.pair.store = f"file://{root / name}/store"
            url = f"https://127.0.0.1:{ports[other]}"
            self.configs[site] = self.pair.config(name, listen=ports[name], peers={other: url})
        for site in ("B", "A"):
            self._spawn(site)
        for site in ("B", "A"):
            self._wait_answers(site)
        self.write(64 * KIB)
        self.pair.protect("shop", frequency_seconds=3600.0)  # points are taken when a test wants one
        with self.client("A") as client:
            until(lambda: client.status().protections[0].last_point is not None, "the first point")

    # gateways

    def client(self, site: str) -> FailoverClient:
        return FailoverClient(self.root / _NAMES[site] / "c.sock")

    def start(self, site: str) -> None:
        """Begin its process and wait until it answers."""
        self._spawn(site)
        self._wait_answers(site)

    def _spawn(self, site: str) -> None:
        words = (site, str(self.configs[site]), str(self.root))
        with (self.root / f"{site}.log").open("ab") as output:
            self.processes[site] = forked_gateway(*words, output=output, module="support.kill_process")

    def _wait_answers(self, site: str) -> None:
        process = self.processes[site]

        def answers() -> bool:
            assert process.poll() is None, self.evidence()
            try:
                with self.client(site) as client:
                    client.status()
            except GatewayUnreachable:
                return False
            return True

        until(answers, f"gateway {site} answers")

    def arm(self, site: str, mark: str) -> None:
        """From now on it dies at the mark, once."""
        arm = self.root / f"{site}.arm"
        (self.root / "arm.new").write_text(mark)
        (self.root / "arm.new").rename(arm)
        self.processes[site].send_signal(signal.SIGUSR1)
        until(lambda: not arm.exists(), f"{site} armed")

    def stop(self, site: str) -> None:
        """Its host is gone."""
        process = self.processes.pop(site)
        process.kill()
        process.wait()

    def revive(self) -> None:
        """Start again whoever was killed at its mark."""
        for site, process in list(self.processes.items()):
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, self.evidence()
                self.died.append(site)
                self.start(site)

    def require_died(self, site: str, mark: str) -> None:
        """It passed its mark, also where that came after all that could be asked for; it is there again."""
        if not self.died:
            until(lambda: self.processes[site].poll() is not None, f"the death of {site} at {mark}")
            self.revive()
        assert self.died == [site], self.evidence()

    def ask(self, site: str, what: Callable[[FailoverClient], T]) -> T:
        """Ask a gateway; one that dies of it is asked again once it is back."""
        found: list[T] = []

        def asked() -> bool:
            self.revive()
            try:
                with self.client(site) as client:
                    found.append(what(client))
            except GatewayUnreachable:
                return False
            return True

        until(asked, "an answer")
        return found[-1]

    def wait(self, site: str, condition: Callable[[FailoverClient], bool], what: str) -> None:
        """Until a gateway says so; whoever dies meanwhile is started again."""
        clock, never = SystemClock(), threading.Event()
        end = clock.monotonic() + 60
        while not self.ask(site, condition):
            assert clock.monotonic() < end, f"{what} did not happen\n{self.evidence()}"
            clock.wait(never, 0.05)  # asked without a pause, it would keep the gateway from its work

    # the guest and what is kept of it

    def write(self, length: int = 4096) -> None:
        """The guest writes something new to both disks."""
        for disk, size in DISKS.items():
            self._writes += 1
            offset = (self._writes * 37 * KIB) % (size - length) // 512 * 512
            self.guest.write(disk, offset, os.urandom(length))

    def take_point(self) -> int:
        """A point of now."""
        with self.client("A") as client:
            return client.take_point("shop").number

    @property
    def journal(self) -> Journal:
        return Journal(LocalStore(self.root / B / "store"), self.machine, None)

    @property
    def journal_at_a(self) -> Journal:
        """What A keeps of the machine once it was reversed onto."""
        return Journal(LocalStore(self.root / A / "store"), self.machine, None)

    def content(self, number: int) -> dict[str, bytes]:
        """What a point's disks hold."""
        store = LocalStore(self.root / B / "store")
        keys = KeyRing(store, self.machine, self.pair.vault)
        view = open_view(self.journal, number, keys, bases=lambda _: None)
        return {str(disk): shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}

    def require_points_right(self) -> None:
        """Every point holds what the guest had written at its instant."""
        positions = positions_of(self.root / "guest")
        points = self.journal.points()
        expected = contents_at(self.root / "guest", [positions[point.checkpoint] for point in points])
        for point in points:
            assert self.content(point.number) == expected[positions[point.checkpoint]], point.number

    def require_nothing_lost(self, number: int) -> None:
        """The point holds all the guest ever wrote."""
        end = (self.root / "guest" / "guest.log").stat().st_size
        assert self.content(number) == contents_at(self.root / "guest", [end])[end]

    # who runs

    @property
    def host_b(self) -> FileFabric:
        return FileFabric(self.root / "b-host.json")

    def runs_at_a(self) -> bool:
        lines = [line for line in self.log.read() if line.site == "A"]
        return lines[-1].runs if lines else True

    def seconds(self) -> list[Ran]:
        """Each time one began to execute while the other did."""
        runs, found = {"A": True, "B": False}, []
        for line in self.log.read():
            if line.runs and runs["B" if line.site == "A" else "A"]:
                found.append(line)
            runs[line.site] = line.runs
        return found

    def require_rightful(self, *, released: bool = False) -> None:
        """Nobody began to execute whose machine it was not, as the store said then, but a released source."""
        for line in self.log.read():
            if line.runs and not (released and line.site == "A"):
                authority = "B" if (line.claimant, line.reason) == (B, "failover") else "A"
                assert authority == line.site, self.log.read()
        claim = self.journal.head().claim
        assert claim is not None
        if claim.reason == "roll-back":
            at = datetime.fromisoformat(claim.claimed_at)
            before = [line for line in self.log.read() if datetime.fromisoformat(line.at) < at]
            ended = [line for line in before if line.site == "B"][-1]
            assert not ended.runs, "given back before the machine at B was gone"

    def evidence(self) -> str:
        ends = []
        for site in ("A", "B"):
            log = self.root / f"{site}.log"
            ends.append(f"--- {site}\n{log.read_text()[-3000:] if log.exists() else ''}")
        return "\n".join(ends)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        end_exports(self.root)
        self.guest.close()


def _free_port() -> int:
    """As long as nobody takes it; a gateway keeps its port when it is started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
