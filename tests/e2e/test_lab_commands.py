"""``secondsite lab up`` ended early, and what ``down`` and ``status`` say without a lab."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.lab import processes
from secondsite.lab.place import holders
from secondsite.lab.roots import fresh_root
from secondsite.lab.sites import Sites
from support.lab import boot_files, namespaces_of, processes_in, traces

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(200)]

LAB = [sys.executable, "-m", "secondsite", "lab"]


@pytest.mark.fault
def test_up_ended_early_leaves_nothing() -> None:
    boot_files()
    before = traces()
    root = fresh_root()
    with subprocess.Popen([*LAB, "up", "--root", str(root)], stdout=subprocess.DEVNULL) as up:
        # both sites are there and the guest is being made
        processes.wait_until(lambda: list(root.glob("A/disks/*.qcow2")), what="a disk", root=root, seconds=60)
        namespaces = namespaces_of(root)
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 130
    assert not root.exists()
    assert processes_in(namespaces) == []
    assert traces().left_since(before, of=root.name) == []


def test_without_a_lab(tmp_path: Path) -> None:
    root = tmp_path / "nothing"
    status = subprocess.run(
        [*LAB, "status", "--root", str(root), "--json"], capture_output=True, text=True, check=False
    )
    assert status.returncode == 3
    assert json.loads(status.stdout) == {"root": str(root), "running": False}
    assert (
        subprocess.run([*LAB, "down", "--root", str(root)], capture_output=True, check=False).returncode == 0
    )
    assert not any(map(holders, Sites(root).places))


def test_down_removes_no_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    down = subprocess.run(
        [*LAB, "down", "--root", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert down.returncode == 4
    assert "was left as it is" in down.stderr
    assert (tmp_path / "precious").read_text() == "mine"
