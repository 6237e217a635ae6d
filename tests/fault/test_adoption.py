"""Adopting an existing copy between two whole gateways: only what differs travels."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.errors import RemoteError
from secondsite.base.units import KIB, MIB
from secondsite.cli.main import main
from secondsite.gateway.adopt import seal as adoptseal
from secondsite.gateway.adopt import service as adopt
from secondsite.gateway.adopt.seal import make_tables
from secondsite.gateway.messages.adoption import AdoptionState
from secondsite.gateway.source import copying, resync
from secondsite.gateway.source.firstcopying import Seed
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.journal.chain import Journal
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.points import PointProposal
from secondsite.transfer.errors import ProtocolViolation
from secondsite.transfer.protocols import Peer
from support.adoption import DISKS, Sites
from support.gateway_pair import A, B

pytestmark = pytest.mark.fault


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


def test_the_first_point_over_a_copy_becomes_the_base() -> None:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        sites = Sites(Path(directory), bases=True)
        try:
            sites.change()
            sites.adopt()
            sites.protect()
            done = sites.until_ended()
            assert done.point is not None
            first = done.point
            sites.until_protected()
            sites.until(lambda: sites.journal.state().promoted >= first, "the promotion")
            sites.check_newest()
            bases = {base.disk: Path(base.locator) for base in sites.journal.state().bases}
            assert bases.keys() == sites.images.keys()
            assert not set(bases.values()) & set(sites.images.values()), "the image is none of ours"
        finally:
            sites.close()


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

    def held(*args: object, **named: object) -> object:
        reached.set()
        gate.wait(30)
        return make_tables(*args, **named)  # type: ignore[arg-type]

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
    monkeypatch.setattr(copying, "Seed", functools.partial(Seed, slice_bytes=MIB))
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


def changed_while_unprotected(sites: Sites, *, state: bool) -> int:
    """The machine is protected, no longer, changed, and protected again; the newest point's number before.

    state: the source's gateway keeps its state directory meanwhile.
    """
    sites.protect()
    sites.until_protected()
    sites.check_newest()
    with sites.pair.client_a() as client:
        if state:
            client.unprotect("shop")
    if not state:
        sites.stop_a()
        for lost in ("state", "cache"):
            shutil.rmtree(sites.root / A / lost)
        sites.fabric.lose_tracking(sites.machine)
    before = sites.journal.points()[-1].number
    sites.change()
    sites.protect()
    sites.until_protected()
    return before


@pytest.mark.parametrize("state", [True, False], ids=["unprotected", "gateway-lost"])
def test_protected_again_it_is_compared_with_the_replica_that_was_kept(sites: Sites, state: bool) -> None:
    before = changed_while_unprotected(sites, state=state)
    journal = sites.check_newest()
    assert min(point.number for point in journal.points()) < before, "older points stay"
    sent = sum(point.sent_bytes for point in journal.points() if point.number > before)
    assert sent < 64 * KIB, sites.notes()
    notes = sites.notes()
    assert "replicate.resynced: " in notes
    assert ("replicate.key-recovered: " in notes) is (not state)
    assert journal.points()[-1].disks[0].key_id == journal.points()[0].disks[0].key_id


def test_keys_that_cannot_be_had_again_cost_a_copy_and_are_told(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target of an older version knows no such request."""

    def unknown(receiver: GatewayReceiver, peer: Peer, machine: MachineId, key: KeyId) -> bytes:
        raise ProtocolViolation(peer=peer.name, why="GET is not for key")

    monkeypatch.setattr(GatewayReceiver, "get_key", unknown)
    changed_while_unprotected(sites, state=False)
    notes = sites.notes()
    assert "replicate.key-lost: " in notes
    assert "all of it is sent" in notes
    sites.check_newest()


def test_an_image_that_changes_while_it_is_read_is_not_adopted(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, calls = adoptseal._feed, 0

    def meddled(*args: object) -> None:
        nonlocal calls
        calls += 1
        feed(*args)  # type: ignore[arg-type]
        if calls == 2:
            with sites.images["vda"].open("r+b") as file:
                file.write(b"other")

    monkeypatch.setattr(adoptseal, "_feed", meddled)
    sites.adopt()
    sites.protect()
    done = sites.until_ended()
    assert done.error is not None
    assert done.error["code"] == "adopt.image-changed"
    assert calls == 2
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_a_target_restarted_in_the_middle_of_the_comparison_goes_on(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "Seed", functools.partial(Seed, slice_bytes=MIB))
    gate, reached = threading.Event(), threading.Event()
    piece = Seed._slice

    def held(seed: Seed, *args: object) -> object:
        if seed._progress.done_bytes > MIB and not gate.is_set():
            reached.set()
            gate.wait(30)
        return piece(seed, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Seed, "_slice", held)
    sites.change()
    sites.adopt()
    sites.protect()
    try:
        assert reached.wait(30), "the comparison has begun"
        sites.pair.stop_b()
        shutil.rmtree(sites.root / B / "cache")
        sites.pair.start_b(sites.address[1])
    finally:
        gate.set()
    done = sites.until_ended()
    assert done.state is AdoptionState.ADOPTED
    assert done.sent_bytes is not None
    assert done.sent_bytes < 64 * KIB
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_the_commands(sites: Sites, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main(["adopt", *words, "--gateway", str(sites.root / B / "c.sock")])
        told = capsys.readouterr()
        return code, told.out + told.err

    assert run("list") == (0, "No copy is being adopted here.\n")
    assert run("start", sites.machine)[0] == 2, "no image is named"
    code, told = run("start", sites.machine, "--raw", f"vda={sites.images['vda']}")
    assert (code, "waits to be protected" in told) == (0, True), told
    code, told = run("start", sites.machine, "--raw", f"vda={sites.images['vda']}")
    assert (code, "adopt.running" in told) == (4, True), told
    assert "gives" not in run("status", sites.machine)[1]
    assert f"vda={sites.images['vda']}" in run("list")[1]
    code, told = run("cancel", sites.machine)
    assert (code, "was given up" in told) == (0, True), told
    sites.protect()
    sites.until_protected()
    code, told = run("start", "shop", "--raw", f"vda={sites.images['vda']}", "--wait")
    assert (code, "adopt.not-possible" in told) == (4, True), told
    assert msgspec.json.decode(run("status", "shop", "--json")[1])["state"] == "Cancelled"
    assert run("status", "shed")[0] == 3
