"""kill -9 of either gateway while a copy is adopted: it goes on, or ends, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.crash import MARKS
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.gateway.messages.adoption import AdoptImage, AdoptionState, AdoptRequest
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId, MachineId
from support import guest_log
from support.adoption import Sites
from support.forked import forked_gateway
from support.gateway_pair import A, B, Pair

pytestmark = pytest.mark.fault

ADOPTED_MARKS = [
    "adopt.before-put",
    "adopt.after-put:2",
    "adopt.after-slice",
    "adopt.before-ready",
    "adopt.after-ready",
    "adopt.after-committing",
    "commit.after-manifest",
    "adopt.after-adopted",
]
ENDED_MARKS = ["adopt.after-ended", "adopt.during-drop"]
SOURCE_MARKS = ["seed.after-slice", "seed.before-seal"]


@pytest.fixture
def sites() -> Iterator[Sites]:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        made = Sites(Path(directory))
        yield made
        made.close()


def test_the_marks_are_all_killed_at() -> None:
    ours = {mark for mark in MARKS if mark.startswith("adopt.")}
    killed = {crash.partition(":")[0] for crash in (*ADOPTED_MARKS, *ENDED_MARKS)}
    assert ours == {mark for mark in killed if mark.startswith("adopt.")}


@contextlib.contextmanager
def target_killed_at(sites: Sites, crash: str) -> Iterator[None]:
    """Gateway B as a process of its own, which is dead in the end; then one in this process again."""
    sites.pair.stop_b()
    config = sites.pair.config(B, listen=sites.address[1], peers={A: "https://127.0.0.1:1"})
    output = sites.root / "b.log"
    with output.open("wb") as file:
        process = forked_gateway(
            "gateway", "--config", str(config), module="secondsite", output=file, crash_at=crash
        )
    try:
        sites.until(sites.b_answers, "B's control socket")
        yield
        assert process.wait(60) == -signal.SIGKILL, output.read_text()
    finally:
        process.kill()
        process.wait()
    sites.pair.start_b(sites.address[1])


@pytest.mark.parametrize("crash", ADOPTED_MARKS)
def test_a_target_killed_anywhere_goes_on(sites: Sites, crash: str) -> None:
    sites.change()
    with target_killed_at(sites, crash):
        sites.adopt()
        sites.protect()
    done = sites.until_ended()
    assert (done.state, done.error) == (AdoptionState.ADOPTED, None)
    assert done.sent_bytes is not None
    assert done.sent_bytes < 64 * KIB
    sites.until_protected()
    assert sites.check_newest().points()[0].number == done.point
    sites.check_no_garbage()


@pytest.mark.parametrize("crash", ENDED_MARKS)
def test_one_that_failed_is_cleared_up_after_a_kill(sites: Sites, crash: str) -> None:
    with target_killed_at(sites, crash):
        sites.adopt()
        with sites.images["vdb"].open("r+b") as file:
            file.write(b"other")  # the first disk is sealed by the time that is seen
        sites.protect()
    assert sites.until_ended().state is AdoptionState.FAILED
    sites.until_protected()
    sites.check_newest()
    sites.check_no_garbage()


def test_planted_bug_a_part_sealed_again_over_what_a_kill_left_is_caught(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.gateway.adopt.seal.drop_objects", lambda journal, refs: None)
    with pytest.raises(AssertionError):
        test_a_target_killed_anywhere_goes_on(sites, "adopt.after-put:2")


@pytest.mark.parametrize("crash", SOURCE_MARKS)
def test_a_source_killed_anywhere_goes_on(crash: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        root = Path(directory)
        pair = Pair(root)
        written = _guest(root, 24)
        images = {disk: root / f"{disk}.raw" for disk in guest_log.DISKS}
        for disk, path in images.items():
            path.write_bytes(written[disk])
        _guest(root, 2, seed=8)
        address = pair.start_b()
        try:
            with pair.client_b() as client:
                asked = {
                    DiskId(disk): AdoptImage(path=str(path), format="raw") for disk, path in images.items()
                }
                client.adopt(guest_log.MACHINE, AdoptRequest(images=asked))
            for at in (crash, ""):
                _run_source(pair, root, address, at)
            with pair.client_b() as client:
                done = client.adoption(guest_log.MACHINE)
        finally:
            pair.stop_b()
        assert done.state is AdoptionState.ADOPTED, done
        assert done.sent_bytes is not None
        assert done.sent_bytes < 256 * KIB, "two writes of 64 KiB since the copy"
        _check_points(pair, root)


def _guest(root: Path, count: int, *, seed: int = 3) -> dict[str, bytes]:
    """Writes of the guest; what its disks hold then."""
    directory = root / "guest"
    directory.mkdir(exist_ok=True)
    guest = guest_log.GuestLog(directory)
    for number in range(count):
        disk = guest_log.NAMES[number % 2]
        offset = (number * 7 + seed) % 48 * 64 * KIB
        guest.write(disk, offset, os.urandom(64 * KIB))
    guest.close()
    end = (directory / "guest.log").stat().st_size
    return guest_log.contents_at(directory, [end])[end]


def _run_source(pair: Pair, root: Path, address: tuple[str, int], crash: str) -> None:
    """A gateway that dies at the mark, or one that gets there."""
    config, guest = str(pair.config_a(address)), str(root / "guest")
    with (root / "a.log").open("ab") as output:
        process = forked_gateway(config, guest, output=output, crash_at=crash, TEST_SLICE_BYTES=str(MIB))
    try:
        Sites.wait(lambda: _status(pair) is not None, "the control socket")
        if crash:
            with contextlib.suppress(SecondsiteError):
                pair.protect(guest_log.MACHINE)
            assert process.wait(60) == -signal.SIGKILL, (root / "a.log").read_text()[-3000:]
        else:
            Sites.wait(lambda: _status(pair) == "Protected", "Protected")
    finally:
        process.kill()
        process.wait()


def _status(pair: Pair) -> str | None:
    with contextlib.suppress(SecondsiteError), pair.client_a() as client:
        found = client.status().protections
        return found[0].state.value if found else ""
    return None


def _check_points(pair: Pair, root: Path) -> None:
    store = LocalStore(root / B / "store")
    journal = Journal(store, MachineId(guest_log.MACHINE), None)
    keys = KeyRing(store, journal.machine, pair.vault)
    positions = guest_log.positions_of(root / "guest")
    for point in journal.points():
        position = positions[point.checkpoint]
        expected = guest_log.contents_at(root / "guest", [position])[position]
        with open_view(journal, point.number, keys, bases=lambda _: None) as view:
            for disk, shown in view.disks.items():
                assert shown.read(0, shown.size_bytes) == expected[disk], f"point {point.number}, {disk}"
