"""Running a program to its end and counting what it took."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Wall clock and processor seconds of a program and what it started."""

    seconds: float
    cpu_seconds: float
    sync_seconds: float = 0.0  # until what it wrote is on the disk, after it said it was done


def run(command: Sequence[str | Path], *, timeout_seconds: float = 600) -> Cost:
    """Run a program; raises with its output when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True, timeout=timeout_seconds
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command}: {(done.stdout + done.stderr)[-2000:]}")
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def cpu_seconds_of(pid: int) -> float:
    """Processor seconds a running process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_mib(pid: int) -> float:
    """Anonymous memory of a process now, in MiB (what it would need without its files)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no RssAnon")


def sync_of(path: Path) -> float:
    """Seconds to make everything on the file system of `path` durable."""
    start = time.perf_counter()
    subprocess.run(["sync", "-f", str(path)], check=True)
    return time.perf_counter() - start


def disk_mb_s(directory: Path, size_bytes: int = 1 << 30) -> float:
    """What the disk does with nothing else to do: 16 MiB written and synced at a time, like segments."""
    block = os.urandom(16 << 20)
    path = directory / "disk-speed"
    start = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(size_bytes // len(block)):
            os.write(fd, block)
            os.fdatasync(fd)
    finally:
        os.close(fd)
        path.unlink()
    return size_bytes / 1e6 / (time.perf_counter() - start)


def settle() -> None:
    """Write everything out, so that no run pays for the one before."""
    os.sync()
