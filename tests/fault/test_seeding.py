"""Offline seeding between two whole gateways: export, carry, import, go on; damage, kills, wrong places."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.seedmedia import MANIFEST, seeds_in
from secondsite.gateway.common.seedpath import check_path
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.messages.seeding import (
    SeedExportRequest,
    SeedExportState,
    SeedImportRequest,
    SeedImportState,
    SeedImportStatus,
)
from secondsite.gateway.source import seedexport
from secondsite.gateway.source.firstcopying import Seed
from secondsite.gateway.target.seedimport import SeedImports
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import MachineId
from support import guest_log
from support.gateway_pair import A, B, Pair
from support.guest_log import GuestLog

pytestmark = pytest.mark.fault
ROOT = Path(__file__).resolve().parents[2]
DISKS = {"vda": 12 * MIB, "vdb": 5 * MIB + 512}
IMPORT_MARKS = ["seed-import.after-segment", "seed-import.before-commit", "seed-import.after-commit"]
EXPORT_MARKS = ["seed-export.before-manifest", "seed-export.after-manifest"]


class Sites:
    """Two gateways; A's machine has data that shrinks and data that does not. `media` is what is carried."""

    def __init__(self, root: Path) -> None:
        self.pair = Pair(root)
        self.clock, self.never = SystemClock(), threading.Event()
        self.fabric = MemoryFabric(clock=self.clock)
        self.machine = self.fabric.add_machine("shop", DISKS)
        self.chance = random.Random(5)
        for disk in DISKS:
            for offset in range(0, 4 * MIB, 64 * KIB):
                self.fabric.write(self.machine, disk, offset, self.chance.randbytes(64 * KIB))
        self.media = root / "media"
        self.media.mkdir()
        self.address = self.pair.start_b()
        self.a: Gateway | None = self.pair.start_a(self.address, self.fabric)

    def close(self) -> None:
        if self.a is not None:
            self.a.stop()
            self.a = None
        self.pair.stop_b()

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, f"{what} did not happen: {self.note()}"
            self.clock.wait(self.never, 0.05)

    def note(self) -> str:
        with self.pair.client_a() as client:
            return "\n".join(entry.event.text for entry in client.events())

    def client_b(self) -> GatewayClient:
        return GatewayClient(self.pair.root / B / "c.sock")

    def protect(self) -> None:
        self.pair.protect("shop", frequency_seconds=1)

    def export(self) -> None:
        with self.pair.client_a() as client:
            client.export_seed("shop", SeedExportRequest(directory=str(self.media), anywhere=True))
            self.until(lambda: client.seed_export("shop").state is SeedExportState.EXPORTED, "the export")

    def import_(self, media: Path | None = None) -> SeedImportStatus:
        with self.client_b() as client:
            client.import_seed(SeedImportRequest(directory=str(media or self.media)))
            running = (SeedImportState.CHECKING, SeedImportState.IMPORTING)
            self.until(lambda: client.seed_import().state not in running, "the import")
            return client.seed_import()

    def sent_bytes(self) -> int:
        with self.pair.client_a() as client:
            return client.protection("shop").total_sent_bytes

    def until_protected(self) -> None:
        with self.pair.client_a() as client:
            self.until(lambda: client.protection("shop").state is ProtectionState.PROTECTED, "Protected")

    def check_newest(self) -> Journal:
        """A point made now holds what the disks hold."""
        with self.pair.client_a() as client:
            taken = client.take_point("shop")
        store = LocalStore(self.pair.root / B / "store")
        journal = Journal(store, MachineId(self.machine), None)
        keys = KeyRing(store, journal.machine, self.pair.vault)
        with open_view(journal, taken.number, keys, bases=lambda _: None) as view:
            for disk, shown in view.disks.items():
                assert shown.read(0, shown.size_bytes) == self.fabric.content(self.machine, disk), disk
        return journal


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seedexport, "AWAIT_SECONDS", 0.2)


@pytest.fixture
def sites() -> Iterator[Sites]:
    # control sockets must have short paths
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        made = Sites(Path(directory))
        yield made
        made.close()


def test_a_carried_first_copy_goes_on_with_only_what_changed_since(sites: Sites) -> None:
    sites.protect()
    sites.export()
    assert not list((sites.pair.root / B / "store").rglob("points/*"))
    sites.fabric.write(sites.machine, "vda", MIB, sites.chance.randbytes(20 * KIB))
    carried = sites.pair.root / "carried"
    sites.media.rename(carried)  # as an unmount does
    done = sites.import_(carried)
    assert (done.state, done.error) == (SeedImportState.IMPORTED, None)
    assert done.done_bytes == done.total_bytes > 2 * 8 * MIB
    sites.until_protected()
    journal = sites.check_newest()
    first, *later = journal.points()
    assert first.number == done.points["shop"]
    assert all(point.parent_checkpoint for point in later), "increments only"
    assert sum(point.sent_bytes for point in later) < 256 * KIB
    with sites.pair.client_a() as client:
        assert client.seed_export("shop").state is SeedExportState.NONE
    again = sites.import_(carried)
    assert (again.state, again.points) == (SeedImportState.IMPORTED, done.points), "an import may be repeated"


def test_a_checkpoint_lost_on_the_way_costs_a_compare_not_a_copy(sites: Sites) -> None:
    sites.protect()
    sites.export()
    sites.fabric.write(sites.machine, "vdb", 2 * MIB, sites.chance.randbytes(20 * KIB))
    sites.fabric.lose_tracking(sites.machine)
    assert sites.import_().state is SeedImportState.IMPORTED
    sites.until_protected()
    journal = sites.check_newest()
    assert sum(point.sent_bytes for point in journal.points()[1:]) < 64 * KIB
    assert "resync: " in sites.note()


def test_damaged_media_are_named_object_by_object_and_nothing_is_put(sites: Sites) -> None:
    sites.protect()
    sites.export()
    segments = sorted(sites.media.rglob("*.seg"))
    assert len(segments) >= 2, "enough segments to damage two"
    with segments[0].open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    kept = segments[1].read_bytes()
    segments[1].unlink()
    failed = sites.import_()
    assert failed.state is SeedImportState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "seed.damaged"
    for path in segments[:2]:
        assert path.name in failed.error["happened"]
    assert not list((sites.pair.root / B / "store").rglob("*segment*/**/*.seg"))
    segments[1].write_bytes(kept)
    with segments[0].open("r+b") as file:
        file.seek(1000)
        file.write(byte)
    assert sites.import_().state is SeedImportState.IMPORTED


def test_a_manifest_that_was_changed_or_is_of_another_vault_is_refused(sites: Sites) -> None:
    sites.protect()
    sites.export()
    [seed] = seeds_in(sites.media)
    manifest = seed / MANIFEST
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b'"machine_name":"shop"', b'"machine_name":"shed"'))
    refused = sites.import_()
    assert refused.error is not None
    assert "seal" in refused.error["happened"] or "damaged" in refused.error["code"], refused
    head, _, seal, body, _ = good.split(b"\n")
    other = VaultKey.create()
    lines = [head, other.id.encode()]
    seal = other.log_key(MachineId(sites.machine)).seal(*lines, body).hex().encode()
    manifest.write_bytes(b"\n".join([*lines, seal, body, b""]))
    refused = sites.import_()
    assert refused.error is not None
    assert refused.error["code"] == "key.wrong", refused.error
    for junk in (b"", b"x", good[: len(good) // 2], b"\n\n\n\n", good.replace(b"version 1", b"version 9")):
        manifest.write_bytes(junk)
        assert sites.import_().state is SeedImportState.FAILED
    manifest.write_bytes(good)
    assert sites.import_().state is SeedImportState.IMPORTED


def test_who_is_shown_that_an_import_failed_may_ask_again_at_once(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has still to end: nobody can see when it has."""
    sites.protect()
    sites.export()
    [seed] = seeds_in(sites.media)
    good, ended = (seed / MANIFEST).read_bytes(), threading.Event()
    root = SeedImports._root

    def lasting(imports: SeedImports, *given: Any) -> None:
        root(imports, *given)
        assert ended.wait(60)

    monkeypatch.setattr(SeedImports, "_root", lasting)
    try:
        (seed / MANIFEST).write_bytes(b"junk")
        assert sites.import_().state is SeedImportState.FAILED
        (seed / MANIFEST).write_bytes(good)
        assert sites.import_().state is SeedImportState.IMPORTED
    finally:
        ended.set()


def test_a_seed_that_came_too_late_is_refused(sites: Sites) -> None:
    sites.protect()
    sites.export()
    with sites.pair.client_a() as client:
        client.cancel_seed("shop")
    sites.until_protected()
    refused = sites.import_()
    assert refused.error is not None
    assert refused.error["code"] == "seed.refused"
    with sites.pair.client_a() as client, pytest.raises(RemoteError) as caught:
        client.export_seed("shop", SeedExportRequest(directory=str(sites.media), anywhere=True))
    assert caught.value.body["code"] == "seed.not-possible"


def test_a_network_copy_under_way_does_not_end_up_over_an_imported_seed(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first copy sends no holes: over a seed with data there, its point would read what was discarded."""
    sites.protect()
    sites.export()
    gate = threading.Event()
    close = Seed._close

    def held(seed: Seed, *args: object) -> object:
        gate.wait(30)
        return close(seed, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Seed, "_close", held)
    sites.fabric.discard(sites.machine, "vda", 0, MIB)
    with sites.pair.client_a() as client:
        client.cancel_seed("shop")
        sites.until(lambda: _copied(client) > 0, "the copy over the network")
    assert sites.import_().state is SeedImportState.IMPORTED
    gate.set()
    sites.until_protected()
    sites.check_newest()
    assert "points already" in sites.note() or "has point" in sites.note()


def _copied(client: GatewayClient) -> int:
    copy = client.protection("shop").first_copy
    return copy.done_bytes if copy is not None else 0


def test_media_that_are_taken_away_are_waited_for(sites: Sites) -> None:
    sites.protect()
    with sites.pair.client_a() as client:
        client.export_seed("shop", SeedExportRequest(directory=str(sites.media), anywhere=True))
        sites.until(lambda: client.seed_export("shop").done_bytes > 0, "the export begins")
        gone = sites.media.rename(sites.pair.root / "gone")
        sites.media.mkdir()
        assert sites.a is not None
        sites.a.stop()
    (sites.pair.root / A / "state" / "seeds" / f"{sites.machine}.json").read_bytes()
    sites.a = sites.pair.start_a(sites.address, sites.fabric)
    with sites.pair.client_a() as client:
        if client.seed_export("shop").state is not SeedExportState.EXPORTED:
            sites.until(lambda: "are not at" in sites.note(), "an event that they are missing")
        sites.media.rmdir()
        gone.rename(sites.media)
        sites.until(lambda: client.seed_export("shop").state is SeedExportState.EXPORTED, "the export")
    assert sites.import_().state is SeedImportState.IMPORTED
    sites.until_protected()
    sites.check_newest()


@pytest.mark.parametrize("what", ["relative", "missing", "a file", "up", "beside", "read-only"])
def test_paths_are_validated(sites: Sites, what: str) -> None:
    machine = sites.fabric.open_source(sites.machine).machine
    file = sites.pair.root / "file"
    file.touch()
    ours = [sites.pair.root / A / "cache"]
    path = {
        "relative": Path("media"),
        "missing": sites.media / "no",
        "a file": file,
        "up": sites.media / ".." / "media",
        "beside": sites.media,
        "read-only": Path("/proc"),
    }[what]
    with pytest.raises(SecondsiteError) as caught:
        check_path(path, machine, ours, anywhere=what != "beside")
    assert caught.value.code == "seed.path-refused"
    check_path(sites.media, machine, ours, anywhere=True)
    assert list(sites.media.iterdir()) == [], "no trace of the check"


def test_the_marks_are_all_killed_at() -> None:
    ours = {mark for mark in MARKS if mark.startswith("seed-")}
    assert ours == {*IMPORT_MARKS, *EXPORT_MARKS}


@pytest.mark.parametrize("mark", IMPORT_MARKS)
def test_an_import_killed_at_each_mark_is_repeated(sites: Sites, mark: str) -> None:
    sites.protect()
    sites.export()
    sites.pair.stop_b()
    config = sites.pair.config(B, listen=sites.address[1], peers={A: "https://127.0.0.1:1"})
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "SECONDSITE_CRASH_AT": f"{mark}:1"}
    with (sites.pair.root / "b.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "secondsite", "gateway", "--config", str(config)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        sites.until(lambda: _asked(sites), "B takes the request")
        assert process.wait(60) == -signal.SIGKILL, (sites.pair.root / "b.log").read_text()
    finally:
        process.kill()
        process.wait()
    sites.pair.start_b(sites.address[1])
    assert sites.import_().state is SeedImportState.IMPORTED
    sites.until_protected()
    sites.check_newest()


def _asked(sites: Sites) -> bool:
    try:
        with sites.client_b() as client:
            client.import_seed(SeedImportRequest(directory=str(sites.media)))
            return True
    except SecondsiteError:
        return False


@pytest.mark.parametrize("mark", [*EXPORT_MARKS, "seed.after-slice"])
def test_an_export_killed_at_each_mark_goes_on(mark: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        root = Path(directory)
        pair, guest_dir, media = Pair(root), root / "guest", root / "media"
        guest_dir.mkdir()
        media.mkdir()
        guest, chance = GuestLog(guest_dir), random.Random(3)
        for disk, size in guest_log.DISKS.items():
            for offset in range(0, size - 64 * KIB, 256 * KIB):
                guest.write(disk, offset, chance.randbytes(64 * KIB))
        address = pair.start_b()
        try:
            _export_killed(pair, guest_dir, media, address, mark)
            with GatewayClient(root / B / "c.sock") as b:
                b.import_seed(SeedImportRequest(directory=str(media)))
                _until(lambda: b.seed_import().state is SeedImportState.IMPORTED, "the import")
        finally:
            pair.stop_b()
        store = LocalStore(root / B / "store")
        journal = Journal(store, MachineId(guest_log.MACHINE), None)
        [point] = journal.points()
        position = guest_log.positions_of(guest_dir)[point.checkpoint]
        expected = guest_log.contents_at(guest_dir, [position])[position]
        keys = KeyRing(store, journal.machine, pair.vault)
        with open_view(journal, point.number, keys, bases=lambda _: None) as view:
            for disk, shown in view.disks.items():
                assert shown.read(0, shown.size_bytes) == expected[disk]


def _export_killed(pair: Pair, guest_dir: Path, media: Path, address: tuple[str, int], mark: str) -> None:
    """Export by a gateway that dies at the mark, and by the next one."""
    config = pair.config_a(address)
    command = [sys.executable, "-m", "support.gateway_process", str(config), str(guest_dir)]
    for crash in (f"{mark}:1", ""):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
        if crash:
            environment["SECONDSITE_CRASH_AT"] = crash
        with (pair.root / "a.log").open("ab") as output:
            process = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
        try:
            _until(lambda: _answers(pair), "the control socket")
            if crash:
                pair.protect(guest_log.MACHINE)
                with contextlib.suppress(SecondsiteError), pair.client_a() as client:
                    request = SeedExportRequest(directory=str(media), anywhere=True)
                    client.export_seed(guest_log.MACHINE, request)
                assert process.wait(60) == -signal.SIGKILL, (pair.root / "a.log").read_text()[-3000:]
            else:
                with pair.client_a() as client:
                    if client.seed_export(guest_log.MACHINE).state is SeedExportState.NONE:
                        # killed in a slice that still went over the network
                        request = SeedExportRequest(directory=str(media), anywhere=True)
                        client.export_seed(guest_log.MACHINE, request)
                    _until(
                        lambda: client.seed_export(guest_log.MACHINE).state is SeedExportState.EXPORTED,
                        "the export",
                    )
        finally:
            process.kill()
            process.wait()


def _answers(pair: Pair) -> bool:
    with contextlib.suppress(SecondsiteError), pair.client_a() as client:
        client.status()
        return True
    return False


def _until(condition: Callable[[], bool], what: str) -> None:
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + 60
    while not condition():
        assert clock.monotonic() < end, f"{what} did not happen"
        clock.wait(never, 0.05)


def test_planted_bug_an_import_without_checking_first_is_caught(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.gateway.target.seedimport.find_damage", lambda seed, ref: "")
    with pytest.raises(AssertionError):
        test_damaged_media_are_named_object_by_object_and_nothing_is_put(sites)


def test_a_copied_seed_is_as_good_as_the_first(sites: Sites) -> None:
    sites.protect()
    sites.export()
    copied = sites.pair.root / "copied"
    shutil.copytree(sites.media, copied)
    shutil.rmtree(sites.media)
    assert sites.import_(copied).state is SeedImportState.IMPORTED
