"""Killed while it makes a recovered machine: what exists is found and removed by the next process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.fabrics.base import RecoverySpec
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.lab.place import Site
from secondsite.model.ids import DiskId
from secondsite.model.machines import Definition, Mapping
from support.fabrics import Recorded

pytestmark = [pytest.mark.libvirt, pytest.mark.fault]

START_MARKS = ["recover.after-define", "recover.after-overlays"]
XML = """<domain type='qemu'><name>crash</name><uuid>6f5b2c1e-0d5c-4c8f-9f9b-8d7a6c5b4a39</uuid>
<memory unit='MiB'>64</memory><os firmware='efi'>
<type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/x'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>"""


class Exported:
    id = DiskId("vda")
    size_bytes = 1 << 20
    socket_path = "/nonexistent/point.sock"
    export_name = "vda"


def make_fabric(options: dict[str, str]) -> LibvirtFabric:
    return LibvirtFabric(
        options["uri"], scratch_dir="/nonexistent", socket_dir="/nonexistent", guard=None,
        clock=SystemClock(), events=Recorded(),
    )  # fmt: skip


def start(options: dict[str, str]) -> None:
    """What the process that dies does."""
    definition = Definition(format="libvirt-domain", text=XML, firmware_variables=b"VARIABLES")
    spec = RecoverySpec(
        name="crash-test", definition=definition, disks=[Exported()], network=None, keep_identity=False,
        mapping=Mapping(default_pool=options["pool"]), note="crash",
    )  # fmt: skip
    make_fabric(options).start_recovered(spec)


@pytest.fixture
def options(sites: Any) -> Iterator[dict[str, str]]:
    site: Site = sites.b
    before = sorted(site.disks.iterdir())
    yield {"uri": site.uri, "pool": site.pool}
    assert sorted(site.disks.iterdir()) == before


def test_every_mark_of_a_start_is_tested() -> None:
    assert {mark for mark in MARKS if mark.startswith("recover.")} == set(START_MARKS)


@pytest.mark.parametrize("mark", START_MARKS)
def test_killed_at_a_mark_it_is_found_and_removed(options: dict[str, str], mark: str) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "SECONDSITE_CRASH_AT": mark, "PYTHONPATH": tests}
    words = [sys.executable, __file__, json.dumps(options)]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    fabric = make_fabric(options)
    (left,) = fabric.recovered()
    assert left.name == "crash-test"
    fabric.remove_recovered(left)
    assert list(fabric.recovered()) == []


if __name__ == "__main__":
    start(json.loads(sys.argv[1]))
