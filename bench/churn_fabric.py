"""The simulated hypervisor (`churn_host`) as a gateway sees it: control over one socket, disks over NBD."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np

from bench.churn_wire import Ask, CaptureFacts, DiskFacts, Do, Tell, ask
from secondsite.fabrics import errors
from secondsite.fabrics.base import Capture, Instant, Quiesce
from secondsite.fabrics.memory import MemoryFabric
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Machine, PowerState
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdError

START_SECONDS_MAX = 20.0


def connect(directory: Path) -> Connection:
    """To the host below `directory`, which may still be starting."""
    end = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            return Client(str(directory / "host.sock"), "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


class Line:
    """One connection to the host. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._connection = connect(directory)
        self._lock = threading.Lock()

    def ask(self, message: Ask) -> Tell:
        """See `churn_wire.ask`."""
        with self._lock:
            return ask(self._connection, message)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class HostDisk:
    """See `fabrics.base.DiskCapture`."""

    def __init__(self, facts: DiskFacts, socket_path: str) -> None:
        self._facts = facts
        self._changed = Extents(np.frombuffer(facts.starts, np.int64), np.frombuffer(facts.ends, np.int64))
        self._socket_path = socket_path
        self._client: NbdClient | None = None

    @property
    def id(self) -> DiskId:
        """See `DiskCapture`."""
        return self._facts.id

    @property
    def size_bytes(self) -> int:
        """See `DiskCapture`."""
        return self._facts.size_bytes

    @property
    def location(self) -> str:
        """See `DiskCapture`."""
        return self._facts.location

    @property
    def untracked(self) -> str:
        """See `DiskCapture`."""
        return self._facts.untracked

    def changed(self) -> Extents:
        """See `DiskCapture`."""
        return self._changed

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """See `DiskCapture`."""
        try:
            if self._client is None:
                self._client = NbdClient.connect_unix(self._socket_path, self._facts.id)
            yield from self._client.read_many(ranges)
        except NbdError as error:
            raise errors.SourceGone(machine=self._facts.id, why=str(error)) from error

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            with contextlib.suppress(NbdError):
                self._client.close()
            self._client = None


class HostCapture(Capture):
    """See `fabrics.base.Capture`."""

    def __init__(self, line: Line, machine: MachineId, facts: CaptureFacts) -> None:
        self._line, self._machine, self._facts = line, machine, facts
        self._disks = [HostDisk(disk, facts.socket) for disk in facts.disks]
        self._closed = False

    @property
    def instant(self) -> Instant:
        """See `Capture`."""
        return self._facts.instant

    @property
    def disks(self) -> Sequence[HostDisk]:
        """See `Capture`."""
        return self._disks

    @property
    def left_out(self) -> Mapping[DiskId, str]:
        """See `Capture`."""
        return self._facts.left_out

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See `Capture`."""
        if not self._closed:
            self._closed = True
            for disk in self._disks:
                disk.close()
            self._line.ask(Ask(do=Do.CLOSE, machine=self._machine))


class HostSource:
    """See `fabrics.base.Source`."""

    def __init__(self, line: Line, machine: Machine) -> None:
        self._line, self._machine = line, machine

    @property
    def machine(self) -> Machine:
        """It never changes."""
        return self._machine

    def _ask(self, do: Do, checkpoint: str | None = None) -> Tell:
        return self._line.ask(Ask(do=do, machine=self._machine.id, checkpoint=checkpoint))

    def definition(self) -> Definition:
        """See `Source`."""
        found = self._ask(Do.DEFINITION).definition
        assert found is not None
        return found

    def checkpoints(self) -> Sequence[str]:
        """See `Source`."""
        return self._ask(Do.CHECKPOINTS).checkpoints

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> HostCapture:
        """See `Source`."""
        wanted = Ask(
            do=Do.CAPTURE, machine=self._machine.id, since=since, checkpoint=checkpoint, quiesce=quiesce
        )
        facts = self._line.ask(wanted).capture
        assert facts is not None
        return HostCapture(self._line, self._machine.id, facts)

    def power(self) -> PowerState:
        """It runs."""
        return PowerState.RUNNING

    def recall(self, checkpoint: str) -> bool:
        """See `Source`."""
        return self._ask(Do.RECALL, checkpoint).found

    def forget(self, checkpoint: str) -> None:
        """See `Source`."""
        self._ask(Do.FORGET, checkpoint)

    def release(self) -> None:
        """See `Source`."""
        self._ask(Do.RELEASE)


class HostFabric(MemoryFabric):
    """The host's machines, a line for each, as they work at once; nothing is recovered at this site."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._line = Line(directory)

    def machines(self) -> Sequence[Machine]:
        """See `Fabric`."""
        return self._line.ask(Ask(do=Do.MACHINES)).machines

    def open_source(  # type: ignore[override]
        self,
        machine: MachineId,
        disks: Sequence[DiskId] | None = None,  # noqa: ARG002 - each has one
        *,
        left_out: Collection[DiskId] = (),  # noqa: ARG002
        taken: bool = False,  # noqa: ARG002
    ) -> HostSource:
        """See `Fabric`."""
        found = next((each for each in self.machines() if each.id == machine), None)
        if found is None:
            raise errors.MachineUnknown(machine=machine, host="churn")
        return HostSource(Line(self._directory), found)
