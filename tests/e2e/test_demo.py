"""``./run demo`` as a newcomer runs it: to its end, and ended early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.lab import processes
from secondsite.lab.roots import FRESH_ROOT_PARENT, FRESH_ROOT_PREFIX
from support.lab import boot_files, namespaces_of, processes_in, traces

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(400)]

COMMAND = [sys.executable, "-m", "secondsite", "lab", "demo"]


def _root_of(demo: subprocess.Popen[str]) -> Path:
    """Where a running demo has its lab; other labs may run beside it."""

    def found() -> Path | None:
        for pid in processes.children(demo.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            for word in words:
                if word.startswith(os.fsencode(FRESH_ROOT_PARENT / FRESH_ROOT_PREFIX)):
                    return Path(os.fsdecode(word)).parent
        return None

    return processes.wait_until(found, what="the demo's sites", root=FRESH_ROOT_PARENT, seconds=60)


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    boot_files()  # what installation downloads is not the demo's time
    with subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        yield process
        process.terminate()


def test_the_demo_proves_its_point_and_leaves_nothing(demo: subprocess.Popen[str]) -> None:
    before = traces()
    root = _root_of(demo)
    assert demo.stdout is not None
    said = demo.stdout.read()
    assert demo.wait(60) == 0, said
    for words in (
        "two sites are up",
        "protected: the first",
        "is ApplicationConsistent",
        "proved by the guest at B",
        "nothing of it is left",
        "first copy, until the first point was durable",
        "request to first userspace line",
    ):
        assert words in said, said
    assert not root.exists()
    assert traces().left_since(before, of=root.name) == []


@pytest.mark.fault
def test_ctrl_c_in_the_middle_leaves_nothing(demo: subprocess.Popen[str]) -> None:
    before = traces()
    root = _root_of(demo)
    assert demo.stdout is not None
    said = []
    for line in demo.stdout:
        said.append(line)
        if "protected: the first" in line:
            break
    namespaces = namespaces_of(root)
    inside = " ".join(processes_in(namespaces))
    assert "libvirtd" in inside
    assert "gateway" in inside
    demo.send_signal(signal.SIGINT)
    said += demo.stdout.readlines()
    assert demo.wait(60) == 130, "".join(said)
    assert not root.exists()
    assert processes_in(namespaces) == []
    assert traces().left_since(before, of=root.name) == []
