"""Running commands, waiting for conditions, and finding the lab's processes by what only they carry."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from secondsite.base.clock import SystemClock
from secondsite.lab.errors import LabCommandFailed, LabTimeout, LabToolMissing

T = TypeVar("T")

POLL_SECONDS = 0.02

_CLOCK = SystemClock()
_NEVER = threading.Event()


def run(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout_seconds: float = 120,
) -> str:
    """Run a command to its end and return what it wrote to standard output.

    Raises:
        LabToolMissing: the program is not installed.
        LabCommandFailed: it ended with another exit code than 0.
    """
    words = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=None if environment is None else dict(environment),
            cwd=directory,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as missing:
        raise LabToolMissing(what=words[0]) from missing
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip())[-8000:]
        raise LabCommandFailed(command=" ".join(words), exit_code=done.returncode, output=output)
    return done.stdout


def pause(seconds: float) -> None:
    """Let time pass between two looks at something that cannot tell by itself."""
    _CLOCK.wait(_NEVER, seconds)


def wait_until(
    probe: Callable[[], T | bool | None],
    *,
    what: str,
    root: Path,
    seconds: float,
    evidence: Callable[[], str] = lambda: "",
    poll_seconds: float = POLL_SECONDS,
) -> T:
    """Call `probe` until it returns something true, and return that.

    Raises:
        LabTimeout: it did not within `seconds`; `evidence` is added to the message.
    """
    deadline = _CLOCK.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value  # type: ignore[return-value]
        if _CLOCK.monotonic() > deadline:
            raise LabTimeout(what=what, seconds=seconds, root=root, evidence=evidence())
        pause(poll_seconds)


def parent(pid: int) -> int:
    """The process that started `pid`, or adopted it; 0 when it is gone or was started from outside."""
    try:
        # after the last ')' of the name: state, then the parent
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def children(pid: int) -> list[int]:
    """The processes `pid` started and that still are, or nothing when it is gone."""
    everything = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [each for each in everything if parent(each) == pid]


def find_by_arguments(*wanted: str) -> list[int]:
    """Processes whose argument list contains `wanted` as neighbours."""
    needle = b"\0" + b"\0".join(word.encode() for word in wanted) + b"\0"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if needle in b"\0" + line:
                found.append(int(entry.name))
    return found


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal; a process that is gone is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def tail(path: Path, lines: int = 5) -> str:
    """The last lines of a log, for an error message; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
