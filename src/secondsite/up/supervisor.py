"""Starts processes in order, starts again what ends by itself, and ends all of them in the reverse order.

Each is in a session of its own, so that a Ctrl-C at the terminal reaches the supervisor only; the kernel
tells them when the supervisor itself is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError

# A process that lived so long had started well: what ended it is something new.
WELL_SECONDS = 60.0
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
LOOK_SECONDS = 0.2
READY_SECONDS_MAX = 120.0
# requests in progress get 15 s (`limits.stop_seconds`), and a gateway finishes a segment
STOP_SECONDS = 30.0
LOG_BYTES_MAX = 16 * 1024 * 1024
TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildEnded(SecondsiteError):
    """Right at its first start: starting again would not help."""

    code = "up.child-ended"
    happened = "The {name} ended right after its start, with exit code {exit}: {output}"
    cause = "Its configuration or its surroundings are not what it needs."
    action = "Read {log}; correct what it says, then run the same command again."


class ChildSilent(SecondsiteError):
    """It runs and does not answer."""

    code = "up.child-silent"
    happened = "The {name} runs and did not answer within {seconds:.0f} s."
    cause = "The machine is very busy, or something it waits for does not come."
    action = "Read {log}, then run the same command again."


def _never() -> bool:
    return True


@dataclass
class Child:
    """One process to keep running. ready: whether it does its work; asked until it does."""

    name: str
    command: Sequence[str]
    log: Path
    ready: Callable[[], bool] = _never
    before: Callable[[], None] = lambda: None  # once, right before its first start
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    started_at: float = 0.0
    failures: int = 0
    again_at: float | None = None

    def tail(self) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        except OSError:
            return ""


def ask_for_death_signal() -> None:
    """In the child: SIGTERM when the parent's thread that started it is gone, however that ended."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went between the fork and the call
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Runs children until it is told to stop. One thread, which is the one that starts them."""

    def __init__(self, children: Sequence[Child], *, clock: Clock, tell: Callable[[str], None]) -> None:
        self._children = list(children)
        self._clock = clock
        self._tell = tell

    def start(self, stop: threading.Event) -> bool:
        """All of them, each once the one before is ready; False when `stop` came first.

        Raises ChildEnded, ChildSilent, or what a `before` raises; none of them runs then.
        """
        try:
            for child in self._children:
                child.before()
                self._spawn(child)
                if not self._wait_ready(child, stop):
                    return False
                self._tell(f"the {child.name} runs (log: {child.log})")
        except BaseException:
            self.end()
            raise
        return True

    def watch(self, stop: threading.Event) -> None:
        """Start again what ends, until `stop`."""
        while not self._clock.wait(stop, LOOK_SECONDS):
            for child in self._children:
                self._look(child)

    def end(self) -> None:
        """End all of them, the last first; what does not end in time is killed."""
        for child in reversed(self._children):
            process, child.process = child.process, None
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._tell(f"the {child.name} did not end within {STOP_SECONDS:.0f} s and is killed")
                process.kill()
                process.wait()

    def _look(self, child: Child) -> None:
        now = self._clock.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            lived = now - child.started_at
            child.failures = 1 if lived >= WELL_SECONDS else child.failures + 1
            wait = BACKOFF_SECONDS[min(child.failures, len(BACKOFF_SECONDS)) - 1]
            child.process, child.again_at = None, now + wait
            self._tell(f"the {child.name} ended by itself ({_why(code)}), started again in {wait:.0f} s")
        if child.again_at is not None and now >= child.again_at:
            self._spawn(child)
            self._tell(f"the {child.name} is started again")

    def _spawn(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if child.log.exists() and child.log.stat().st_size > LOG_BYTES_MAX:
            child.log.replace(child.log.with_name(f"{child.log.name}.1"))
        with child.log.open("ab") as out:
            child.process = subprocess.Popen(
                list(child.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=ask_for_death_signal,  # noqa: PLW1509 - this process has one thread
            )
        child.started_at, child.again_at = self._clock.monotonic(), None

    def _wait_ready(self, child: Child, stop: threading.Event) -> bool:
        deadline = self._clock.monotonic() + READY_SECONDS_MAX
        while not child.ready():
            assert child.process is not None
            code = child.process.poll()
            if code is not None:
                raise ChildEnded(name=child.name, exit=code, output=child.tail(), log=child.log)
            if self._clock.monotonic() > deadline:
                raise ChildSilent(name=child.name, seconds=READY_SECONDS_MAX, log=child.log)
            if self._clock.wait(stop, LOOK_SECONDS):
                return False
        return True


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
