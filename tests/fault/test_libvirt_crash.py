"""Killed while it makes a recovered machine or removes a former one: the next process goes on with that."""

from __future__ import annotations

import contextlib
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
from secondsite.fabrics.libvirt import aside, removal
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.lab.place import Site
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Mapping
from support.fabrics import Recorded

pytestmark = [pytest.mark.libvirt, pytest.mark.fault]

START_MARKS = ["recover.after-define", "recover.after-overlays"]
REMOVE_MARKS = [removal.DURING_IMAGES, removal.BEFORE_UNDEFINE]
OLD = MachineId("0b7c9e52-6a3f-4f0e-8a41-5d2c7e9f1b60")
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
    assert {mark for mark in MARKS if mark.startswith("remove.")} == set(REMOVE_MARKS)


def die(options: dict[str, str], mark: str, what: str = "start") -> None:
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "SECONDSITE_CRASH_AT": mark, "PYTHONPATH": tests}
    words = [sys.executable, __file__, json.dumps(options), what]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr


def test_killed_while_its_overlays_are_put_aside_none_is_lost(options: dict[str, str]) -> None:
    die(options, "recover.after-overlays")
    die(options, aside.AFTER_RENAME, "keep")
    fabric = make_fabric(options)
    (left,) = fabric.recovered()
    [kept] = fabric.keep_overlays(left, "p7")
    assert Path(kept.path).is_file()
    assert list(fabric.recovered()) == []
    fabric.remove_kept([kept.path])


@pytest.mark.parametrize("mark", START_MARKS)
def test_killed_at_a_mark_it_is_found_and_removed(options: dict[str, str], mark: str) -> None:
    die(options, mark)
    fabric = make_fabric(options)
    (left,) = fabric.recovered()
    assert left.name == "crash-test"
    fabric.remove_recovered(left)
    assert list(fabric.recovered()) == []


def keep(options: dict[str, str]) -> None:
    """And the one that dies when the machine is moved to another point."""
    fabric = make_fabric(options)
    (left,) = fabric.recovered()
    fabric.keep_overlays(left, "p7")


def remove(options: dict[str, str]) -> None:
    """And the one that removes what a failover takes the place of."""
    make_fabric(options).remove_machine(OLD, disks=True)


@pytest.mark.parametrize("mark", REMOVE_MARKS)
def test_killed_while_a_former_machine_is_removed_all_of_it_goes(
    options: dict[str, str], sites: Any, mark: str
) -> None:
    images = [sites.b.disks / f"old-{disk}.qcow2" for disk in ("vda", "vdb")]
    disks = ""
    for image, disk in zip(images, ("vda", "vdb"), strict=True):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
        disks += (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
            f"<target dev='{disk}' bus='virtio'/></disk>"
        )
    with contextlib.closing(sites.b.connect()) as connection:
        connection.defineXML(
            f"<domain type='qemu'><name>old</name><uuid>{OLD}</uuid><memory unit='MiB'>64</memory>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}</devices></domain>"
        )
        fabric = make_fabric(options)
        fabric.isolate(OLD, why="it was taken over", autostart=False)
        die(options, mark, "remove")
        assert not images[0].exists(), "something of it went before"
        assert [domain.name() for domain in connection.listAllDomains()] == ["old"], "what is left is named"
        assert list(fabric.remove_machine(OLD, disks=True)) == []
        assert connection.listAllDomains() == []
    assert not any(image.exists() for image in images)


if __name__ == "__main__":
    {"start": start, "keep": keep, "remove": remove}[sys.argv[2]](json.loads(sys.argv[1]))
