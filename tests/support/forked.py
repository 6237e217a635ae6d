"""Processes to be killed, forked from one that has imported what they need: a second of imports less each.

A process of this is as real as any: its own memory, its own pid, SIGKILL ends it. `python -m support.forked`
is the one they are forked from, which does nothing else, so that it has one thread and nothing open.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
MESSAGE_BYTES_MAX = 1 << 16
STATUS_BYTES = 16
GATEWAY = "support.gateway_process"  # imports a whole gateway


class Forked:
    """Of `subprocess.Popen` what tests ask of a process they kill."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status  # a pipe: how it ended, once it has

    def poll(self, seconds: float = 0.0) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            said = os.read(self._status, STATUS_BYTES)
            self.returncode = int(said) if said else -signal.SIGKILL
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        found = self.poll(timeout if timeout is not None else 600.0)
        if found is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 600.0)
        return found

    def send_signal(self, how: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def forked_gateway(
    *arguments: str, output: IO[bytes], module: str = GATEWAY, crash_at: str = "", **environment: str
) -> Forked:
    """As ``python -m MODULE ARGUMENTS``, its output in a file, with these variables besides ours."""
    environment["SECONDSITE_CRASH_AT"] = crash_at
    said, status = os.pipe()
    request = json.dumps({"module": module, "arguments": arguments, "environment": environment})
    try:
        socket.send_fds(_parent(GATEWAY), [request.encode()], [output.fileno(), status])
    finally:
        os.close(status)
    pid = int(os.read(said, STATUS_BYTES))
    return Forked(pid, said)


@functools.cache
def _parent(module: str) -> socket.socket:
    """The way to the process that has imported the module; it ends with ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.forked", module, str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def _serve(module: str, requests: socket.socket) -> None:
    """Fork a process for each request, until nobody can ask any more."""
    importlib.import_module(module)
    while True:
        data, descriptors, _flags, _address = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 2)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            _watch(json.loads(data), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while True:  # whoever watched and is done
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    break
            except ChildProcessError:
                break


def _watch(request: dict[str, Any], output: int, status: int) -> None:
    """Start it, say its pid, and once it has ended how; never returns."""
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(request, output)
    os.close(output)
    os.write(status, b"%*d" % (STATUS_BYTES, pid))
    _, ended = os.waitpid(pid, 0)
    os.write(status, b"%*d" % (STATUS_BYTES, os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def _become(request: dict[str, Any], output: int) -> None:
    from secondsite.base import crash

    os.environ.update(request["environment"])
    crash._spec = request["environment"].get("SECONDSITE_CRASH_AT", "")
    crash._target, _, crash._count = crash._spec.partition(":")
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = [request["module"], *request["arguments"]]
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - root of a process: written out, as python does
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
