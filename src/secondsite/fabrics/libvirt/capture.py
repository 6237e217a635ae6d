"""One instant over all disks of a machine: a pull-mode backup job, read over its unix socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Capture, DiskCapture, Instant
from secondsite.fabrics.errors import SourceBusy
from secondsite.fabrics.libvirt import jobs
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.quiesce import Lease
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdError

# A job whose reader makes no progress for this long is ended by the guard: the guest pays for an open job
# with a copy before each write. A slice of a first copy is read in seconds.
JOB_SECONDS_MAX = 120.0
# Renewing on each read would be a message per MiB; a sixth of the deadline is soon enough.
RENEW_SECONDS = JOB_SECONDS_MAX / 6


@dataclass(frozen=True)
class Fixed:
    """One disk as the job was begun with it."""

    dev: DiskId
    path: str  # its image
    untracked: str = ""  # why it is given whole although the others are counted from a checkpoint


def stamp(moment: datetime) -> str:
    """RFC 3339 UTC with microseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LibvirtDiskCapture(DiskCapture):
    """One disk's export. Its connection is opened at first use; for one thread at a time."""

    def __init__(self, owner: LibvirtCapture, fixed: Fixed) -> None:
        self._owner = owner
        self._fixed = fixed
        self._dev = fixed.dev
        self._incremental = owner.since is not None and not fixed.untracked
        # The bitmap is named after the export unless we name it (exportbitmap), which we do.
        self._context = f"qemu:dirty-bitmap:{jobs.BITMAP}" if self._incremental else "base:allocation"
        self._client: NbdClient | None = None

    @property
    def id(self) -> DiskId:
        """The disk's name on its machine."""
        return self._dev

    @property
    def size_bytes(self) -> int:
        """Its size at the instant."""
        return self._connected().size_bytes

    @property
    def location(self) -> str:
        """See `DiskCapture.location`."""
        return self._fixed.path

    @property
    def untracked(self) -> str:
        """See `DiskCapture.untracked`."""
        return self._fixed.untracked

    def changed(self) -> Extents:
        """See `DiskCapture.changed`."""
        with self._owner.reading():
            extents = self._connected().map(self._context)
            return extents.having(wire.DIRTY) if self._incremental else extents.lacking(wire.STATE_ZERO)

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """See `DiskCapture.read`."""
        with self._owner.reading():
            for item in self._connected().read_many(ranges):
                self._owner.progress()
                yield item

    def _connected(self) -> NbdClient:
        if self._client is None:
            with self._owner.reading():
                socket = str(self._owner.places.backup_socket(self._owner.machine))
                # Only one context: with base:allocation beside a bitmap QEMU took 32 to 55 ms, not 0.2.
                self._client = NbdClient.connect_unix(socket, self._dev, (self._context,))
        return self._client

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            with contextlib.suppress(NbdError):
                self._client.close()
            self._client = None


class LibvirtCapture(Capture):
    """An open backup job."""

    def __init__(
        self,
        *,
        domain: Any,
        machine: MachineId,
        name: str,
        disks: Sequence[Fixed],
        left_out: Mapping[DiskId, str],
        since: str | None,
        instant: Instant,
        lease: Lease,
        places: Places,
        clock: Clock,
        on_stuck_end: Callable[[], None],
    ) -> None:
        """on_stuck_end: told when libvirt did not notice the job's end by itself, see `jobs.JobEnd`."""
        self._on_stuck_end = on_stuck_end
        self.machine = machine
        self.since = since
        self.places = places
        self._left_out = dict(left_out)
        self._domain = domain
        self._name = name
        self._instant = instant
        self._lease = lease
        self._clock = clock
        self._disks = [LibvirtDiskCapture(self, disk) for disk in disks]
        self._renewed_at = clock.monotonic()
        self._closed = False

    @property
    def instant(self) -> Instant:
        """When its content was fixed."""
        return self._instant

    @property
    def disks(self) -> Sequence[DiskCapture]:
        """See `Capture.disks`."""
        return self._disks

    @property
    def left_out(self) -> Mapping[DiskId, str]:
        """See `Capture.left_out`."""
        return self._left_out

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def progress(self) -> None:
        """Tell the guard, now and then, that the job is being read."""
        now = self._clock.monotonic()
        if now - self._renewed_at >= RENEW_SECONDS:
            self._renewed_at = now
            self._lease.renew()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read from the export; its end is the job's end (guard, guest shut down, QEMU killed).

        Raises:
            SourceBusy: the job is over; the same changes are read by the next capture.
        """
        if self._closed:
            raise SourceBusy(machine=self._name, why="the capture was closed")
        try:
            yield
        except NbdError as error:
            raise SourceBusy(machine=self._name, why=f"the backup job ended early: {error}") from error

    def close(self) -> None:
        """End the job at the host; may be called twice. What cannot be ended is left to the guard."""
        if self._closed:
            return
        self._closed = True
        for disk in self._disks:
            disk.close()
        try:
            end = jobs.abort_ours(self._domain, self.places, self.machine, self._clock)
        except libvirt.libvirtError:
            return  # the daemon does not answer; the lease stays, and with it the guard's deadline
        if end is jobs.JobEnd.UNSTUCK:
            self._on_stuck_end()
        self._lease.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
