"""The programs we are compared with, installed from Debian where they are missing."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Cost, run
from secondsite.lab.place import Site

PACKAGES = {
    "virtnbdbackup": "virtnbdbackup",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "rsync": "rsync",
}


def install() -> None:
    """apt-get what is missing."""
    missing = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
    if missing:
        print(f"installing Debian packages: {' '.join(missing)}", flush=True)
        subprocess.run(["apt-get", "-qq", "update"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )


def version(tool: str) -> str:
    """As the program says it."""
    done = subprocess.run([tool, "--version"], check=False, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def qemu_img_zstd(source: str, output: Path, *, tuned: bool = False, source_format: str = "raw") -> Cost:
    """`qemu-img convert -c` to qcow2 with zstd; `tuned`: 16 coroutines, written out of order."""
    options = ["-o", "compression_type=zstd", *(["-m", "16", "-W"] if tuned else [])]
    return run(["qemu-img", "convert", "-c", "-f", source_format, "-O", "qcow2", *options, source, output])


def nbdcopy(source: str, output: Path) -> Cost:
    """`nbdcopy` to a local raw file, uncompressed."""
    return run(["nbdcopy", source, output])


@dataclass(frozen=True)
class Moved:
    """What a program took, and what it sent in both directions."""

    cost: Cost
    bytes: int


def rsync(source: Path, target: Path) -> Moved:
    """`rsync --inplace` of one file onto an older copy, its delta algorithm over a pipe to a second rsync.

    Sizes and times are not believed (`--ignore-times`): what a resynchronisation is for.
    """
    shell = source.with_name("rsync-pipe")
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')  # instead of ssh: the second rsync, on this machine
    shell.chmod(0o755)
    options = ["--inplace", "--no-whole-file", "--ignore-times", "--times", "--stats", "-e", str(shell)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        ["rsync", *options, str(source), f"here:{target}"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"rsync: {done.stderr[-2000:]}")
    counts = re.findall(r"Total bytes (?:sent|received): ([\d,]+)", done.stdout)
    assert len(counts) == 2, done.stdout
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Moved(Cost(seconds, cpu), sum(int(count.replace(",", "")) for count in counts))


def virtnbdbackup(site: Site, domain: str, output: Path, *, level: str = "copy") -> Cost:
    """`virtnbdbackup -z` (lz4). ``copy``: of a machine that is off, it starts its own qemu-nbd on the disk.

    ``full`` and ``inc``: of one that is on, from a backup job of libvirt's and a checkpoint of its own.
    """
    # of a machine that is on, QEMU itself makes the socket, as its own user
    directory = site.directory if level == "copy" else site.sockets
    socket_path = directory / "virtnbdbackup.sock"
    with contextlib.suppress(FileNotFoundError):
        socket_path.unlink()
    command = ["virtnbdbackup", "-d", domain, "-l", level, "-z", "-n", "-o", str(output)]
    return run(site.command([*command, "-S", str(site.scratch), "-f", str(socket_path)]))
