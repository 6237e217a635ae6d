"""The guest's workload and checker on this machine: the checker must see every planted fault."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secondsite.lab import processes
from secondsite.lab.machine import Check, read_checks

RECORD = 4096
SLOTS = 64
FRONT = 8  # blocks of a disk before its ring


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's own program, built for this machine with every warning an error."""
    built = tmp_path_factory.mktemp("workload") / "workload"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    source = Path(processes.__file__).with_name("workload.c")
    subprocess.run(["gcc", *options, "-o", str(built), str(source)], check=True)
    return built


class Disks:
    """Two files that stand for disks, and the files in their file systems."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.disks = [directory / "disk0", directory / "disk1"]
        self.lines = [directory / "lines0", directory / "lines1"]
        for disk in self.disks:
            disk.write_bytes(bytes((FRONT + SLOTS) * RECORD))

    def write_until(self, last: int) -> None:
        """Let the workload write until record `last`, then kill it."""
        port = self.directory / "port"
        port.unlink(missing_ok=True)
        os.mkfifo(port)
        command: list[str | Path] = [self.program, "run", *self.disks, str(SLOTS), "500", port, *self.lines]
        writer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with port.open("r+b", buffering=0) as channel:
                channel.write(b"T 7\n")
                processes.wait_until(
                    lambda: self.check().last >= last, what="records", root=self.directory, seconds=30
                )
        finally:
            writer.kill()
            writer.wait()

    def check(self) -> Check:
        console = self.directory / "console"
        command: list[str | Path] = [self.program, "check", *self.disks, str(SLOTS), *self.lines]
        with console.open("wb") as output:
            subprocess.run(command, stdout=output, check=False)
        return read_checks(console)[-1]

    def slot(self, disk: int, record: int) -> bytes:
        """A record's block."""
        with self.disks[disk].open("rb") as file:
            file.seek((FRONT + record % SLOTS) * RECORD)
            return file.read(RECORD)

    def overwrite(self, disk: int, record: int, block: bytes) -> None:
        """Put something else into a record's slot."""
        with self.disks[disk].open("r+b") as file:
            file.seek((FRONT + record % SLOTS) * RECORD)
            file.write(block)


@pytest.fixture
def disks(program: Path) -> Iterator[Disks]:
    # not tmp_path: the workload writes past the page cache, which a tmpfs may refuse
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Disks(program, Path(directory))


def test_nothing_written_is_nothing_found(disks: Disks) -> None:
    assert disks.check() == Check(True, 0, 0, 0, 0, 0, 0, 0, 0, (0, 0), 0)


@pytest.mark.parametrize("last", [20, 3 * SLOTS])
def test_what_was_written_is_right_also_after_kills_and_round_the_ring(disks: Disks, last: int) -> None:
    for upto in (last // 3, last // 2, last):
        disks.write_until(upto)
        check = disks.check()
        assert check.good, check
        assert check.last >= upto
        assert check.ahead in (0, 1)
    assert check.token == 7
    assert check.first == max(1, check.last - SLOTS + 1)


Fault = Callable[[Disks, int], None]


def _lost_on_one_disk(disks: Disks, last: int) -> None:
    for record in range(last - 2, last + 2):  # one more may be on disk 0 already
        disks.overwrite(1, record, bytes(RECORD))


def _old_block_back(disks: Disks, last: int) -> None:
    disks.overwrite(0, last - 5, disks.slot(0, last - 6))


def _hole(disks: Disks, last: int) -> None:
    disks.overwrite(1, last - 9, bytes(RECORD))


def _torn(disks: Disks, last: int) -> None:
    disks.overwrite(0, last - 3, disks.slot(0, last - 3)[:2048] + bytes(2048))


def _one_bit(disks: Disks, last: int) -> None:
    block = bytearray(disks.slot(1, last - 4))
    block[1000] ^= 1
    disks.overwrite(1, last - 4, bytes(block))


def _line_lost(disks: Disks, _last: int) -> None:
    lines = disks.lines[0].read_text().splitlines(keepends=True)
    disks.lines[0].write_text("".join(lines[:2] + lines[3:]))


def _lines_older_than_records(disks: Disks, _last: int) -> None:
    lines = disks.lines[1].read_text().splitlines(keepends=True)
    disks.lines[1].write_text("".join(lines[:-2]))


FAULTS: list[Fault] = [
    _lost_on_one_disk,
    _old_block_back,
    _hole,
    _torn,
    _one_bit,
    _line_lost,
    _lines_older_than_records,
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__.strip("_") for fault in FAULTS])
def test_a_planted_fault_is_seen(disks: Disks, fault: Fault) -> None:
    disks.write_until(50)
    check = disks.check()
    assert check.good
    fault(disks, check.last)
    assert not disks.check().good


def test_both_disks_rolled_back_are_consistent_but_miss_what_the_witness_saw(disks: Disks) -> None:
    """An old point looks sound by itself: only the acknowledgements outside tell that it is too old."""
    disks.write_until(40)
    old = [disk.read_bytes() for disk in disks.disks], [lines.read_bytes() for lines in disks.lines]
    last = disks.check().last
    disks.write_until(last + 20)
    assert disks.check().last > last
    for path, data in zip([*disks.disks, *disks.lines], [*old[0], *old[1]], strict=True):
        path.write_bytes(data)
    check = disks.check()
    assert check.good
    assert check.last == last


def test_wrong_words_are_refused(program: Path) -> None:
    assert subprocess.run([program, "dance"], capture_output=True, check=False).returncode == 2
    absent = subprocess.run([program, "check", "/nowhere", "/nowhere", "8"], capture_output=True, check=False)
    assert absent.returncode == 2
    assert b"cannot use /nowhere" in absent.stdout
