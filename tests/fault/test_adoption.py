"""Adopting an existing copy between two whole gateways: only what differs travels."""

from __future__ import annotations

import contextlib
import functools
import random
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway import adopt, adoptseal, replicate, resync
from secondsite.gateway.adoptmessages import ENDED, AdoptImage, AdoptionState, AdoptionStatus, AdoptRequest
from secondsite.gateway.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages import ProtectionState
from secondsite.gateway.seed import Seed
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import PointProposal
from support.gateway_pair import B, Pair

pytestmark = pytest.mark.fault
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
            with client:
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
        with open_view(journal, taken.number, keys, bases=lambda _: None) as view:
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


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync, "AWAIT_SECONDS", 0.05)
    monkeypatch.setattr(adoptseal.seal, "__kwdefaults__", {"slice_bytes": 2 * MIB})


@pytest.fixture
def sites() -> Iterator[Sites]:
    # control sockets must have short paths
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        made = Sites(Path(directory))
        yield made
        made.close()


def test_only_what_differs_travels(sites: Sites) -> None:
    before = {disk: path.read_bytes() for disk, path in sites.images.items()}
    sites.change()
    assert sites.adopt().state is AdoptionState.OFFERED
    sites.protect()
    done = sites.until_ended()
    assert (done.state, done.error) == (AdoptionState.ADOPTED, None)
    assert done.sent_bytes is not None
    assert done.sent_bytes < 64 * KIB, "24 KiB were written, 1 MiB discarded"
    assert done.stored_bytes > 8 * MIB
    sites.until_protected()
    journal = sites.check_newest()
    first = journal.points()[0]
    assert first.number == done.point
    assert first.parent_checkpoint is None
    assert all(disk.fingerprint for disk in first.disks), "the fingerprints are known"
    notes = sites.notes()
    for code in ("adopt.offered", "adopt.sealed", "adopt.adopted", "replicate.adopting", "replicate.adopted"):
        assert f"{code}: " in notes, notes
    assert {disk: path.read_bytes() for disk, path in sites.images.items()} == before, "never written"
    sites.check_no_garbage()
    with pytest.raises(RemoteError) as caught:
        sites.adopt()
    assert caught.value.body["code"] == "adopt.not-possible"


@pytest.mark.parametrize("stage", ["sizes", "disks"])
def test_a_copy_that_does_not_fit_is_refused_at_both_sites(sites: Sites, stage: str) -> None:
    if stage == "sizes":
        with sites.images["vdb"].open("r+b") as file:
            file.truncate(DISKS["vdb"] - 512)
        sites.adopt()
    else:
        sites.adopt({"vdc": sites.images["vda"]})
    sites.protect()
    done = sites.until_ended()
    assert done.state is AdoptionState.REFUSED
    assert done.error is not None
    assert done.error["code"] == "adopt.refused"
    assert ("vdb" if stage == "sizes" else "vda, vdb") in done.error["happened"]
    sites.until_protected()
    with sites.pair.client_a() as client:
        [told] = [e.event.text for e in client.events() if e.event.code == "adopt.refused"]
    assert done.error["happened"] in told
    sites.check_newest()
    sites.check_no_garbage()


def test_qcow2_with_an_image_beneath_and_a_disk_without_a_copy(sites: Sites) -> None:
    lower = sites.copy("vda", "qcow2")
    upper = lower.with_name("upper.qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(lower), "-F", "qcow2", str(upper)]
    subprocess.run(command, check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 8M 64k", str(upper)], check=True, capture_output=True)
    sites.change()
    sites.adopt({"vda": upper})
    sites.protect()
    done = sites.until_ended()
    assert done.state is AdoptionState.ADOPTED
    assert done.sent_bytes is not None
    assert 4 * MIB < done.sent_bytes < 5 * MIB, "vdb travels, of vda what differs"
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_an_image_somebody_writes_to_is_refused(sites: Sites) -> None:
    image = sites.copy("vda", "qcow2")
    process = subprocess.Popen(
        ["qemu-io", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        process.stdout.read(4)  # it has the image open
        with pytest.raises(RemoteError) as caught:
            sites.adopt({"vda": image})
        assert caught.value.body["code"] == "adopt.image-in-use"
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    sites.adopt({"vda": image})


def test_an_image_that_changes_meanwhile_is_not_adopted(sites: Sites) -> None:
    sites.adopt()
    with sites.images["vdb"].open("r+b") as file:
        file.seek(MIB)
        file.write(b"other")
    sites.protect()
    done = sites.until_ended()
    assert done.state is AdoptionState.FAILED
    assert done.error is not None
    assert done.error["code"] == "adopt.image-changed"
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_one_that_is_given_up_leaves_nothing(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, reached = threading.Event(), threading.Event()
    tables = adopt.make_tables

    def held(*args: object, **named: object) -> object:
        reached.set()
        gate.wait(30)
        return tables(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(adopt, "make_tables", held)
    sites.adopt()
    sites.protect()
    try:
        assert reached.wait(30), "everything is sealed"
        assert [name for name in sites.store.list("machines/") if "/segments/" in name]
        with sites.pair.client_b() as client:
            assert client.cancel_adoption("shop").state is AdoptionState.CANCELLED
    finally:
        gate.set()
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()
    assert sites.adoption().state is AdoptionState.CANCELLED


def test_a_copy_over_the_network_under_way_begins_again(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicate, "Seed", functools.partial(Seed, slice_bytes=MIB))
    gate, reached = threading.Event(), threading.Event()
    piece = Seed._slice

    def held(seed: Seed, *args: object) -> object:
        if not seed._adopted and not gate.is_set():
            reached.set()
            gate.wait(30)
        return piece(seed, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Seed, "_slice", held)
    sites.change()
    sites.protect()
    try:
        assert reached.wait(30), "the copy has begun"
        sites.adopt()
    finally:
        gate.set()
    done = sites.until_ended()
    assert done.state is AdoptionState.ADOPTED
    assert done.sent_bytes is not None
    assert done.sent_bytes < 64 * KIB
    assert "replicate.adoption-offered" in sites.notes()
    sites.until_protected()
    sites.check_newest()


def test_a_first_copy_that_was_whole_leaves_it_unused(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, reached = threading.Event(), threading.Event()
    close = Seed._close

    def held(seed: Seed, *args: object) -> object:
        reached.set()
        gate.wait(30)
        return close(seed, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Seed, "_close", held)
    sites.protect()
    try:
        assert reached.wait(30), "every slice is sent"
        sites.adopt()
    finally:
        gate.set()
    assert sites.until_ended().state is AdoptionState.UNUSED
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_planted_bug_a_first_copy_compared_with_nothing_beneath_is_caught(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent over the adopted copy, taken for the whole."""
    under = adopt.Adoptions.under

    @contextlib.contextmanager
    def bare(self: adopt.Adoptions, journal: Journal, proposal: PointProposal) -> Iterator[PointProposal]:
        with under(self, journal, proposal):
            yield msgspec.structs.replace(proposal, fresh=True)

    monkeypatch.setattr(adopt.Adoptions, "under", bare)
    with pytest.raises(AssertionError):
        test_only_what_differs_travels(sites)


def test_planted_bug_holes_not_compared_are_caught(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guest discarded would shine through from the adopted copy."""
    monkeypatch.setattr(Seed, "_holes", lambda *_: None)
    with pytest.raises(AssertionError):
        test_only_what_differs_travels(sites)
