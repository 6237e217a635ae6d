"""What others may do with the loops of one gateway: end them, begin them again, look at what they use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Source
from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.keys.sourcekeys import SourceKeys
from secondsite.gateway.source.replicate import Replication
from secondsite.journal.keys import DiskKey
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.states import ItemState
from secondsite.transfer.protocols import Link


class Way(Protocol):
    """To a peer; `routes.Route`."""

    @property
    def link(self) -> Link:
        """What goes over it."""


@dataclass(frozen=True)
class Handles:
    """Made by `runtime.Protections` from its own parts. Thread-safe."""

    desired: DesiredState
    way: Callable[[str], Way | None]  # to a peer by its name
    running: dict[MachineId, Replication]
    change: threading.Lock  # guards `running`
    wake: threading.Event  # has the loops that are desired and not running begun
    keys: SourceKeys
    open_source: Callable[[Protection], Source]
    unknown: Callable[[MachineId], SecondsiteError]
    resting: set[MachineId] = field(default_factory=set)  # no loop is begun of these

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        """Machine, name and the way to its target, of all that are protected now."""
        found = []
        for protection in self.desired.all():
            way = self.way(protection.peer)
            if protection.enabled and way is not None:
                found.append((protection.machine, protection.name, way.link))
        return found

    def source(self, machine: MachineId) -> Source:
        """The machine, opened. Raises NotProtected and what the fabric raises."""
        protection = self.desired.get(machine)
        if protection is None:
            raise self.unknown(machine)
        return self.open_source(protection)

    def data_key(self, machine: MachineId, disk: DiskId) -> DiskKey:
        """What the disk's fingerprints are made with."""
        return self.keys.of(machine, disk).newest

    def hindrance(self, machine: MachineId) -> str:
        """Why its next change would not become a point soon; empty: it would, as far as is known here."""
        with self.change:
            running = self.running.get(machine)
        if running is None:
            return ""  # it is just beginning, or rests
        board = running.board
        if board.paused_by:
            return f"its replication was paused by {board.paused_by}"
        if board.state in (ItemState.INITIAL_REPLICATION, ItemState.RESYNCHRONIZING):
            return f"it is {board.state.value}"
        return ""

    def hurry(self, machine: MachineId) -> None:
        """Run its next cycle now."""
        with self.change:
            running = self.running.get(machine)
        if running is not None:
            running.hurry()

    def drain(self, machine: MachineId) -> bool:
        """Have its loop begin no cycle; True once nothing that it captured is left to be committed."""
        with self.change:
            running = self.running.get(machine)
        return running is None or running.drain()

    def begin_again(self, machine: MachineId) -> None:
        """End a machine's loop and begin another, which finds out anew where it stands."""
        self._end(machine, rests=False)

    def rest(self, machine: MachineId) -> None:
        """End its loop, and begin none until `begin_again`."""
        self._end(machine, rests=True)

    def end(self, machine: MachineId) -> bool:
        """End a machine's protection, as far as it goes by now; True once nothing of it is left."""
        found = self.desired.update(machine, lambda p: msgspec.structs.replace(p, enabled=False))
        self.wake.set()
        return found is None

    def protection(self, machine: MachineId) -> Protection | None:
        """As it is now."""
        return self.desired.get(machine)

    def put_back(self, protection: Protection) -> None:
        """Protect a machine as it was, where it is not protected now."""
        self.desired.turn(protection.machine, lambda now: now or protection)
        with self.change:
            self.resting.discard(protection.machine)
        self.wake.set()

    def _end(self, machine: MachineId, *, rests: bool) -> None:
        with self.change:
            (self.resting.add if rests else self.resting.discard)(machine)
            running = self.running.pop(machine, None)
            if running is not None:
                running.stop()
        self.wake.set()
