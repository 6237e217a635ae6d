"""A machine between two sites, moved by its gateways' own requests, with the times that took."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from bench.boot import watch
from bench.pair import Pair
from secondsite.base.errors import RemoteError
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.messages.failover import (
    FailoverStatus,
    PlannedStop,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.lab.machine import Guest
from secondsite.lab.place import Site
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState

SECONDS_MAX = 300.0
# Of both gateways, while the machine writes and is replicated each second.
RUNNING_CORES = 0.4


class Bench:
    """One guest between two sites."""

    def __init__(self, sites: Pair, guest: Guest) -> None:
        self.sites, self.guest, self.name = sites, guest, guest.name

    def at(self, site: Site) -> FailoverClient:
        """A client of the site's gateway, for as long as it is asked often."""
        return FailoverClient(self.sites.gateways.control_socket(site))

    @property
    def a(self) -> Site:
        """Where the machine comes from."""
        return self.sites.sites.a

    @property
    def b(self) -> Site:
        """Where it is taken over."""
        return self.sites.sites.b

    def fail_over(self, *, planned: bool = False) -> tuple[str, float]:
        """Begin one and wait for the first userspace line; the operation and the seconds."""
        kind = FailoverKind.PLANNED if planned else FailoverKind.UNPLANNED
        sentence = (confirmations.stopped if planned else confirmations.taken_over)(self.name, "gateway-a")
        operation = secrets.token_hex(16)
        request = StartFailover(
            operation=operation, point="latest", kind=kind, network="none", confirm=sentence
        )
        begun = time.monotonic()
        with self.at(self.b) as client:
            status = client.start_failover(self.name, request)

            def log() -> Path | None:
                nonlocal status
                if status.console_log is None:
                    status = client.failover(operation)
                    raise_error(status)
                return self.b.host_path(status.console_log) if status.console_log else None

            boot = watch(log, 0, begun)
        return operation, boot.first_line

    def wait(self, operation: str, state: FailoverState) -> FailoverStatus:
        """Until a failover is where it should be."""
        found: list[FailoverStatus] = []

        def there() -> bool:
            with self.at(self.b) as client:
                found[:] = [client.failover(operation)]
            raise_error(found[0])
            return found[0].state is state

        until(there, state.value)
        return found[0]

    def roll_back(self, operation: str) -> None:
        """Give the machine back to A, and wait until that replicates it again."""
        with self.at(self.b) as client:
            client.roll_back(operation, RollBackFailover(confirm=confirmations.lost(self.name)))
        taken = self.wait(operation, FailoverState.ROLLED_BACK).point

        def back() -> bool:
            # what the source commits after its claim is above the point that was taken over
            with self.at(self.a) as client:
                status = client.protection(self.name)
            return status.state is ProtectionState.PROTECTED and (status.last_point or 0) > taken

        until(back, "the source replicated again")

    def stop(self) -> None:
        """Stop the source in order."""
        with self.at(self.a) as client:
            client.stop_in_order(self.name, PlannedStop(operation=secrets.token_hex(16)))

            def stopped() -> bool:
                status = client.planned_stop(self.name)
                if status.error is not None:
                    raise RemoteError(dict(status.error))
                return status.state == "Completed"

            until(stopped, "stopped in order")

    def tell(self, operation: str, seconds: float, say: Callable[[str], None]) -> None:
        """How long it took, and its steps of that; the guest's own boot is the rest."""
        with self.at(self.b) as client:
            steps = client.failover(operation).steps
        took = [
            f"{step.name} {_seconds(step.started_at, step.ended_at):.2f} s" for step in steps if step.ended_at
        ]
        say(f"{seconds:.2f} s: {', '.join(took)}")

    def unplanned(self, say: Callable[[str], None]) -> float:
        """One, rolled back."""
        self.guest.pause()
        operation, seconds = self.fail_over()
        self.tell(operation, seconds, say)
        self.roll_back(operation)
        return seconds

    def planned(self, say: Callable[[str], None]) -> tuple[float, float]:
        """One, rolled back: seconds from its request, and from the request to stop."""
        self.guest.wait_ready()
        self.sites.wait_until_quiet(cores=RUNNING_CORES)
        begun = time.monotonic()
        self.stop()
        stopped = time.monotonic() - begun
        operation, seconds = self.fail_over(planned=True)
        self.tell(operation, seconds, say)
        self.roll_back(operation)
        return seconds, stopped + seconds


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds."""
    end = time.monotonic() + SECONDS_MAX
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen")
        time.sleep(0.1)


def raise_error(status: FailoverStatus) -> None:
    """The error it ended with, if it did."""
    if status.error is not None:
        raise RemoteError(dict(status.error))
