"""The protocols behind which every fabric stands; gateways know no fabric by name.

A fabric gives three things: an inventory, captures of protected machines, and recovered machines. The
in-memory twin (`fabrics.memory`) passes the same contract suite (tests/contract/test_fabrics.py).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Host, Machine, Mapping, Network, Pool, PowerState
from secondsite.model.outlook import Outlook
from secondsite.model.points import Consistency
from secondsite.model.readiness import Check
from secondsite.model.recovered import UNCHANGED, RecoveredSettings


class Quiesce(enum.Enum):
    """Whether the guest is asked to settle its file systems at the instant."""

    NONE = "none"
    FREEZE = "freeze"  # guest agent: hooks, then file systems frozen for the instant


@dataclass(frozen=True)
class Instant:
    """When a capture's content was fixed, on the clock of the machine that captured it.

    The content lies between `asked_at` and `given_at`: whatever the guest had acknowledged before
    `asked_at` is in it, whatever it began after `given_at` is not.
    """

    asked_at: str  # RFC 3339 UTC with microseconds
    given_at: str
    consistency: Consistency
    frozen_seconds: float | None = None
    note: str = ""  # why the consistency is less than was asked for; empty when it is not


class DiskCapture(Protocol):
    """One disk as of the capture's instant."""

    @property
    def id(self) -> DiskId:
        """The disk's name on its machine."""

    @property
    def size_bytes(self) -> int:
        """Its size at the instant."""

    @property
    def location(self) -> str:
        """Where its image lies now, in the fabric's own words; another one after a snapshot or a merge."""

    @property
    def untracked(self) -> str:
        """Why what changed on it since the earlier checkpoint is not known; empty when it is known.

        A disk that was added since, or whose image was exchanged; never said without a checkpoint.
        """

    def changed(self) -> Extents:
        """What changed since the earlier checkpoint; without one or untracked, everything allocated.

        Bytes outside are unchanged (or, where everything allocated was given, read as zero).
        """

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Read ``(offset, length)`` ranges, each at most 1 MiB; yields ``(offset, data)`` in order.

        Reads ahead. A yielded view is valid until the next one is asked for.
        """


class Capture(AbstractContextManager["Capture"], Protocol):
    """All disks of one machine at one instant. Close it soon: the host pays while it is open."""

    @property
    def instant(self) -> Instant:
        """When its content was fixed."""

    @property
    def disks(self) -> Sequence[DiskCapture]:
        """Every protected disk the machine has at the instant, in its order."""

    @property
    def left_out(self) -> MappingOf[DiskId, str]:
        """Disks that are not part of it although they were asked for, with the reason why they cannot be."""

    def close(self) -> None:
        """End the job at the host; may be called twice."""


class Source(Protocol):
    """A machine under protection at the source site."""

    @property
    def machine(self) -> Machine:
        """As the inventory has it now."""

    def definition(self) -> Definition:
        """What a target needs to define it again, as of now."""

    def checkpoints(self) -> Sequence[str]:
        """Our checkpoints that are usable as `since`, oldest first. Other products' are never listed."""

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> Capture:
        """Fix one instant over all disks.

        since: the checkpoint to count changes from, None: everything that is allocated.
        checkpoint: a name to remember this instant by, None: not remembered (slices of a first copy).

        A disk the machine does not have any more is left out; one it has got is part of it, untracked.

        Raises:
            TrackingLost: `since` is not usable any more for any disk (never made, or the host lost it).
            SourceBusy: the host holds another job on the machine; try again later.
            SourceGone: the machine or its host does not answer; SourceOff: it is shut off.
        """

    def power(self) -> PowerState:
        """Whether it runs now. Cheap, and to be asked often while it is off.

        What is written to its images by others meanwhile is noticed here, and their tracking is not believed.

        Raises:
            SourceGone: the machine or its host does not answer.
        """

    def recall(self, checkpoint: str) -> bool:
        """Find a checkpoint again that the host lists no more while its tracking is still there.

        As after a machine was defined again, or came back from another host. False when there is nothing to
        find; True when `checkpoint` is listed again and counts what changed since.

        Raises:
            SourceOff: only the running hypervisor could tell.
            SourceGone: the machine or its host does not answer.
        """

    def forget(self, checkpoint: str) -> None:
        """Drop a checkpoint; its changes are counted into the next one. Unknown names are fine."""

    def release(self) -> None:
        """Remove everything of ours from the machine and host: jobs, checkpoints, scratch."""


class ExportedDisk(Protocol):
    """A disk image served over NBD for a recovered machine to stand on."""

    @property
    def id(self) -> DiskId:
        """The disk's name on its machine."""

    @property
    def size_bytes(self) -> int:
        """Its size at the point."""

    @property
    def socket_path(self) -> str:
        """The unix socket the hypervisor connects to."""

    @property
    def export_name(self) -> str:
        """The NBD export's name."""


@dataclass(frozen=True)
class RecoverySpec:
    """How a machine comes up at the target."""

    name: str  # at the target, e.g. "shop-test"
    definition: Definition
    disks: Sequence[ExportedDisk]
    mapping: Mapping
    network: str | None  # every adapter goes here; None: by the mapping's networks
    keep_identity: bool  # False for a test: new UUID, never autostart, marked as a test
    note: str  # shown with the machine at the hypervisor: which machine, which point
    settings: RecoveredSettings = UNCHANGED
    # adapters may go where `settings` or this host's own earlier definition says; else as said above alone
    attach_as_set: bool = False
    goes_on: str | None = None  # the label of overlays that were kept: it goes on from copies of them
    instance: str = ""  # another one each time: what is brought into the guest is brought once for each


@dataclass(frozen=True)
class GuestRun:
    """What became of a program in a guest."""

    code: int
    output: str  # the first some thousand characters


@dataclass(frozen=True)
class Recovered:
    """A machine a fabric made; enough to find and remove it after a crash of ours."""

    id: MachineId
    name: str
    overlays: Sequence[str]  # files made for it
    networks: Sequence[str]  # networks made for it
    console_log: str | None = None


@dataclass(frozen=True)
class KeptFile:
    """What a recovered machine wrote on one disk, kept after the machine was removed."""

    path: str
    bytes: int  # that it takes up


class Ended(enum.Enum):
    """How a machine came to be off, as far as its host knows."""

    IN_ORDER = "in order"  # its guest shut down, or a person switched it off
    LOST = "lost"  # its host restarted, its process died, or it could not be started


@dataclass(frozen=True)
class Life:
    """What is seen of a recovered machine from outside."""

    power: PowerState
    console: bool  # it has written to its console: its firmware or kernel runs
    agent: bool  # its guest agent has opened its port: user space runs
    ended: Ended | None = None  # of one that is off; None where it is gone


@dataclass(frozen=True)
class LiveNic:
    """An adapter of a machine that runs."""

    mac: str
    network: str  # what it is attached to, as inventories name it; "": nothing
    up: bool  # its link is


@dataclass(frozen=True)
class Shape:
    """What a running machine has, by its hypervisor's own live definition and not by what we gave it."""

    cpus: int  # that its guest has now
    memory_bytes: int
    nics: Sequence[LiveNic]  # in their order


@dataclass(frozen=True)
class Flattening:
    """How far a recovered machine's disks have become plain local ones, which need no export beneath."""

    done_bytes: int
    total_bytes: int
    finished: bool
    error: str = ""  # why it stopped, in the hypervisor's words; the next call begins it again


class Fabric(Protocol):
    """One hypervisor host or manager."""

    def hosts(self) -> Sequence[Host]:
        """Its hosts."""

    def machines(self) -> Sequence[Machine]:
        """Every machine, protectable or not (with the reasons)."""

    def networks(self) -> Sequence[Network]:
        """Its virtual networks."""

    def pools(self) -> Sequence[Pool]:
        """Its storage pools."""

    def readiness(self) -> Sequence[Check]:
        """What our account may and may not do there, tried; never raises for what is missing."""

    def open_source(
        self,
        machine: MachineId,
        disks: Sequence[DiskId] | None = None,
        *,
        left_out: Collection[DiskId] = (),
        taken: bool = False,
    ) -> Source:
        """Take a machine under protection (all disks, also those it gets later, or those named).

        left_out: not these, whatever else is said; one the machine does not have is fine.
        taken: it is under protection already; what cannot be carried any more is for its captures to say.

        Raises:
            MachineUnknown: no machine has this id.
            Unprotectable: it cannot be carried; names every reason.
        """

    def make_isolated_network(self, name: str) -> Network:
        """A network with no way out of the host, made for a test; exists already: returned as it is."""

    def remove_network(self, name: str) -> None:
        """Remove a network made by `make_isolated_network`; unknown names are fine."""

    def outlook(self, spec: RecoverySpec) -> Outlook:
        """What `start_recovered` would make of it, and what speaks against it. Makes nothing.

        Raises what says that the definition cannot be read at all.
        """

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        """Define and boot a machine on overlays over the exported disks.

        Nothing is left behind when it fails.
        """

    def apply_in_guest(self, recovered: Recovered) -> int:
        """Have its guest agent run what is on the drive it was given; the number to ask `applied` with.

        Raises SourceBusy: no agent answers (yet), or it does not let programs be run.
        """

    def applied(self, recovered: Recovered, run: int) -> GuestRun | None:
        """What became of that; None: it still runs. Raises SourceBusy."""

    def addresses_of(self, recovered: Recovered) -> Sequence[str]:
        """The addresses its guest agent sees, without prefixes. Raises SourceBusy where none answers."""

    def recovered(self) -> Sequence[Recovered]:
        """Every machine `start_recovered` made that still exists, also by an earlier process."""

    def resume_stopped(self, recovered: Recovered) -> bool:
        """Let it run again if an error of its disks had stopped it (its export was lost and is back).

        One that a person paused, or that is off, is left alone. True when this call resumed it.
        """

    def remove_recovered(self, recovered: Recovered) -> None:
        """Stop it at once and remove it with its overlays; already gone is fine."""

    def keep_overlays(self, recovered: Recovered, label: str) -> Sequence[KeptFile]:
        """Stop it at once and remove it, but keep its overlays under other names, durably.

        label: becomes part of the names. Called again, also where the machine is gone: what is kept.
        """

    def remove_kept(self, paths: Sequence[str]) -> None:
        """Remove what `keep_overlays` kept; already gone is fine, and what it did not keep is left alone."""

    def run_recovered(self, recovered: Recovered) -> bool:
        """Let a machine run that a crash of ours may have left in the making; one that runs is left alone.

        False: its files are not whole, so it never ran: remove it and make it again.
        """

    def life_of(self, recovered: Recovered) -> Life:
        """How it does. Cheap. Off where it is gone."""

    def shape_of(self, recovered: Recovered) -> Shape | None:
        """Its size and its adapters as they are now. Cheap. None where it is off or gone."""

    def flatten(self, recovered: Recovered, *, bytes_per_second: int | None) -> Flattening:
        """Begin, or go on, to copy what its overlays lack from the exports beneath; call it again and again.

        It runs on meanwhile. bytes_per_second: at most, of all its disks together; None: as fast as it goes.
        Finished only when its disks and its definition name no export any more.

        Raises:
            SourceOff: it must run for that, and is off.
        """

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        """After `flatten` finished: it is a machine of this site like any other, no longer `recovered`."""

    # a source that is not its machine's authority (architecture's rule 3)

    def isolate(self, machine: MachineId, *, why: str, autostart: bool) -> bool:
        """Cut its links, then pause it; keep that so until `lift_isolation`, also when its host restarts.

        Its disks, checkpoints and definition stay. autostart: it may be kept from starting with its host, as
        agreed. May be called again and again; True when there was something to do. Raises MachineUnknown.
        """

    def isolated(self, machine: MachineId) -> str | None:
        """Why it is isolated; None when it is not, or is unknown here."""

    def lift_isolation(self, machine: MachineId, *, run: bool) -> None:
        """Links and autostart as they were before; run: and let it go on, or start it where it is off.

        Not isolated, or unknown, is fine.
        """

    def ask_to_shut_down(self, machine: MachineId, *, agent: bool) -> None:
        """Ask its guest agent, or press its power button; does not wait. Raises what tells why not."""

    def power_off(self, machine: MachineId) -> None:
        """Switch it off at once; its tracking survives, as after a shutdown. Already off is fine."""

    def hold_open(self, machine: MachineId) -> None:
        """Start a machine that is off without letting it execute anything, so that it can be captured."""

    def remove_machine(self, machine: MachineId, *, disks: bool) -> Sequence[str]:
        """Remove an isolated machine with all the host keeps of it, for good; it is switched off first.

        disks: with its images as well, but for those that anything else uses. Returns those that stay.
        Unknown is fine: it is gone. May be repeated where it was cut off.

        Raises:
            NotIsolated: it is not isolated, so it may be in use.
        """

    def close(self) -> None:
        """Drop connections."""
