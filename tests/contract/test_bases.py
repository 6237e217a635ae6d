"""One suite for every base: raw files, qcow2 behind its host, and the twin in memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secondsite.base.crash import MARKS
from secondsite.gateway.target.basehost import AFTER_HOST, end_idle
from secondsite.gateway.target.bases import BaseFormat, bases_under
from secondsite.gateway.target.qcow2 import AFTER_RESIZE, Qcow2Base
from secondsite.journal.bases import BaseFailed, BaseImage, RawBase
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.chain import Journal
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import DiskId
from support.bases import gone, wait_gone
from support.machines import SHOP

pytestmark = pytest.mark.timeout(120)

MIB = 1024 * 1024


@dataclass
class Kind:
    """How to make a base and open it again."""

    name: str
    directory: Path
    made: int = 0

    def path(self) -> Path:
        return self.directory / f"{self.made}.{self.name}"

    def create(self, size_bytes: int) -> BaseImage:
        self.made += 1
        if self.name == "raw":
            return RawBase.create(self.path(), size_bytes)
        if self.name == "qcow2":
            return Qcow2Base.create(self.path(), size_bytes, run_directory=self.directory / "run")
        return MemoryBase(size_bytes)

    def open(self, *, read_only: bool = False) -> BaseImage:
        if self.name == "raw":
            return RawBase(self.path(), read_only=read_only)
        return Qcow2Base(self.path(), read_only=read_only, run_directory=self.directory / "run")


@pytest.fixture(params=["raw", "qcow2", "memory"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    yield Kind(request.param, tmp_path)
    wait_gone(tmp_path)


@pytest.fixture(params=["raw", "qcow2"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    yield Kind(request.param, tmp_path)
    wait_gone(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Kind]:
    yield Kind("qcow2", tmp_path)
    wait_gone(tmp_path)


def content(base: BaseImage) -> bytes:
    """All of it, in pieces of an odd size."""
    data = bytearray(base.size_bytes)
    for at in range(0, len(data), 77_777):
        base.read_into(at, memoryview(data)[at : at + 77_777])
    return bytes(data)


# Ends around 512, 4096 and 65536; 65537 leaves a byte in a cluster of its own.
SIZES = st.sampled_from([1, 511, 512, 513, 4095, 4097, 65_536, 65_537, 300_001, 3 * 65_536])
SPOTS = st.floats(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), SPOTS, st.integers(1, 70_000)),
        st.tuples(st.just("zero"), SPOTS, st.integers(1, 200_000)),
        st.tuples(st.just("resize"), SPOTS, SIZES),
        st.tuples(st.just("sync"), SPOTS, st.just(0)),
        st.tuples(st.just("again"), SPOTS, st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=SIZES, steps=STEPS, seed=st.integers(0, 2**32))
def test_it_reads_as_the_bytes_that_were_written(
    kind: Kind, size: int, steps: list[tuple[str, float, int]], seed: int
) -> None:
    chance = random.Random(seed)
    base = kind.create(size)
    model = bytearray(size)
    try:
        identity = base.identity
        for step, spot, amount in steps:
            offset = int(spot * max(0, len(model) - 1))
            length = min(amount, len(model) - offset)
            if step == "write":
                data = chance.randbytes(length)
                base.write(offset, data)
                model[offset : offset + length] = data
            elif step == "zero":
                base.zero(offset, amount)  # may reach past the end
                model[offset : offset + length] = bytes(length)
            elif step == "resize":
                base.resize(amount)
                model = model[:amount] + bytes(max(0, amount - len(model)))
            elif step == "sync":
                base.sync()
            elif kind.name != "memory":
                base.sync()
                base.close()
                base = kind.open()
            assert base.size_bytes == len(model)
        assert base.identity == identity
        assert content(base) == model
        past = bytearray(10)
        base.read_into(max(0, len(model) - 5), memoryview(past))
        assert past == bytes(model[-5:]).ljust(10, b"\0")
        base.sync()
        nothing = bytearray(b"\1" * len(model))
        for start, end in base.data_extents(0, len(model)):
            nothing[start:end] = bytes(end - start)
        assert not any(a and b for a, b in zip(nothing, model, strict=True)), "data outside the extents"
    finally:
        base.close()
    if kind.name == "qcow2":
        wait_gone(kind.directory)
        raw = kind.directory / "expected"
        raw.write_bytes(bytes(model).ljust(-(-len(model) // 512) * 512, b"\0"))
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(kind.path()), str(raw))
        run("qemu-img", "check", "-q", "-f", "qcow2", str(kind.path()))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_sparse_stays_sparse_and_zeroed_room_is_given_back(stored: Kind) -> None:
    base = stored.create(256 * MIB + 1000)
    path = stored.path()
    try:
        assert path.stat().st_blocks * 512 < MIB
        base.write(100 * MIB, os.urandom(8 * MIB))
        base.write(200 * MIB, bytes(8 * MIB) if stored.name == "qcow2" else b"x")
        base.sync()
        full = path.stat().st_blocks * 512
        assert 8 * MIB <= full < 10 * MIB
        found = base.data_extents(90 * MIB, 20 * MIB)
        assert list(found) == [(100 * MIB, 108 * MIB)]
        # not aligned: what is left of the clusters at both ends stays
        base.zero(100 * MIB + 10, 8 * MIB - 20)
        base.sync()
        assert path.stat().st_blocks * 512 < full - 7 * MIB
        assert not any(content_of(base, 100 * MIB + 10, 8 * MIB - 20))
        assert all(base.data_extents(start, 10).total_bytes for start in (100 * MIB, 108 * MIB - 10))
        base.resize(16 * 1024 * MIB)
        base.sync()
        assert path.stat().st_blocks * 512 < 2 * MIB
        assert base.data_extents(8 * 1024 * MIB, 8 * 1024 * MIB).total_bytes == 0
    finally:
        base.close()


def content_of(base: BaseImage, offset: int, length: int) -> bytes:
    data = bytearray(length)
    base.read_into(offset, memoryview(data))
    return bytes(data)


def test_readers_read_on_while_it_is_written_and_resized(stored: Kind) -> None:
    """Blocks nobody writes read the same throughout; those written read as one version or another."""
    block = 64 * 1024
    base = stored.create(64 * block)
    for number in range(0, 64, 2):
        base.write(number * block, bytes([number + 1]) * block)
    base.sync()
    ended = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        reader = stored.open(read_only=True)
        chance = random.Random(4)
        data = memoryview(bytearray(block))
        try:
            while not ended.is_set():
                number = chance.randrange(0, 64, 2)
                reader.read_into(number * block, data)
                if data != bytes([number + 1]) * block:
                    wrong.append(f"block {number} reads {bytes(data[:4])!r}")
        except BaseFailed as error:
            wrong.append(str(error))
        finally:
            reader.close()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(30):
            for number in range(1, 64, 6):
                base.write(number * block, bytes([turn + 1]) * block)
            if turn % 10 == 5:
                base.resize((64 + turn) * block)
            base.sync()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        base.close()
    assert wrong == []


def test_identity_is_random_and_kept(stored: Kind) -> None:
    first = stored.create(5000)
    again = stored.open(read_only=True)
    second = stored.create(5000)
    try:
        assert len(first.identity) == 32
        assert first.identity == again.identity != second.identity
        assert (again.size_bytes, again.format) == (5000, stored.name)
    finally:
        for base in (first, again, second):
            base.close()


def test_a_missing_base_and_a_directory_fail(stored: Kind) -> None:
    for place in (stored.directory / "none", stored.directory):
        with pytest.raises(BaseFailed):
            (RawBase if stored.name == "raw" else Qcow2Base)(place)


# --- qcow2 and its host ---


def test_the_identity_is_inside_the_image_and_survives_a_plain_copy(images: Kind) -> None:
    base = images.create(70_000)
    base.write(0, b"here")
    base.sync()
    identity = base.identity
    base.close()
    wait_gone(images.directory)
    copy = images.directory / "copy.qcow2"
    copy.write_bytes(images.path().read_bytes())
    # QEMU writes the header anew for this, and keeps what it does not know
    run("qemu-img", "bitmap", "--add", str(copy), "backup")
    moved = Qcow2Base(copy, read_only=True, run_directory=images.directory / "run")
    try:
        assert (moved.identity, moved.size_bytes) == (identity, 70_000)
        assert content_of(moved, 0, 4) == b"here"
    finally:
        moved.close()


def test_others_images_and_damaged_headers_are_refused(images: Kind) -> None:
    foreign = images.directory / "foreign.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(foreign), "1M")
    with pytest.raises(BaseFailed, match="none of ours"):
        Qcow2Base(foreign)
    images.create(5000).close()
    good = images.path().read_bytes()
    for damaged in (b"", good[:90], b"raw" + good[3:], good[:100] + b"\xff" * 200 + good[300:]):
        foreign.write_bytes(damaged)
        with pytest.raises(BaseFailed):
            Qcow2Base(foreign)


def test_a_reader_survives_its_host_being_killed(images: Kind) -> None:
    base = images.create(MIB)
    base.write(0, b"kept")
    base.sync()
    base.close()
    reader = Qcow2Base(images.path(), read_only=True, run_directory=images.directory / "run")
    try:
        for _ in range(3):
            assert content_of(reader, 0, 4) == b"kept"
            kill_host(reader)
        assert content_of(reader, 0, 4) == b"kept"
    finally:
        reader.close()


def kill_host(base: Qcow2Base) -> None:
    number = base.host.process()
    assert number is not None
    os.kill(number, signal.SIGKILL)
    gone(base.host)


def as_qcow2(base: BaseImage) -> Qcow2Base:
    assert isinstance(base, Qcow2Base)
    return base


def test_writes_lost_with_the_host_fail_the_sync_and_synced_ones_are_kept(images: Kind) -> None:
    base = as_qcow2(images.create(MIB))
    base.write(0, b"synced")
    base.sync()
    kill_host(base)
    base.write(4096, b"after")  # nothing was lost: a new host takes it
    kill_host(base)
    with pytest.raises(BaseFailed):
        base.sync()
    # it stays so: what was lost does not come back by asking again
    for again in (base.sync, lambda: base.write(0, b"x"), lambda: base.zero(0, 4096)):
        with pytest.raises(BaseFailed, match="not synced"):
            again()
    assert content_of(base, 0, 6) == b"synced"
    base.close()
    fresh = images.open()
    try:
        fresh.write(4096, b"after")
        fresh.sync()
        assert content_of(fresh, 4096, 5) == b"after"
    finally:
        fresh.close()


def test_a_reader_never_opens_it_for_writing_and_a_writer_takes_over(images: Kind) -> None:
    images.create(MIB).close()
    wait_gone(images.directory)
    reader = Qcow2Base(images.path(), read_only=True, run_directory=images.directory / "run")
    before = images.path().read_bytes()
    content_of(reader, 0, 512)
    first = reader.host.process()
    writer = as_qcow2(images.open())
    try:
        assert images.path().read_bytes() == before
        writer.write(0, b"new")
        assert writer.host.process() != first, "the read-only host was replaced"
        assert content_of(reader, 0, 3) == b"new"
        assert reader.host.process() == writer.host.process(), "one host serves both"
        writer.close()
        assert content_of(reader, 0, 3) == b"new"
    finally:
        writer.close()
        reader.close()


def test_many_open_it_at_once_and_one_host_serves_them(images: Kind) -> None:
    base = as_qcow2(images.create(MIB))
    base.write(0, b"one")
    base.sync()
    base.close()
    wait_gone(images.directory)
    seen: set[int | None] = set()
    failed: list[BaseFailed] = []
    all_read = threading.Barrier(6)

    def read() -> None:
        reader = Qcow2Base(images.path(), read_only=True, run_directory=images.directory / "run")
        try:
            assert content_of(reader, 0, 3) == b"one"
            all_read.wait(60)
            seen.add(reader.host.process())
            all_read.wait(60)
        except BaseFailed as error:
            failed.append(error)
        finally:
            reader.close()

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, len(seen)) == ([], 1)


def test_every_mark_of_a_host_is_killed_at() -> None:
    assert {mark for mark in MARKS if mark.startswith("basehost.")} == {AFTER_HOST, AFTER_RESIZE}


@pytest.mark.parametrize("size", [MIB - 70_001, 2 * MIB + 5, 65_536, 4 * MIB])
def test_a_resize_that_is_killed_is_repeated(images: Kind, size: int) -> None:
    content = os.urandom(MIB - 1000)
    base = images.create(len(content))
    base.write(0, content)
    base.sync()
    base.close()
    script = (
        "import sys; from pathlib import Path; from secondsite.gateway.target.qcow2 import Qcow2Base\n"
        "Qcow2Base(Path(sys.argv[1]), run_directory=Path(sys.argv[2])).resize(int(sys.argv[3]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, images.path(), images.directory / "run", str(size)],
        env={**os.environ, "SECONDSITE_CRASH_AT": AFTER_RESIZE},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    again = images.open()
    try:
        if again.size_bytes != size:  # as promotion does
            again.resize(size)
        again.resize(8 * MIB)
        again.sync()
        assert content_of(again, 0, 8 * MIB) == content[:size].ljust(8 * MIB, b"\0")
    finally:
        again.close()


def test_a_host_whose_starter_died_is_ended_by_the_next_sweep(
    images: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.create(MIB).close()
    wait_gone(images.directory)
    script = (
        "import sys; from pathlib import Path; from secondsite.gateway.target.qcow2 import Qcow2Base\n"
        "base = Qcow2Base(Path(sys.argv[1]), read_only=True, run_directory=Path(sys.argv[2]))\n"
        "base.read_into(0, memoryview(bytearray(1)))\n"
    )
    place = images.directory / "run"
    done = subprocess.run(
        [sys.executable, "-c", script, images.path(), place],
        env={**os.environ, "SECONDSITE_CRASH_AT": AFTER_HOST},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    end_idle(place)


def test_why_a_host_does_not_start_is_told(images: Kind) -> None:
    base = images.create(MIB)
    base.close()
    wait_gone(images.directory)
    with images.path().open("r+b") as file:
        file.seek(40)  # the place of the first-level table
        file.write(b"\xff" * 8)
    with pytest.raises(BaseFailed, match="L1 table"):
        content_of(images.open(read_only=True), 0, 1)


def test_no_program_and_a_foreign_directory_are_told(images: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    images.create(MIB).close()
    loose = images.directory / "loose"
    loose.mkdir(mode=0o777)
    loose.chmod(0o777)
    with pytest.raises(BaseFailed, match="this user's alone"):
        Qcow2Base(images.path(), read_only=True, run_directory=loose).read_into(0, memoryview(bytearray(1)))
    monkeypatch.setenv("PATH", str(loose))
    with pytest.raises(BaseFailed, match="cannot be run"):
        Qcow2Base.create(images.directory / "other.qcow2", MIB)


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_what_a_crash_left_goes_and_what_may_be_anothers_stays(
    base_format: BaseFormat, tmp_path: Path
) -> None:
    """A disk's identifier may hold dots, so that another's bases begin as this one's."""
    journal = Journal(MemoryStore(), SHOP, None)
    opener = bases_under(tmp_path, base_format)(journal)
    left = opener(DiskId("vda"), MIB, None)
    others = opener(DiskId("vda.0123abcd"), MIB, None)
    written = opener(DiskId("vda"), MIB, None)
    written.write(0, b"not empty")
    written.sync()
    for base in (left, others, written):
        base.close()
    wait_gone(tmp_path)
    opener(DiskId("vda"), MIB, None).close()
    assert not Path(left.locator).exists()
    assert Path(others.locator).exists()
    assert Path(written.locator).exists()
    wait_gone(tmp_path)
