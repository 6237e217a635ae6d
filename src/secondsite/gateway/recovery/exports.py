"""Exports: one process for each point served, so that a gateway's restart or upgrade cuts no guest's disks.

An export is a directory ``<state>/exports/<id>/`` with:

* ``spec.json``: what to serve and where; written before anything is done (the intent), removed last;
* ``lock``: held by the serving process for as long as it lives: the truth about whether it does;
* ``run.json``: the process's number, or the error it ended with.

Order: spec, pin in the store, process; in reverse at the end. Every step may be repeated, so a gateway that
finds a spec after a crash goes on from wherever the last one was: pins first, then processes (rule 11).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from secondsite.base import files
from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import InvalidInput, Outcome, RemoteError, SecondsiteError
from secondsite.gateway.common.sockets import check_socket_path
from secondsite.gateway.messages.gateway import ExportDisk, ExportStatus
from secondsite.gateway.recovery.exportdir import (
    ExportRecordDamaged,
    ExportSpec,
    SocketAccess,
    is_served,
    read_run,
    read_spec,
)
from secondsite.gateway.target.pins import Pins
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId

__all__ = ["ExportFailed", "ExportSpec", "ExportUnknown", "Exports", "SocketAccess", "qemu_access"]

AFTER_SPEC = mark("export.after-spec")
AFTER_PIN = mark("export.after-pin")
AFTER_PROCESS = mark("export.after-process")
AFTER_KILL = mark("export.after-kill")
AFTER_UNPIN = mark("export.after-unpin")

# Opening a view reads the index of every segment above the base; thousands of them take seconds.
READY_SECONDS_MAX = 120.0
END_SECONDS_MAX = 10.0
LOG_TAIL_BYTES = 2000
POLL_SECONDS = 0.05
# A process that ends at once again and again is not helped by more of them; the event says so.
RESTART_SECONDS_MIN = 5.0
PROBE_SECONDS_MAX = 5.0
# A living server greets within milliseconds; on a host that swaps it may take seconds.
WEDGED_SECONDS = 30.0


class ExportFailed(SecondsiteError):
    """The process did not come up."""

    code = "export.failed"
    happened = "The export of point {point} of {machine} did not start: {why}."
    cause = "The process that serves it ended before it was ready, or its socket could not be made."
    action = "Correct what is named and start it again; the point is as it was and nothing was left behind."


class ExportUnknown(SecondsiteError):
    """No such export."""

    code = "export.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no export {id}."
    cause = "It was ended already."
    action = "None."


# Whom distributions run QEMU as: Debian and Ubuntu, then Fedora and its family.
QEMU_USERS = ("libvirt-qemu", "qemu")


def qemu_access(user: str | None = None) -> SocketAccess:
    """Sockets for QEMU alone: its user by name, or the one this host has; nobody else where there is none.

    Raises:
        InvalidInput: there is no such user.
    """
    for name in (user,) if user else QEMU_USERS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return SocketAccess(mode=0o600, user=found.pw_uid, group=found.pw_gid)
    if user:
        raise InvalidInput(what=f"the user {user!r}", why="this host has no such user")
    return SocketAccess()


def _last_line(log: Path) -> str:
    """What a process that died said last; its log goes with its directory."""
    lines = log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


def _greets(path: str, seconds_max: float) -> bool:
    """Whether an NBD server says anything at all when it is called on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(seconds_max)
        try:
            probe.connect(path)
            probe.recv(8)  # NBDMAGIC, or a hang-up because it has enough clients: both are answers
        except OSError:
            return False
        return True


def _failed(spec: ExportSpec, error: OSError) -> ExportFailed:
    why = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return ExportFailed(point=spec.point, machine=spec.machine_name, why=why)


class Exports:
    """All exports of one gateway. Thread-safe."""

    def __init__(
        self,
        *,
        directory: Path,
        store_url: str,
        key_file: Path,
        pins: Pins,
        access: SocketAccess,
        clock: Clock,
        events: EventSink,
        wedged_seconds: float = WEDGED_SECONDS,
        store_credentials: Path | None = None,
    ) -> None:
        """directory: ``<state>/exports``, made if missing; wedged_seconds: silent for so long is killed."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._store_url = store_url
        self._store_credentials = str(store_credentials.resolve()) if store_credentials else ""
        self._key_file = key_file
        self._pins = pins
        self._access = access
        self._clock = clock
        self._events = events
        self._wedged_seconds = wedged_seconds
        self._answered_at: dict[str, float] = {}
        self._damaged: set[str] = set()  # told of
        self._lock = threading.RLock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts: dict[str, int] = {}
        self._restarted_at: dict[str, float] = {}
        self._never = threading.Event()

    def begin(
        self,
        *,
        identity: str,
        machine: MachineId,
        machine_name: str,
        point: int,
        disks: dict[DiskId, int],
        reason: str,
        socket_path: Path,
        bases: dict[DiskId, str] | None = None,
        access: SocketAccess | None = None,
    ) -> ExportStatus:
        """Pin the point and serve it; the same identity again goes on with what is there.

        Raises:
            ExportFailed: the process did not come up; spec and pin are gone again.
            SocketPathTooLong: before anything was done.
        """
        check_socket_path(socket_path)
        spec = ExportSpec(
            id=identity,
            machine=machine,
            machine_name=machine_name,
            point=point,
            holder=f"export:{identity}",
            reason=reason,
            store_url=self._store_url,
            store_credentials=self._store_credentials,
            key_file=str(self._key_file.resolve()),
            socket_path=str(socket_path),
            access=access or self._access,
            disks=disks,
            bases=bases or {},
        )
        with self._lock:
            try:
                self._write(spec)
                crash_point(AFTER_SPEC)
                self._pins.take(machine, point, holder=spec.holder, reason=reason)
                crash_point(AFTER_PIN)
                self._ensure_served(spec)
            except SecondsiteError:
                self.end(identity)
                raise
            except OSError as error:  # no process to be had, a full volume
                self.end(identity)
                raise _failed(spec, error) from error
            crash_point(AFTER_PROCESS)
            return self._status(spec)

    def end(self, identity: str) -> None:
        """Stop serving, remove the socket, let go of the pin, forget. Unknown identities are fine."""
        with self._lock:
            directory = self._directory / identity
            spec = read_spec(directory)
            if spec is None:
                shutil.rmtree(directory, ignore_errors=True)
                return
            if not spec.ending:
                spec = msgspec.structs.replace(spec, ending=True)
                with contextlib.suppress(OSError):  # on a full volume it is ended all the same
                    self._write(spec)
            self._kill(spec)
            Path(spec.socket_path).unlink(missing_ok=True)
            crash_point(AFTER_KILL)
            self._pins.release(spec.machine, holder=spec.holder)
            crash_point(AFTER_UNPIN)
            files.remove_file(directory / "spec.json")
            shutil.rmtree(directory, ignore_errors=True)
            self._restarts.pop(identity, None)
            self._restarted_at.pop(identity, None)
            self._answered_at.pop(identity, None)

    def all(self) -> list[ExportStatus]:
        """Every export, served or not."""
        return [self._status(spec) for spec in self._specs()]

    def get(self, identity: str) -> ExportStatus:
        """One export. Raises ExportUnknown."""
        spec = read_spec(self._directory / identity)
        if spec is None:
            raise ExportUnknown(id=identity[:80])
        return self._status(spec)

    def resume(self) -> list[str]:
        """After a start: end what was ending, then pins, then processes. Failures become events.

        Returns the identities of exports that had ended and are served again.
        """
        restored = []
        with self._lock:
            specs = self._specs()
            for spec in specs:
                if spec.ending:
                    self.end(spec.id)
            live = [spec for spec in specs if not spec.ending]
            for spec in live:
                try:
                    self._pins.take(spec.machine, spec.point, holder=spec.holder, reason=spec.reason)
                    if not is_served(self._directory / spec.id):
                        restored.append(spec.id)
                    self._ensure_served(spec)
                except (SecondsiteError, OSError) as error:
                    self._tell_lost(spec, error)
        return restored

    def serves(self, identity: str) -> bool:
        """Whether a living process serves it now."""
        return is_served(self._directory / identity)

    def check(self, on_restored: Callable[[str], None]) -> None:
        """Start lost processes again and tell `on_restored` each one's identity. Called again and again.

        Raises at its end what the last look at one of them raised: no export holds up another one.
        """
        trouble: SecondsiteError | OSError | None = None
        for spec in self._specs():
            try:
                self._kill_wedged(spec)
            except (SecondsiteError, OSError) as error:
                trouble = error
        for identity in self._start_lost():
            on_restored(identity)
        if trouble is not None:
            raise trouble

    def _start_lost(self) -> list[str]:
        restored = []
        with self._lock:
            lost = [
                spec
                for spec in self._specs()
                if not spec.ending and not is_served(self._directory / spec.id) and self._may_restart(spec)
            ]
            for spec in lost:
                self._restarts[spec.id] = self._restarts.get(spec.id, 0) + 1
                self._restarted_at[spec.id] = self._clock.monotonic()
                try:
                    self._ensure_served(spec)
                except (SecondsiteError, OSError) as error:
                    self._tell_lost(spec, error)
                    continue
                self._events.emit(
                    "export.restarted",
                    Severity.WARNING,
                    f"The export of point {spec.point} of {spec.machine_name} had ended; it runs again.",
                    machine=spec.machine,
                    export=spec.id,
                    restarts=self._restarts[spec.id],
                )
                restored.append(spec.id)
        return restored

    def _kill_wedged(self, spec: ExportSpec) -> None:
        """End a process that lives but does not greet: a guest on it hangs, one on a dead one is resumed."""
        if spec.ending or not is_served(self._directory / spec.id):
            self._answered_at.pop(spec.id, None)
            return
        now = self._clock.monotonic()
        answered_at = self._answered_at.setdefault(spec.id, now)
        seconds_max = min(PROBE_SECONDS_MAX, self._wedged_seconds)
        if now - answered_at < seconds_max / 2:
            return
        if _greets(spec.socket_path, seconds_max):
            self._answered_at[spec.id] = self._clock.monotonic()
        elif self._clock.monotonic() - answered_at >= self._wedged_seconds:
            self._kill_silent(spec)

    def _kill_silent(self, spec: ExportSpec) -> None:
        with self._lock:
            directory = self._directory / spec.id
            run = read_run(directory)
            if run is None or not is_served(directory):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.process, signal.SIGKILL)
            self._answered_at.pop(spec.id, None)
            self._wait_until(lambda: not is_served(directory), END_SECONDS_MAX)
        self._events.emit(
            "export.wedged",
            Severity.WARNING,
            f"The export of point {spec.point} of {spec.machine_name} did not answer for "
            f"{self._wedged_seconds:.0f} s and was killed.",
            machine=spec.machine,
            export=spec.id,
        )

    def _may_restart(self, spec: ExportSpec) -> bool:
        at = self._restarted_at.get(spec.id)
        return at is None or self._clock.monotonic() - at >= RESTART_SECONDS_MIN

    def _tell_lost(self, spec: ExportSpec, caught: SecondsiteError | OSError) -> None:
        error = caught if isinstance(caught, SecondsiteError) else _failed(spec, caught)
        self._events.emit(
            "export.lost",
            Severity.CRITICAL,
            f"The export of point {spec.point} of {spec.machine_name} could not be started again: "
            f"{' '.join(error.sentences())}",
            machine=spec.machine,
            export=spec.id,
        )

    def _specs(self) -> list[ExportSpec]:
        """All whose record can be read; the others are told of, once, and cost none of these."""
        found = []
        for path in sorted(self._directory.iterdir()):
            try:
                spec = read_spec(path)
            except ExportRecordDamaged as error:
                self._tell_damaged(path.name, error)
                continue
            if spec is not None:
                found.append(spec)
        return found

    def _tell_damaged(self, identity: str, error: ExportRecordDamaged) -> None:
        if identity not in self._damaged:
            self._damaged.add(identity)
            text = " ".join(error.sentences())
            self._events.emit(error.code, Severity.CRITICAL, text, export=identity)

    def _write(self, spec: ExportSpec) -> None:
        directory = self._directory / spec.id
        directory.mkdir(mode=0o700, exist_ok=True)
        files.fsync_directory(self._directory)
        files.replace_file(directory / "spec.json", msgspec.json.encode(spec))

    def _status(self, spec: ExportSpec) -> ExportStatus:
        directory = self._directory / spec.id
        run = None
        try:
            run = read_run(directory)
        except ExportRecordDamaged as error:  # it serves, whatever its file says
            self._tell_damaged(spec.id, error)
        return ExportStatus(
            id=spec.id,
            machine=spec.machine,
            point=spec.point,
            holder=spec.holder,
            disks=tuple(
                ExportDisk(id=disk, size_bytes=size, socket_path=spec.socket_path, export_name=disk)
                for disk, size in spec.disks.items()
            ),
            process=run.process if run is not None and is_served(directory) else None,
            restarts=self._restarts.get(spec.id, 0),
        )

    def _ensure_served(self, spec: ExportSpec) -> None:
        directory = self._directory / spec.id
        if is_served(directory) and self._wait_until(
            lambda: read_run(directory) is not None, END_SECONDS_MAX
        ):
            return
        self._spawn(spec, directory)

    def _spawn(self, spec: ExportSpec, directory: Path) -> None:
        files.remove_file(directory / "run.json")
        reading, writing = os.pipe()
        log = directory / "log"
        try:
            with log.open("ab") as output:
                # a session of its own: neither a signal to the gateway's group nor its end reaches it
                child = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "secondsite.gateway.recovery.export",
                        str(directory),
                        str(writing),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing,),
                    start_new_session=True,
                    cwd="/",
                )
            self._children[spec.id] = child
            os.close(writing)
            writing = -1
            poll = select.poll()  # select() knows no descriptor above 1,023
            poll.register(reading, select.POLLIN)
            ready = poll.poll(READY_SECONDS_MAX * 1000)
            said = os.read(reading, 16) if ready else b""
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        if said == b"ready":
            return
        run = read_run(directory)
        if run is not None and run.error is not None:
            raise RemoteError(dict(run.error))
        why = f"it ended: {_last_line(log)}" if ready else f"it was not ready after {READY_SECONDS_MAX:.0f} s"
        raise ExportFailed(point=spec.point, machine=spec.machine_name, why=why)

    def _kill(self, spec: ExportSpec) -> None:
        directory = self._directory / spec.id
        for number in (signal.SIGTERM, signal.SIGKILL):
            run = read_run(directory)
            # the lock says that the process which wrote its number still lives, so the number is its own
            if run is not None and is_served(directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.process, number)
            if self._wait_until(lambda: not is_served(directory), END_SECONDS_MAX):
                break
        child = self._children.pop(spec.id, None)
        if child is not None:
            child.wait(END_SECONDS_MAX)

    def _wait_until(self, condition: Callable[[], bool], seconds_max: float) -> bool:
        deadline = self._clock.monotonic() + seconds_max
        while not condition():
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(self._never, POLL_SECONDS)
        return True
