"""A real guest whose disks were copied to the other site before: only what differs travels.

Asked of the gateways themselves, where the images lie; `item adopt` asks the same of them
(tests/unit/server/items/test_protect.py).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.messages.adoption import (
    ENDED,
    AdoptImage,
    AdoptionState,
    AdoptionStatus,
    AdoptRequest,
)
from secondsite.lab import processes
from support.pair import Pair, running_pair

# half a minute of a real guest, where the twin's tests say the same: by `./run healing`
full = pytest.mark.skipif(os.environ.get("SECONDSITE_MATRIX") != "full", reason="./run healing runs it")
pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(300), full]


def test_a_copy_of_a_running_guest_is_adopted_and_only_differences_travel(tmp_path: Path) -> None:
    with running_pair() as pair:
        with pair.gateways.client(pair.sites.a) as client:
            machine = next(m for m in client.inventory().machines if m.name == pair.machine)
        images = {}
        for disk in machine.disks:
            copy = tmp_path / f"{disk.id}.qcow2"
            # of no instant at all: the guest writes meanwhile, as it does between a backup and its restoring
            command = [
                "qemu-img",
                "convert",
                "-U",
                "-f",
                disk.format,
                "-O",
                "qcow2",
                disk.location,
                str(copy),
            ]
            subprocess.run(command, check=True)
            images[disk.id] = AdoptImage(path=str(copy), format="qcow2")
        with pair.gateways.client(pair.sites.b) as client:
            client.adopt(machine.id, AdoptRequest(images=images))
        pair.protect()
        done = ended(pair, machine.id)
        assert (done.state, done.error) == (AdoptionState.ADOPTED, None)
        assert done.sent_bytes is not None
        assert done.stored_bytes > 8 * MIB
        assert done.sent_bytes < done.stored_bytes / 4, pair.log_tails()
        pair.wait_protected()
        pair.require_right(*pair.compare_now())


def ended(pair: Pair, machine: str) -> AdoptionStatus:
    with pair.gateways.client(pair.sites.b) as client:

        def look() -> AdoptionStatus | None:
            found = client.adoption(machine)
            return found if found.state in ENDED else None

        return processes.wait_until(
            look,
            what="the adoption",
            root=pair.sites.root,
            seconds=120,
            poll_seconds=0.2,
            evidence=pair.log_tails,
        )
