"""The gateway's side of the guard: leases on open jobs and freezes, and the guard's process itself.

One line of JSON each way on a connection of its own: a guard that was killed is noticed at the next message,
started again, and told of every lease that is still alive.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.fabrics.libvirt import guard_wire as wire
from secondsite.fabrics.libvirt.errors import GuardUnavailable
from secondsite.fabrics.libvirt.quiesce import Guard, Lease
from secondsite.model.events import Event
from secondsite.model.ids import MachineId

# A guard answers from memory; only a starved machine makes it this slow.
ANSWER_SECONDS_MAX = 10.0
# It opens libvirt before it listens; the first connection on a machine may make libvirt probe QEMU.
START_SECONDS_MAX = 60.0
# How soon a guard that died is noticed while leases are alive.
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class GuardSettings:
    """How a guard process is started, and where it is found."""

    uri: str
    socket: Path
    scratch_dir: Path
    socket_dir: Path  # of the backup sockets, by which it tells our jobs from others'
    event_log: Path

    def command(self) -> list[str]:
        """The command line of the process."""
        return [
            sys.executable, "-m", "secondsite.fabrics.libvirt.guard",
            "--uri", self.uri, "--socket", str(self.socket), "--scratch", str(self.scratch_dir),
            "--socket-dir", str(self.socket_dir), "--event-log", str(self.event_log),
        ]  # fmt: skip


def ask(path: Path, request: wire.Request, *, seconds: float = ANSWER_SECONDS_MAX) -> wire.Answer:
    """Send one request to a guard.

    Raises:
        OSError: nobody answers there.
        GuardUnavailable: something else than a guard answers, or it refused the request.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(msgspec.json.encode(request) + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline(wire.LINE_BYTES_MAX + 1)
    if not line:
        raise ConnectionResetError("it closed the connection without an answer")
    try:
        answer = msgspec.json.decode(line, type=wire.Answer)
    except msgspec.DecodeError as error:
        raise GuardUnavailable(socket=path, why=f"its answer is not understood ({error})") from error
    if answer.error:
        raise GuardUnavailable(socket=path, why=answer.error)
    return answer


def ensure_guard(settings: GuardSettings, clock: Clock) -> None:
    """Return when a guard answers at the socket; starts one where none does.

    It gets a session of its own, so that it outlives us. (Under systemd give it a unit of its own: a service
    is stopped with all its processes.)

    Raises:
        GuardUnavailable: it does not start.
    """
    if _answers(settings.socket):
        return
    log = settings.event_log.with_name(settings.event_log.name + ".stderr")
    settings.event_log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            settings.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    # reaped when it ends, so that it does not stay as a zombie of ours
    threading.Thread(target=process.wait, name="guard-wait", daemon=True).start()
    deadline = clock.monotonic() + START_SECONDS_MAX
    never = threading.Event()
    while clock.monotonic() < deadline:
        if _answers(settings.socket):
            return
        # a second one that lost the race for the socket ends; then the first one answers soon
        clock.wait(never, 0.05)
    why = f"it did not start within {START_SECONDS_MAX:.0f} s; see {log}"
    raise GuardUnavailable(socket=settings.socket, why=why)


def _answers(path: Path) -> bool:
    try:
        ask(path, wire.Request(op="status"))
    except OSError:
        return False
    return True


@dataclass
class GuardLease(Lease):
    """One lease; the guard acts `seconds` after it was made or last renewed."""

    client: GuardClient
    kind: str
    machine: MachineId
    seconds: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    alive: bool = True

    def request(self, op: str) -> wire.Request:
        """The message that says so."""
        return wire.Request(op=op, lease=self.id, kind=self.kind, machine=self.machine, seconds=self.seconds)

    def renew(self) -> None:
        """See `Lease.renew`."""
        if self.alive:
            self.client.send(self.request("hold"))

    def release(self) -> None:
        """See `Lease.release`. A guard that is gone has nothing to release."""
        if self.alive:
            self.alive = False
            self.client.forget(self)


class GuardClient(Guard):
    """Leases at the guard of this host; thread-safe."""

    def __init__(self, settings: GuardSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: dict[str, GuardLease] = {}
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def job(self, machine: MachineId, *, seconds: float) -> GuardLease:
        """See `Guard.job`."""
        return self._hold("job", machine, seconds)

    def freeze(self, machine: MachineId, *, seconds: float) -> GuardLease:
        """See `Guard.freeze`."""
        return self._hold("freeze", machine, seconds)

    def held_elsewhere(self, machine: MachineId) -> bool:
        """See `Guard.held_elsewhere`."""
        leases = self.send(wire.Request(op="status")).leases
        return any(
            held.kind == "job" and held.machine == machine and held.pid not in {0, os.getpid()}
            for held in leases
        )

    def ensure(self) -> None:
        """Have a guard that knows every lease of ours."""
        ensure_guard(self.settings, self._clock)
        for lease in self._alive():
            ask(self.settings.socket, lease.request("hold"))

    def send(self, request: wire.Request) -> wire.Answer:
        """Ask the guard, starting it again where it does not answer.

        Raises:
            GuardUnavailable: it neither answers nor starts.
        """
        for _ in range(3):
            try:
                return ask(self.settings.socket, request)
            except OSError:
                with contextlib.suppress(OSError):  # it died again between: once more
                    self.ensure()
        raise GuardUnavailable(socket=self.settings.socket, why="it dies again and again")

    def events(self) -> Sequence[Event]:
        """What it did lately, oldest first (the event log has all of it)."""
        return self.send(wire.Request(op="events")).events

    def forget(self, lease: GuardLease) -> None:
        """Release at the guard."""
        with self._lock:
            self._leases.pop(lease.id, None)
        with contextlib.suppress(OSError):
            ask(self.settings.socket, lease.request("release"))

    def close(self) -> None:
        """Stop watching the guard; leases that are alive stay with it until their deadline."""
        self._closed.set()

    def _alive(self) -> list[GuardLease]:
        with self._lock:
            return list(self._leases.values())

    def _hold(self, kind: str, machine: MachineId, seconds: float) -> GuardLease:
        lease = GuardLease(self, kind, machine, seconds)
        self.send(lease.request("hold"))
        with self._lock:
            self._leases[lease.id] = lease
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="guard-watch", daemon=True)
                self._watcher.start()
        return lease

    def _watch(self) -> None:
        # A guard killed while a job is open must not be missed until somebody happens to talk to it.
        while not self._clock.wait(self._closed, WATCH_SECONDS):
            if self._alive():
                with contextlib.suppress(GuardUnavailable):  # told by the next call that needs it
                    self.send(wire.Request(op="status"))
