"""Two sites with a gateway each, as `secondsite lab` has them: the real processes, the real way."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from bench.measure import anonymous_mib, cpu_seconds_of
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.messages.gateway import ProtectionState, ProtectionStatus
from secondsite.lab.gateways import Gateways
from secondsite.lab.sites import Sites

FAILED = {ProtectionState.FAILED, ProtectionState.DISABLING}


@dataclass
class Pair:
    """Sites A and B with running gateways."""

    sites: Sites
    gateways: Gateways

    def status(self, machine: str) -> ProtectionStatus:
        """A's view of a protection."""
        with self.gateways.client(self.sites.a) as client:
            return client.protection(machine)

    def wait_for_points(
        self, machine: str, count: int, *, poll_seconds: float = 0.02, seconds: float = 120
    ) -> ProtectionStatus:
        """Until `count` points were committed since the gateway began to count.

        poll_seconds: asking costs the gateway some milliseconds; ask rarely where that is measured too.
        """
        with self.gateways.client(self.sites.a) as client:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                status = client.protection(machine)
                if status.points >= count:
                    return status
                if status.state in FAILED:
                    raise RuntimeError(f"protection of {machine} failed: {status.note}")
                time.sleep(poll_seconds)
        raise RuntimeError(f"{machine} has {status.points} points, {status.state}, {status.note}")

    def last_committed_at(self, machine: str) -> datetime:
        """When B committed its newest point of a machine, by the clock both sites share here."""
        with self.gateways.client(self.sites.b) as client:
            return datetime.fromisoformat(client.points(machine)[-1].committed_at)

    def unprotect(self, machine: str) -> None:
        """End a protection, so that the next first copy starts from nothing."""
        with self.gateways.client(self.sites.a) as client, contextlib.suppress(SecondsiteError):
            client.unprotect(machine)

    def line_bytes(self) -> int:
        """Bytes on the line between the sites so far, both directions, headers and TLS with them."""
        site = self.sites.a
        [found] = json.loads(site.run("ip", "-s", "-j", "link", "show", "wan0"))
        return sum(int(found["stats64"][way]["bytes"]) for way in ("rx", "tx"))

    def forget_everything(self, machine: str) -> None:
        """A's gateway is killed, and the machine's checkpoints go with their bitmaps: nothing is known of it.

        The next `start_source` has to compare all of it with what B holds.
        """
        site = self.sites.a
        self.gateways.running.pop(site.name).kill()
        with contextlib.closing(site.connect()) as connection:
            for checkpoint in connection.lookupByName(machine).listAllCheckpoints():
                checkpoint.delete(0)

    def start_source(self) -> None:
        """A's gateway again."""
        self.gateways.start(self.sites.a)

    def event_at(self, code: str) -> datetime:
        """When A told the newest event of this code."""
        with self.gateways.client(self.sites.a) as client:
            times = [entry.event.at for entry in client.events() if entry.event.code == code]
        if not times:
            raise RuntimeError(f"there was no {code}")
        return datetime.fromisoformat(times[-1])

    def wait_until_quiet(self, *, seconds: float = 120, cores: float = 0.05) -> None:
        """Until both gateways together have used less than that, a twentieth of a core, for a second."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = sum(map(cpu_seconds_of, self.gateway_pids()))
            time.sleep(1)
            if sum(map(cpu_seconds_of, self.gateway_pids())) - before < cores:
                return
        raise RuntimeError("the gateways do not come to rest")

    def gateway_pids(self) -> list[int]:
        """Process numbers of both gateways."""
        return [process.pid for process in self.gateways.running.values()]


@contextlib.contextmanager
def pair(
    work: Path, *, spool_bytes: int = 8 << 30, bandwidth_bytes_per_second: int | None = None
) -> Iterator[Pair]:
    """Both sites and gateways below `work`, gone afterwards; A sends no faster than the limit."""
    sites = Sites(work / "lab")
    try:
        sites.up(attached=True)
        gateways = Gateways(sites)
        gateways.prepare(spool_bytes=spool_bytes)
        if bandwidth_bytes_per_second is not None:
            settings = gateways.configuration(sites.a)
            limit = f"bandwidth_bytes_per_second = {bandwidth_bytes_per_second}\n"
            settings.write_text(limit + settings.read_text())
        gateways.start(sites.b)
        gateways.start(sites.a)
        yield Pair(sites, gateways)
    finally:
        sites.down()


@dataclass
class Watch:
    """Memory and processor time of processes while a block runs."""

    pids: list[int]
    memory_mib: dict[int, float] = field(default_factory=dict)
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._before = {pid: cpu_seconds_of(pid) for pid in self.pids}
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_seconds = {pid: cpu_seconds_of(pid) - self._before[pid] for pid in self.pids}

    def _sample(self) -> None:
        while True:
            for pid in self.pids:
                self.memory_mib[pid] = max(self.memory_mib.get(pid, 0.0), anonymous_mib(pid))
            if self._stop.wait(0.05):
                return
