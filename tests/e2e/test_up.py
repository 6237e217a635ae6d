"""`secondsite up` as a person runs it: two sites on loopback, killed, ended and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondsite.lab.processes import children

SECONDS_MAX = 90.0
pytestmark = pytest.mark.e2e


@dataclass
class Up:
    """A running `secondsite up`."""

    process: subprocess.Popen[bytes]
    root: Path
    out: Path

    def said(self) -> str:
        return self.out.read_text()

    def child(self, name: str) -> int:
        """The process of a child."""
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if name.encode() in words:
                    return pid
        return 0

    def end(self) -> None:
        """Ctrl-C, once."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(SECONDS_MAX) == 0, self.said()


def until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline, never = time.monotonic() + SECONDS_MAX, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what()
        never.wait(0.1)


@contextlib.contextmanager
def running(root: Path, *words: str) -> Iterator[Up]:
    out = root.with_suffix(".out")
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "secondsite", "up", "--dir", str(root), "--listen", "127.0.0.1", *words],
            stdout=file,
            stderr=file,
        )
    up = Up(process, root, out)
    try:
        until(lambda: "Ctrl-C ends" in up.said() or process.poll() is not None, up.said)
        assert process.poll() is None, up.said()
        yield up
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


@pytest.fixture
def root() -> Iterator[Path]:
    """Short: the gateway's socket is below it."""
    with tempfile.TemporaryDirectory(prefix="ss-up-", dir="/var/tmp") as directory:
        yield Path(directory)


def _gateways(home: Path) -> dict[str, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "secondsite", "gateway", "list", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SECONDSITE_CLIENT": str(home / "client.json")},
    )
    return {one["name"]: one["connectionStatus"] for one in json.loads(ran.stdout)}


def _log_in(up: Up, home: Path) -> None:
    words = next(line for line in up.said().splitlines() if "secondsite login" in line).split()[1:]
    subprocess.run(
        [sys.executable, "-m", "secondsite", *words],
        check=True,
        capture_output=True,
        env={**os.environ, "SECONDSITE_CLIENT": str(home / "client.json")},
    )


def test_two_sites_come_up_survive_a_kill_end_and_come_back(root: Path) -> None:
    with running(root / "a", "--no-libvirt") as a:
        _log_in(a, root)
        with running(root / "b", "--join", str(root / "a" / "join.key"), "--no-libvirt") as b:
            both = {"gateway-a": "Connected", "gateway-b": "Connected"}
            until(lambda: _gateways(root) == both, lambda: f"{_gateways(root)} {b.said()}")
            keys = [(root / site / "vault.key").read_bytes() for site in "ab"]
            assert keys[0] == keys[1]
            # what is killed is started again, and told
            killed = a.child("server")
            os.kill(killed, signal.SIGKILL)
            until(lambda: a.child("server") not in {0, killed}, a.said)
            assert "ended by itself (signal 9)" in a.said()
            b.end()
        child = a.child("gateway")
        second = subprocess.run(
            [sys.executable, "-m", "secondsite", "up", "--dir", str(root / "a")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 4, second.stdout
        assert "up.already" in second.stderr
        a.end()
        until(lambda: not Path(f"/proc/{child}").exists(), a.said)
    before = {path: path.read_bytes() for path in _made(root / "a")}
    with running(root / "a") as a:
        # nobody need log in again, nothing was made anew
        until(lambda: _gateways(root)["gateway-a"] == "Connected", a.said)
        assert {path: path.read_bytes() for path in _made(root / "a")} == before
        server = a.child("server")
        a.process.kill()  # the supervisor itself: its children do not live on alone
        until(lambda: not Path(f"/proc/{server}").exists(), a.said)


def _made(root: Path) -> list[Path]:
    names = (
        "server.toml",
        "gateway.toml",
        "vault.key",
        "join.key",
        "server/master.key",
        "server/authority.crt",
    )
    return [root / name for name in (*names, "gateway/tls/gateway-a.crt")]
