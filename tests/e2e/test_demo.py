"""``./run demo`` as a newcomer runs it: to its end, and ended early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.lab.sites import FRESH_ROOT_PARENT, FRESH_ROOT_PREFIX
from support.lab import boot_files, namespaces_of, processes_in, traces

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(400)]

COMMAND = [sys.executable, "-m", "secondsite", "lab", "demo"]


def _roots() -> set[Path]:
    return set(FRESH_ROOT_PARENT.glob(f"{FRESH_ROOT_PREFIX}*"))


def test_the_demo_proves_its_point_and_leaves_nothing() -> None:
    boot_files()  # what installation downloads is not the demo's time
    before, roots = traces(), _roots()
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "two sites are up",
        "protected: the first",
        "is ApplicationConsistent",
        "proved by the guest at B",
        "nothing of it is left",
        "first copy, until the first point was durable",
        "request to first userspace line",
    ):
        assert words in done.stdout, done.stdout
    assert _roots() <= roots
    assert traces().left_since(before, of=FRESH_ROOT_PREFIX) == []


@pytest.mark.fault
def test_ctrl_c_in_the_middle_leaves_nothing() -> None:
    boot_files()
    before, roots = traces(), _roots()
    with subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stdout is not None
        said = []
        for line in demo.stdout:
            said.append(line)
            if "protected: the first" in line:
                break
        (root,) = _roots() - roots
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
