"""However a lab ends, nothing of it stays: no process, namespace, mount or file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.lab import processes
from secondsite.lab.errors import LabExists, LabRootForeign
from secondsite.lab.roots import fresh_root
from secondsite.lab.sites import Sites
from support.lab import boot_files, namespaces_of, processes_in, running_sites, traces

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(300)]

# A lab of another process, with a guest that runs; it says when it is up and then waits to be ended.
_SCRIPT = """
import sys
from pathlib import Path
from secondsite.lab.sites import Sites
from secondsite.lab.signals import interruptible, uninterrupted
from support.lab import boot_files, SMALL_GUEST
from secondsite.lab.machine import create_guest
sites = Sites(Path(sys.argv[1]))
with interruptible():
    try:
        sites.up(attached=True)
        create_guest(sites.a, boot_files(), SMALL_GUEST).start()
        print("up", flush=True)
        sys.stdin.read()
    finally:
        with uninterrupted():
            sites.down()
"""


def _start(root: Path) -> subprocess.Popen[bytes]:
    boot_files()
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal(number: signal.Signals) -> None:
    before = traces()
    root = fresh_root()
    lab = _start(root)
    with lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"up\n"
        assert list(root.glob("A/disks/*.qcow2"))
        namespaces = namespaces_of(root)
        assert any("libvirtd" in process for process in processes_in(namespaces))
        lab.send_signal(number)
        lab.wait(60)
    assert not root.exists()
    assert processes_in(namespaces) == []
    assert traces().left_since(before, of=root.name) == []


def test_killed_leaves_files_only_and_down_removes_them() -> None:
    before = traces()
    root = fresh_root()
    lab = _start(root)
    with lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"up\n"
        namespaces = namespaces_of(root)
        assert any("qemu-system" in process for process in processes_in(namespaces))
        lab.kill()
        lab.wait(60)
    # the sites hang on the lab's process and end with it, guest, daemons and mounts included
    processes.wait_until(
        lambda: not processes_in(namespaces), what="the end of the sites", root=root, seconds=60
    )
    assert traces().left_since(before, of=root.name) == [str(root)]
    Sites(root).down()
    Sites(root).down()
    assert traces().left_since(before, of=root.name) == []


def test_half_up_is_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    before = traces()
    root = fresh_root()
    monkeypatch.setattr("secondsite.lab.sites.make_pool_and_network", lambda site: 1 / 0)
    sites = Sites(root)
    with pytest.raises(ZeroDivisionError):
        sites.up(attached=True)
    assert traces().left_since(before, of=root.name) == []


def test_two_labs_do_not_meet() -> None:
    with running_sites() as one, running_sites() as other:
        with pytest.raises(LabExists):
            Sites(one.root).up(attached=True)
        with contextlib.closing(one.a.connect()) as first, contextlib.closing(other.a.connect()) as second:
            first.networkLookupByName(one.a.network).destroy()
            assert second.networkLookupByName(other.a.network).isActive()
        one.link(one.b, up=False)
        ping = ["busybox", "ping", "-c", "1", "-W", "1", other.b.address]
        assert "1 packets received" in other.a.run(*ping)


def test_a_directory_that_is_no_labs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(LabRootForeign):
        Sites(tmp_path).up(attached=True)
    with pytest.raises(LabRootForeign):
        Sites(tmp_path).down()
    assert (tmp_path / "precious").read_text() == "mine"
    trap = tmp_path / "trap"
    trap.symlink_to(tmp_path)
    with pytest.raises(LabRootForeign):
        Sites(trap).up(attached=True)
