"""Rescue: a store and its key are enough to see, read and boot what is in it.

Nothing here needs a configuration, a gateway, or a machine that has seen the replica before. A boot is a
test failover with its records in a directory of the caller's choice: the same steps, the same clean-up.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.common.names import resolve
from secondsite.gateway.recovery.exportdir import SocketAccess
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.pins import Pins
from secondsite.gateway.target.views import load_key, open_point_view
from secondsite.journal.chain import Journal, machines
from secondsite.journal.episodes import found_in
from secondsite.journal.errors import WrongKey
from secondsite.journal.state import State
from secondsite.journal.store import ObjectStore, StoreUnavailable
from secondsite.journal.stores import open_store
from secondsite.journal.view import PointView
from secondsite.model.events import EventSink
from secondsite.model.failover import MOVED
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.points import Claim, Point


class StoreEmpty(SecondsiteError):
    """Nothing of ours is there."""

    code = "rescue.store-empty"
    outcome = Outcome.NOT_FOUND
    happened = "The store {store} holds no machine."
    cause = "The path is mistyped, the volume is not mounted, or nothing was ever replicated to it."
    action = "Check the URL: the store is the directory that holds `machines/`."


class TakenOverBefore(SecondsiteError):
    """By a failover, whose machine may run."""

    code = "rescue.taken-over-before"
    outcome = Outcome.REFUSED
    happened = "{machine} was not claimed: {claimant} took it over in epoch {epoch} ({claimed_at})."
    cause = "It runs there, or did: two copies that both believe to be the machine harm each other."
    action = "Go on at {claimant}. If that is gone for good, say so: `--take-over-from '{claimant}'`."


@dataclass(frozen=True)
class Replica:
    """One machine in a store, or why its points cannot be listed."""

    machine: MachineId
    name: str
    points: list[Point]
    state: State | None = None  # says who holds points
    error: SecondsiteError | None = None


class Rescue:
    """A store with its key, opened. Reads; writes only pins and, when asked to take over, a claim."""

    def __init__(self, store_url: str, key_file: Path, credentials: Path | None = None) -> None:
        """Open both; credentials: a file for an object store, see `open_store`.

        Raises what a missing store or a damaged key file raises.
        """
        self.store_url = store_url
        self.key_file = key_file
        self.vault = load_key(key_file)
        self.credentials = credentials
        self.store: ObjectStore = open_store(store_url, create=False, credentials=credentials)

    def replicas(self) -> list[Replica]:
        """Every machine; a damaged one is listed with its error, the others are not harmed by it.

        Raises:
            StoreEmpty: there is none.
        """
        found = []
        for machine in machines(self.store):
            journal = Journal(self.store, machine, self.vault)
            try:
                points = journal.points()
                state = journal.state()
                claim = journal.head().claim
            except SecondsiteError as error:
                found.append(Replica(machine, "", [], error=error))
                continue
            # of points that a commit deleted the claim still says whose they were
            name = points[-1].machine_name if points else claim.machine_name if claim else ""
            found.append(Replica(machine, name, points, state))
        if not found:
            raise StoreEmpty(store=self.store_url)
        return found

    def resolve(self, text: str) -> MachineId:
        """The machine a name or id means."""
        replicas = self.replicas()
        for replica in replicas:
            if isinstance(replica.error, WrongKey):
                raise replica.error  # with another vault's key no name can be read, and none is wrong
        pairs = [(replica.machine, replica.name) for replica in replicas]
        return resolve(text, pairs, kind="machine", where=f"the store {self.store_url}")

    def choose(self, machine: MachineId, wanted: str) -> Point:
        """The point `wanted` means, see `choose_point`."""
        journal = Journal(self.store, machine, self.vault)
        points = journal.points()
        name = points[-1].machine_name if points else machine
        return choose_point(points, wanted, machine=name, episodes=lambda: found_in(journal))

    @contextlib.contextmanager
    def view(
        self,
        machine: MachineId,
        point: Point,
        moved: Mapping[DiskId, str],
        *,
        on_unpinned: Callable[[StoreUnavailable], None],
    ) -> Iterator[PointView]:
        """The point's disks, pinned while open; a store that cannot be written is told to `on_unpinned`."""
        pins = Pins(self.store, self.vault)
        holder = f"rescue:{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            try:
                pins.take(machine, point.number, holder=holder, reason="read by rescue")
                stack.callback(pins.release, machine, holder=holder)
            except StoreUnavailable as error:
                # mounted read-only, as a careful person does on that day
                on_unpinned(error)
            with open_point_view(
                Journal(self.store, machine, self.vault), point.number, self.vault, moved=moved
            ) as view:
                yield view

    def take_over(self, machine: MachineId, *, claimant: str, clock: Clock, over: str | None = None) -> Claim:
        """Claim the epoch: from now on a source that comes back cannot commit, and learns why (rule 2).

        over: who took it over before, where that one is gone as well. Raises TakenOverBefore without it.
        """
        journal = Journal(self.store, machine, self.vault)
        head = journal.head()
        name = head.point.machine_name if head.point else machine
        before = head.claim
        if before is not None and before.reason in MOVED and before.claimant not in (claimant, over):
            raise TakenOverBefore(
                machine=before.machine_name,
                claimant=before.claimant,
                epoch=before.epoch,
                claimed_at=before.claimed_at,
            )
        return journal.claim(name=name, claimant=claimant, reason="failover", clock=clock, expected=head)

    def recovery(
        self,
        *,
        state_dir: Path,
        socket_dir: Path,
        fabric: Fabric | None,
        clock: Clock,
        events: EventSink,
        access: SocketAccess,
        mapping: SiteMapping,
    ) -> Recovery:
        """What boots and cleans up, with its records below `state_dir`."""
        exports = Exports(
            directory=state_dir / "exports",
            store_url=self.store.url,
            store_credentials=self.credentials,
            key_file=self.key_file,
            pins=Pins(self.store, self.vault),
            access=access,
            clock=clock,
            events=events,
        )
        return Recovery(
            store=self.store,
            vault=self.vault,
            exports=exports,
            state_dir=state_dir,
            socket_dir=socket_dir,
            fabric=fabric,
            mapping=mapping,
            clock=clock,
            events=events,
        )
