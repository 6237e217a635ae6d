"""What the simulated hypervisor of the churn bench is asked over its control socket, and answers (msgpack).

One request, one answer at a time on each connection, framed by `multiprocessing.connection`. What a capture
holds is read over NBD from a socket the answer names, as QEMU serves a backup job.
"""

from __future__ import annotations

import enum
from multiprocessing.connection import Connection

import msgspec

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.fabrics.base import Instant, Quiesce
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Machine


class Do(enum.Enum):
    """What is asked for."""

    MACHINES = "machines"
    DEFINITION = "definition"
    CHECKPOINTS = "checkpoints"
    RECALL = "recall"
    CAPTURE = "capture"
    CLOSE = "close"
    FORGET = "forget"
    RELEASE = "release"
    FILL = "fill"
    RATE = "rate"
    TOLD = "told"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request; what an operation does not need stays as it is."""

    do: Do
    machine: MachineId = MachineId("")
    checkpoint: str | None = None
    since: str | None = None
    quiesce: Quiesce = Quiesce.NONE
    mb_s: float = 0.0
    block_bytes: int = 0


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a capture."""

    id: DiskId
    size_bytes: int
    location: str
    untracked: str
    starts: bytes  # of what changed, int64
    ends: bytes


class CaptureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An open capture; its disks are exports of their names at `socket`."""

    instant: Instant
    left_out: dict[DiskId, str]
    disks: list[DiskFacts]
    socket: str


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. `error`: the code and fields of what was raised instead."""

    error: tuple[str, dict[str, str]] | None = None
    machines: list[Machine] = []
    definition: Definition | None = None
    checkpoints: list[str] = []
    capture: CaptureFacts | None = None
    found: bool = False
    written_bytes: int = 0
    process: int = 0


def send(connection: Connection, message: Ask | Tell) -> None:
    """One message."""
    connection.send_bytes(msgspec.msgpack.encode(message))


def ask(connection: Connection, message: Ask) -> Tell:
    """Ask and wait for the answer; raises what the hypervisor raised."""
    send(connection, message)
    told = msgspec.msgpack.decode(connection.recv_bytes(), type=Tell)
    if told.error is not None:
        code, fields = told.error
        kind = SecondsiteError.registry.get(code)
        raise kind(**fields) if kind is not None else RemoteError({"code": code, "happened": str(fields)})
    return told
