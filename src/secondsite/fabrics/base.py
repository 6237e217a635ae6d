"""The protocols behind which every fabric stands; gateways know no fabric by name.

A fabric gives three things: an inventory, captures of protected machines, and recovered machines. The
in-memory twin (`fabrics.memory`) passes the same contract suite (tests/contract/test_fabrics.py).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Host, Machine, Mapping, Network, Pool, PowerState
from secondsite.model.points import Consistency


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


@dataclass(frozen=True)
class Recovered:
    """A machine a fabric made; enough to find and remove it after a crash of ours."""

    id: MachineId
    name: str
    overlays: Sequence[str]  # files made for it
    networks: Sequence[str]  # networks made for it
    console_log: str | None = None


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

    def open_source(
        self, machine: MachineId, disks: Sequence[DiskId] | None = None, *, taken: bool = False
    ) -> Source:
        """Take a machine under protection (all disks, also those it gets later, or those named).

        taken: it is under protection already; what cannot be carried any more is for its captures to say.

        Raises:
            MachineUnknown: no machine has this id.
            Unprotectable: it cannot be carried; names every reason.
        """

    def make_isolated_network(self, name: str) -> Network:
        """A network with no way out of the host, made for a test; exists already: returned as it is."""

    def remove_network(self, name: str) -> None:
        """Remove a network made by `make_isolated_network`; unknown names are fine."""

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        """Define and boot a machine on overlays over the exported disks.

        Nothing is left behind when it fails.
        """

    def recovered(self) -> Sequence[Recovered]:
        """Every machine `start_recovered` made that still exists, also by an earlier process."""

    def resume_stopped(self, recovered: Recovered) -> bool:
        """Let it run again if an error of its disks had stopped it (its export was lost and is back).

        One that a person paused, or that is off, is left alone. True when this call resumed it.
        """

    def remove_recovered(self, recovered: Recovered) -> None:
        """Stop it at once and remove it with its overlays; already gone is fine."""

    def close(self) -> None:
        """Drop connections."""
