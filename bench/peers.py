"""The programs we are compared with, installed from Debian where they are missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.measure import Cost, run
from secondsite.lab.place import Site

PACKAGES = {"virtnbdbackup": "virtnbdbackup", "nbdcopy": "libnbd-bin", "qemu-img": "qemu-utils"}


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


def qemu_img_zstd(source: str, output: Path, *, tuned: bool = False) -> Cost:
    """`qemu-img convert -c` to qcow2 with zstd; `tuned`: 16 coroutines, written out of order."""
    options = ["-o", "compression_type=zstd", *(["-m", "16", "-W"] if tuned else [])]
    return run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *options, source, output])


def nbdcopy(source: str, output: Path) -> Cost:
    """`nbdcopy` to a local raw file, uncompressed."""
    return run(["nbdcopy", source, output])


def virtnbdbackup(site: Site, domain: str, output: Path) -> Cost:
    """`virtnbdbackup -z` (lz4) of a machine that is shut off: it starts its own qemu-nbd on the disk."""
    socket_path = site.directory / "virtnbdbackup.sock"
    with contextlib.suppress(FileNotFoundError):
        socket_path.unlink()
    command = ["virtnbdbackup", "-d", domain, "-l", "copy", "-z", "-n", "-o", str(output)]
    return run(site.command([*command, "-S", str(site.scratch), "-f", str(socket_path)]))
