"""Whole stores of earlier versions: read, gone on with, merged, promoted and verified by this one.

``store-1`` is of the version before retention (no spans, pins without a generation); ``store-1-spans`` has
spans and pages. Each holds a machine with two disks that were resized, two epochs, a base of each disk, and
the sha256 of every point's disks. Made once, by hand, with the version they are of; never changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.journal import chain_load, log_pages, page_catalog, page_write, pages
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal, machines
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.merge import merge
from secondsite.journal.page_write import write_log_page, write_page
from secondsite.journal.promote import promote
from secondsite.journal.scrub import scrub
from secondsite.journal.state import BaseState
from secondsite.journal.store_local import LocalStore
from secondsite.journal.sweep import delete_retired
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId

DATA = Path(__file__).parent / "data"
STORES = sorted(path.name.removesuffix(".tar.xz") for path in DATA.glob("store-*.tar.xz"))


@dataclass
class Golden:
    """An unpacked store."""

    root: Path
    journal: Journal
    keys: KeyRing
    points: dict[int, dict[str, str]]  # number -> disk -> sha256

    def base_of(self, disk: DiskId) -> BaseImage:
        return RawBase(self.root / f"{disk}.raw", read_only=True)

    def open_base(self, disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        return RawBase(self.root / f"{disk}.raw")

    def check(self) -> None:
        for point in self.journal.points():
            with open_view(self.journal, point.number, self.keys, bases=self.base_of) as view:
                found = {
                    disk: hashlib.sha256(shown.read(0, shown.size_bytes)).hexdigest()
                    for disk, shown in view.disks.items()
                }
            assert found == self.points[point.number], f"point {point.number}"


@pytest.fixture(params=STORES)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    data = lzma.decompress((DATA / f"{request.param}.tar.xz").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    if request.param.endswith("spans"):  # its pages are of few records
        for module in (pages, page_catalog, page_write):
            monkeypatch.setattr(module, "LEVELS", (4, 16))
        for module in (log_pages, chain_load, page_write):
            monkeypatch.setattr(module, "RECORDS", 4)
    told = json.loads((tmp_path / "expected.json").read_text())
    for disk, identity in told["identities"].items():
        (tmp_path / f".{disk}.raw.secondsite").write_text(identity)
    store, vault = LocalStore(tmp_path / "store"), VaultKey.load(tmp_path / "vault.key")
    (machine,) = machines(store)
    points = {int(number): disks for number, disks in told["points"].items()}
    return Golden(tmp_path, Journal(store, machine, vault), KeyRing(store, machine, vault), points)


def test_there_are_stores() -> None:
    assert {"store-1", "store-1-spans"} <= set(STORES)


def test_every_point_reads_as_it_did(golden: Golden) -> None:
    assert [point.number for point in golden.journal.points()] == sorted(golden.points)
    golden.check()


def test_this_version_goes_on_with_it(golden: Golden) -> None:
    clock = FakeClock()
    numbers = sorted(golden.points)
    done = merge(golden.journal, numbers[-4], numbers[-1], golden.keys, clock=clock)
    assert done.points == 2
    golden.check()
    promote(golden.journal, numbers[2], golden.keys, golden.open_base, clock=clock)
    delete_retired(golden.journal, clock=clock)
    while write_log_page(golden.journal, without=set()) or write_page(
        golden.journal, golden.keys, without=set()
    ):
        pass
    golden.check()
    claim = golden.journal.claim(
        name="web", claimant="c", reason="failover", clock=clock, expected=golden.journal.head()
    )
    assert claim.epoch == 3


def test_it_verifies(golden: Golden) -> None:
    found = scrub(golden.journal, golden.keys, golden.base_of, clock=FakeClock())
    assert not found.damaged
