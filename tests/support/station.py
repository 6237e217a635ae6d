"""Two sites with a server at B and a gateway enrolled at each, as a user sets them up; guests come and go.

Made once for all end-to-end tests of a process: a test that fails takes it along, so that none suffers from
another's trouble.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from secondsite.base.units import MIB
from secondsite.lab.gateways import Gateways
from secondsite.lab.machine import GuestSpec
from secondsite.lab.server import VAULT, LabServer
from secondsite.lab.sites import Sites
from support.lab import SMALL_GUEST, RunningGuest, running_guest, running_sites
from support.pair import Pair

# The least a gateway takes: what is cut off for long runs into it soon.
SPOOL_BYTES = 64 * MIB
# Room for more than the spool takes, in the guest's data disk.
SHOP = replace(SMALL_GUEST, name="shop", data_bytes=192 * MIB)
# How often machines are copied, by what the tests ask for.
FREQUENCIES = (1.0, 20.0)


@dataclass
class Station:
    """All of it, and the guest `shop` at A, which most tests use."""

    sites: Sites
    server: LabServer
    gateways: Gateways
    shop: Pair

    @contextlib.contextmanager
    def another(self, spec: GuestSpec) -> Iterator[Pair]:
        """Another guest at A, alone; `shop` stands still meanwhile and is not protected."""
        self.shop.unprotect(delete_replica=True)
        self.shop.running.guest.pause()
        with running_guest(self.sites.a, spec) as running:
            yield Pair(self.sites, self.gateways, running, self.server)
        self.shop.running.guest.resume()

    def settle(self) -> None:
        """As it was at its beginning, whatever the test before did: all run, nothing is cut or slow."""
        for site in self.sites.sites:
            self.sites.link(site, up=True)
        self.sites.limit(None)
        if self.server.process is None or not self.server.process.running():
            self.server.start()
        self.settle_gateways()

    def settle_gateways(self) -> None:
        """Those that were killed are started again."""
        for site in reversed(self.sites.sites):
            if not self.gateways.running[site.name].running():
                self.gateways.start(site)


@contextlib.contextmanager
def running_station() -> Iterator[Station]:
    """Up, with nothing protected; gone afterwards."""
    with running_sites() as sites, contextlib.ExitStack() as stack:
        server = LabServer(sites)
        gateways = Gateways(sites, server)
        with ThreadPoolExecutor() as beside:  # the guest boots meanwhile
            booted = beside.submit(stack.enter_context, running_guest(sites.a, SHOP))
            server.start()
            gateways.prepare(spool_bytes=SPOOL_BYTES)
            started = [beside.submit(gateways.start, site) for site in sites.sites]
            for frequency in FREQUENCIES:
                server.run("policy", "create", VAULT, f"{frequency:g}s", "--copy-every", f"{frequency:g}s")
            for each in started:
                each.result()
            stack.callback(gateways.stop)
            key = gateways.recovery_key
            server.run("gateway", "prove-key", gateways.name(sites.a), "--recovery-key", key)
            running: RunningGuest = booted.result()
        yield Station(sites, server, gateways, Pair(sites, gateways, running, server))


@dataclass
class Stations:
    """The station of this process, made when it is first needed and anew after a failure."""

    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _present: Station | None = None

    def get(self) -> Station:
        """In order."""
        if self._present is None:
            self._present = self._stack.enter_context(running_station())
        self._present.settle()
        return self._present

    def drop(self) -> None:
        """End it, with what a failed test left."""
        self._present = None
        self._stack.close()

    def tell(self) -> None:
        """The logs go with the sites, so they are shown before."""
        if self._present is not None:
            print(self._present.shop.log_tails())
