"""Other people's NBD programs, started on unix sockets and waited for."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


def uri(socket_path: Path | str, export_name: str = "") -> str:
    """What nbdinfo, nbdcopy and qemu-img call an export behind a unix socket."""
    return f"nbd+unix:///{export_name}?socket={socket_path}"


@contextlib.contextmanager
def running(command: list[str], socket_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens at `socket_path`; ended when the block is left."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_until_it_listens(process, socket_path)
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until_it_listens(process: subprocess.Popen[bytes], socket_path: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"{process.args!r} ended: {process.stderr.read().decode()}")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(socket_path))
            return
        time.sleep(0.005)
    raise AssertionError(f"{process.args!r} does not listen")


def qemu_nbd(
    image: Path,
    socket_path: Path,
    *,
    image_format: str = "raw",
    name: str = "",
    bitmap: str | None = None,
    writable: bool = False,
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """qemu-nbd on an image file, for any number of connections."""
    command = ["qemu-nbd", "-t", "-e", "16", "-f", image_format, "-k", str(socket_path), "-x", name]
    command += [] if writable else ["-r"]
    command += ["-B", bitmap] if bitmap else []
    return running([*command, str(image)], socket_path)


def nbdkit(socket_path: Path, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """nbdkit with the given filters, plugin and parameters."""
    return running(["nbdkit", "-f", "-U", str(socket_path), *arguments], socket_path)
