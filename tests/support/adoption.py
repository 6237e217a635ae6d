"""Two whole gateways, and copies of a machine's disks at the target's site that are to be adopted."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.adoption import ENDED, AdoptImage, AdoptionStatus, AdoptRequest
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.target.bases import base_opener
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId, MachineId
from support.gateway_pair import B, Pair

DISKS = {"vda": 12 * MIB, "vdb": 5 * MIB + 512}


class Sites:
    """Two gateways; A's machine has data that does not shrink, B's site has older copies of its disks."""

    def __init__(self, root: Path, *, bases: bool = False) -> None:
        self.root = root
        self.pair = Pair(root, bases=bases)
        self.clock, self.never = SystemClock(), threading.Event()
        self.fabric = MemoryFabric(clock=self.clock)
        self.machine = self.fabric.add_machine("shop", DISKS)
        self.chance = random.Random(5)
        for disk in DISKS:
            for offset in range(0, 4 * MIB, 64 * KIB):
                self.fabric.write(self.machine, disk, offset, self.chance.randbytes(64 * KIB))
        (root / "pool").mkdir()
        self.images = {disk: self.copy(disk) for disk in DISKS}
        self.address = self.pair.start_b()
        self.a: Gateway | None = None

    def copy(self, disk: str, image_format: str = "raw") -> Path:
        """What a disk holds now, as an image in B's pool."""
        path = self.root / "pool" / f"{disk}.raw"
        content = self.fabric.content(self.machine, disk)
        with path.open("wb") as file:
            for offset in range(0, len(content), 64 * KIB):
                piece = content[offset : offset + 64 * KIB]
                if piece.strip(b"\0"):
                    file.seek(offset)
                    file.write(piece)
            file.truncate(len(content))
        if image_format == "raw":
            return path
        made = path.with_suffix(".qcow2")
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(path), str(made)]
        subprocess.run(command, check=True)
        return made

    def change(self) -> None:
        """What the guest did since the copies were made: writes, a discard, bytes in a new place."""
        self.fabric.write(self.machine, "vda", MIB + 4 * KIB, self.chance.randbytes(12 * KIB))
        self.fabric.write(self.machine, "vda", 9 * MIB, self.chance.randbytes(8 * KIB))
        self.fabric.discard(self.machine, "vda", 2 * MIB, MIB)
        self.fabric.write(self.machine, "vdb", 3 * MIB, self.chance.randbytes(4 * KIB))

    def close(self) -> None:
        self.stop_a()
        self.pair.stop_b()

    def start_a(self) -> None:
        self.a = self.pair.start_a(self.address, self.fabric)

    def stop_a(self) -> None:
        if self.a is not None:
            self.a.stop()
            self.a = None

    def protect(self) -> None:
        if self.a is None:
            self.start_a()
        self.pair.protect("shop", frequency_seconds=1)

    def adopt(self, images: dict[str, Path] | None = None) -> AdoptionStatus:
        asked = {
            DiskId(disk): AdoptImage(path=str(path), format="qcow2" if path.suffix == ".qcow2" else "raw")
            for disk, path in (self.images if images is None else images).items()
        }
        with self.pair.client_b() as client:
            return client.adopt(self.machine, AdoptRequest(images=asked))

    def adoption(self) -> AdoptionStatus:
        with self.pair.client_b() as client:
            return client.adoption(self.machine)

    def b_answers(self) -> bool:
        with contextlib.suppress(SecondsiteError), self.pair.client_b() as client:
            client.status()
            return True
        return False

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Until it is so."""
        clock, never = SystemClock(), threading.Event()
        end = clock.monotonic() + seconds
        while not condition():
            assert clock.monotonic() < end, f"{what} did not happen"
            clock.wait(never, 0.05)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, f"{what} did not happen: {self.notes()}"
            self.clock.wait(self.never, 0.05)

    def until_ended(self) -> AdoptionStatus:
        self.until(lambda: self.adoption().state in ENDED, "the end of the adoption")
        return self.adoption()

    def until_protected(self) -> None:
        with self.pair.client_a() as client:
            self.until(lambda: client.protection("shop").state is ProtectionState.PROTECTED, "Protected")

    def notes(self) -> str:
        clients: list[GatewayClient] = [self.pair.client_b()]
        if self.a is not None:
            clients.append(self.pair.client_a())
        texts = []
        for client in clients:
            with contextlib.suppress(SecondsiteError), client:
                texts += [f"{entry.event.code}: {entry.event.text}" for entry in client.events()]
        return "\n".join(texts)

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / B / "store")

    @property
    def journal(self) -> Journal:
        return Journal(self.store, MachineId(self.machine), None)

    def check_newest(self) -> Journal:
        """A point made now holds what the disks hold."""
        with self.pair.client_a() as client:
            taken = client.take_point("shop")
        keys = KeyRing(self.store, MachineId(self.machine), self.pair.vault)
        journal = self.journal
        with open_view(journal, taken.number, keys, bases=base_opener(journal)) as view:
            for disk, shown in view.disks.items():
                assert shown.read(0, shown.size_bytes) == self.fabric.content(self.machine, disk), disk
        return journal

    def check_no_garbage(self) -> None:
        """Every segment in the store is named by a point; the adoption left no log and no tables."""

        def clean() -> bool:
            return not list((self.root / B / "state" / "adoptions").glob("*.log"))

        self.until(clean, "the adoption is cleared up")
        journal = self.journal
        named = {journal.segment_name(ref) for point in journal.points_after(0) for ref in point.segments}
        found = {name for name in self.store.list("machines/") if "/segments/" in name}
        assert found == named
        assert not list((self.root / B / "cache" / "adoptions").rglob("*.digests"))
