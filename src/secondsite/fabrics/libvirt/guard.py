"""The guard of a hypervisor host: ends what we began on a guest when we do not (architecture, rule 10).

A process of its own with a libvirt connection of its own; it outlives the gateway. A gateway holds a lease
for each open backup job and each freeze, taken before it begins. When a lease's deadline passes, or its
holder dies, the guard thaws the guest or aborts our job. It also watches the scratch file system: before it
is full the ballast file goes, our jobs are aborted, and a guest that stopped because our scratch was full
runs again; no other is ever resumed. It keeps isolated what is isolated (`isolate`), also where a person, or
the host's own start, lets it run. Everything it does is an event in its log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.base.files import append_line, read_limited, replace_file
from secondsite.base.parse import prepare_structs
from secondsite.fabrics.libvirt import guard_wire as wire
from secondsite.fabrics.libvirt import isolate, rescue
from secondsite.fabrics.libvirt.capture import stamp
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.scratch import ScratchWatch
from secondsite.model.events import Event, Severity
from secondsite.model.ids import MachineId, machine_id

# A holder that died is not waited for while a guest is frozen. For an open job a moment is left to the
# process that may have been asked to end and is just closing it.
GRACE_SECONDS = {"freeze": 0.0, "job": 1.0}
# Leases found from before a restart of the guard: their holder says so at its next message or within this.
REHOLD_SECONDS = 3.0
TICK_SECONDS = 0.25
# How long a machine that must stay isolated may run after somebody started it; its links are down meanwhile.
ISOLATED_SECONDS = 1.0
# How long, and how often, an action is tried when libvirt or the agent does not answer.
RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 1800.0
CONNECTIONS_MAX = 64
# A guest that stops for want of space this soon after our job closed was stopped by it: the error travels
# through QEMU and libvirt while the job is already being closed.
HELD_SECONDS = 5.0
ANSWER_SECONDS_MAX = 10.0
EVENT_LOG_BYTES_MAX = 4 * 1024 * 1024
FROZEN_BYTES_MAX = 256 * 1024


@dataclass
class _Held:
    """A lease in force."""

    id: str
    kind: str
    machine: MachineId
    pid: int
    deadline: float
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    died: bool = False
    released: bool = False
    task: asyncio.Task[None] | None = None


class GuardProcess:
    """One guard."""

    def __init__(
        self, connection: Connection, places: Places, socket_path: Path, event_log: Path, clock: Clock
    ) -> None:
        self._connection = connection
        self._places = places
        self._socket_path = socket_path
        self._frozen_path = socket_path.with_name(socket_path.name + ".frozen")
        self._event_log = event_log
        self._clock = clock
        self._leases: dict[str, _Held] = {}
        self._events: deque[Event] = deque(maxlen=wire.EVENTS_KEPT)
        self._scratch = ScratchWatch(connection, places, clock, self.emit)
        self._alarm = asyncio.Event()
        self._end = asyncio.Event()
        self._watched: object = None
        self._held_at: dict[MachineId, float] = {}  # when a machine's last lease ended
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    # --- events ---

    def emit(self, code: str, severity: Severity, text: str, machine: MachineId | None = None) -> None:
        """Tell what was done: to the log, and to whoever asks. Called in any thread."""
        event = Event(at=stamp(self._clock.utc()), code=code, severity=severity, text=text, machine=machine)
        self._events.append(event)
        line = msgspec.json.encode(event)
        # A full log volume must not keep a guest frozen.
        with contextlib.suppress(OSError):
            append_line(self._event_log, line, size_bytes_max=EVENT_LOG_BYTES_MAX)

    # --- the process ---

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then wait for open freezes (seconds). Open jobs are left to their
        holders, whose clients start another guard at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        self._recall_frozen()
        self._socket_path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(
            self._serve, path=str(self._socket_path), limit=wire.REQUEST_BYTES_MAX
        )
        self._socket_path.chmod(0o600)
        self.emit("guard.started", Severity.INFORMATION, f"The guard runs as process {os.getpid()}.")
        async with server, asyncio.TaskGroup() as tasks:
            watches = (self._watch_scratch(), self._end_orphans(), self._keep_isolated())
            work = [tasks.create_task(watch) for watch in watches]
            await self._end.wait()
            for task in work:
                task.cancel()
        freezes = [held.task for held in self._leases.values() if held.kind == "freeze" and held.task]
        await asyncio.gather(*freezes)
        await asyncio.to_thread(self._scratch.remove_ballast)
        self.emit("guard.ended", Severity.INFORMATION, "The guard was asked to end.")

    def _recall_frozen(self) -> None:
        # Only freezes need remembering: a frozen guest looks like any other, an open job is seen at libvirt.
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            data = read_limited(self._frozen_path, size_bytes_max=FROZEN_BYTES_MAX)
            for lease, machine in msgspec.json.decode(data, type=dict[str, str]).items():
                self._add(lease, "freeze", MachineId(machine), 0, REHOLD_SECONDS)

    def _remember_frozen(self) -> None:
        frozen = {held.id: held.machine for held in self._leases.values() if held.kind == "freeze"}
        replace_file(self._frozen_path, msgspec.json.encode(frozen))

    async def _end_orphans(self) -> None:
        # Jobs that nobody holds: their gateway and the guard before us both died.
        await asyncio.sleep(REHOLD_SECONDS)

        def find() -> list[MachineId]:
            return rescue.machines_with_our_job(self._connection.get(), self._places)

        try:
            orphans = await asyncio.to_thread(find)
        except (libvirt.libvirtError, SecondsiteError):
            return  # the daemon is down: its jobs are seen again when a gateway opens the machine
        held = {lease.machine for lease in self._leases.values()}
        for machine in set(orphans) - held:
            await self._act("job", machine, "nobody holds it")

    async def _keep_isolated(self) -> None:
        while True:
            try:
                again = await asyncio.to_thread(self._isolate_again)
            except (libvirt.libvirtError, SecondsiteError):
                again = []  # the daemon is down, and starts nothing; it is looked at again
            for machine, name in again:
                text = f"{name} was let run while it is held; it is isolated again."
                self.emit("guard.isolated-again", Severity.WARNING, text, machine)
            await asyncio.sleep(ISOLATED_SECONDS)

    def _isolate_again(self) -> list[tuple[MachineId, str]]:
        found = isolate.enforce_all(self._connection.get())
        return [(machine_id(domain.UUIDString()), domain.name()) for domain in found]

    async def _watch_scratch(self) -> None:
        while True:
            self._alarm.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._alarm.wait()
            holders = {held.machine for held in self._leases.values() if held.kind == "job"}
            self._watch_disk_errors()
            await asyncio.to_thread(self._scratch.look, holders)

    def _watch_disk_errors(self) -> None:
        # QEMU's own word that a write failed comes sooner than the next look at the file system.
        try:
            connection = self._connection.get()
            if connection is self._watched:
                return
            connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._disk_error,
                asyncio.get_running_loop(),
            )  # fmt: skip
            self._watched = connection
        except (libvirt.libvirtError, SecondsiteError):
            return  # the daemon is down; asked again with the next tick

    def _disk_error(
        self, _connection: object, domain: Any, _path: str, _alias: str, _action: int, reason: str, loop: Any
    ) -> None:
        # in libvirt's event thread
        loop.call_soon_threadsafe(self._disk_error_seen, machine_id(domain.UUIDString()), reason)

    def _disk_error_seen(self, machine: MachineId, reason: str) -> None:
        ours = self._clock.monotonic() - self._held_at.get(machine, -HELD_SECONDS) < HELD_SECONDS
        if reason == "enospc" and (ours or any(h.machine == machine for h in self._leases.values())):
            self._scratch.blame(machine)
        self._alarm.set()

    # --- leases ---

    def _add(self, lease: str, kind: str, machine: MachineId, pid: int, seconds: float) -> _Held:
        held = _Held(lease, kind, machine, pid, self._clock.monotonic() + seconds)
        self._leases[lease] = held
        held.task = asyncio.get_running_loop().create_task(self._keep(held))
        return held

    async def _keep(self, held: _Held) -> None:
        """Wait for the lease's release, deadline or its holder's death; act unless it was released."""
        watcher = self._watch_holder(held)
        try:
            why = await self._wait(held)
        finally:
            watcher()
        if why:
            await self._act(held.kind, held.machine, why)
        self._leases.pop(held.id, None)
        self._held_at[held.machine] = self._clock.monotonic()
        if held.kind == "freeze":
            await asyncio.to_thread(self._remember_frozen)

    async def _wait(self, held: _Held) -> str:
        while True:
            held.changed.clear()
            left = held.deadline - self._clock.monotonic()
            if held.released:
                return ""
            if left <= 0:
                return "its holder died" if held.died else "its deadline passed"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await held.changed.wait()

    def _watch_holder(self, held: _Held) -> Callable[[], None]:
        """Have the lease's deadline drawn near when its holder dies; returns how to stop watching."""
        if not held.pid:
            return lambda: None
        loop = asyncio.get_running_loop()

        def died() -> None:
            held.died = True
            grace = self._clock.monotonic() + GRACE_SECONDS[held.kind]
            held.deadline = min(held.deadline, grace)
            held.changed.set()

        try:
            # a pidfd means this process and no later one with its number
            descriptor = os.pidfd_open(held.pid)
        except ProcessLookupError:
            died()
            return lambda: None

        def readable() -> None:
            loop.remove_reader(descriptor)
            died()

        loop.add_reader(descriptor, readable)

        def stop() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)

        return stop

    async def _act(self, kind: str, machine: MachineId, why: str) -> None:
        """Thaw the machine or end its job, trying until it works or the machine is off."""
        action: Callable[[], str]
        if kind == "freeze":
            what, code = "The file systems of {m} were frozen too long ({w}): {d}.", "guard.thawed"
            action = functools.partial(self._thaw, machine)
        else:
            what, code = "The backup job of {m} was left open ({w}): {d}.", "guard.job-ended"
            action = functools.partial(self._end_job, machine)
        give_up_at = self._clock.monotonic() + RETRY_SECONDS_MAX
        told = ""
        while self._clock.monotonic() < give_up_at:
            try:
                done = await asyncio.to_thread(action)
            except (rescue.NotYet, SecondsiteError) as error:
                if str(error) != told:
                    told = str(error)
                    text = what.format(m=machine, w=why, d=f"not yet done, trying again: {error}")
                    self.emit("guard.trying", Severity.CRITICAL, text, machine)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if done:
                self.emit(code, Severity.WARNING, what.format(m=machine, w=why, d=done), machine)
            return

    def _thaw(self, machine: MachineId) -> str:
        return rescue.thaw(self._connection.get(), machine)

    def _end_job(self, machine: MachineId) -> str:
        return rescue.end_job(self._connection.get(), self._places, machine, self._clock)

    # --- requests ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._slots, asyncio.timeout(ANSWER_SECONDS_MAX):
                line = await reader.readline()
                answer = await self._answer(line, _peer_pid(writer))
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # a peer that is silent, gone or sends a line beyond the limit gets nothing
        finally:
            writer.close()

    async def _answer(self, line: bytes, pid: int) -> wire.Answer:
        try:
            request = msgspec.json.decode(line, type=wire.Request)
            handlers: dict[str, Callable[[wire.Request, int], Awaitable[wire.Answer]]] = {
                "hold": self._hold, "release": self._release, "status": self._status, "events": self._tell,
            }  # fmt: skip
            handler = handlers.get(request.op)
            if handler is None:
                return wire.Answer(error=f"there is no operation {request.op[:40]!r}")
            return await handler(request, pid)
        except (msgspec.DecodeError, InvalidInput) as error:
            return wire.Answer(error=f"the request is not understood: {error}")

    async def _hold(self, request: wire.Request, pid: int) -> wire.Answer:
        if request.kind not in wire.KINDS or len(request.lease) != 32 or not pid:
            return wire.Answer(error="a lease needs a kind, an id and a holder on this host")
        if not 0 < request.seconds <= wire.SECONDS_MAX:
            return wire.Answer(error=f"a lease lasts at most {wire.SECONDS_MAX:.0f} s")
        held = self._leases.get(request.lease)
        if held is not None and held.pid == pid:
            held.deadline = self._clock.monotonic() + request.seconds
            held.changed.set()
            return wire.Answer(pid=os.getpid())
        if len(self._leases) >= wire.LEASES_MAX:
            return wire.Answer(error=f"there are {wire.LEASES_MAX} leases already")
        if held is not None:  # recalled after a restart of ours: its holder is alive after all
            held.released = True
            held.changed.set()
            assert held.task is not None
            await held.task
        self._add(request.lease, request.kind, machine_id(request.machine), pid, request.seconds)
        if request.kind == "freeze":
            await asyncio.to_thread(self._remember_frozen)
        return wire.Answer(pid=os.getpid())

    async def _release(self, request: wire.Request, _pid: int) -> wire.Answer:
        held = self._leases.get(request.lease)
        if held is not None:
            held.released = True
            held.changed.set()
        return wire.Answer(pid=os.getpid())

    async def _status(self, _request: wire.Request, _pid: int) -> wire.Answer:
        now = self._clock.monotonic()
        leases = tuple(
            wire.Held(kind=held.kind, machine=held.machine, pid=held.pid, seconds_left=held.deadline - now)
            for held in self._leases.values()
        )
        return wire.Answer(pid=os.getpid(), leases=leases)

    async def _tell(self, _request: wire.Request, _pid: int) -> wire.Answer:
        return wire.Answer(pid=os.getpid(), events=tuple(self._events))


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", credentials)
    return pid if uid in {0, os.geteuid()} else 0


def main(arguments: list[str] | None = None) -> int:
    """Run a guard until it is asked to end; 0 also when another one has the socket already."""
    parser = argparse.ArgumentParser(prog="secondsite guard", description=__doc__)
    parser.add_argument("--uri", required=True, help="the libvirt daemon, e.g. qemu:///system")
    parser.add_argument("--socket", required=True, type=Path, help="where to listen")
    parser.add_argument("--scratch", required=True, type=Path, help="the scratch directory to watch")
    parser.add_argument("--socket-dir", required=True, type=Path, help="where backup sockets lie")
    parser.add_argument("--event-log", required=True, type=Path, help="where events are written")
    options = parser.parse_args(arguments)
    options.socket.parent.mkdir(parents=True, exist_ok=True)
    options.scratch.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{options.socket}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    prepare_structs()
    places = Places(options.scratch, options.socket_dir)
    connection = Connection(options.uri)

    async def run() -> None:
        guard = GuardProcess(connection, places, options.socket, options.event_log, SystemClock())
        await guard.run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
