"""The sub-block table: what it may say, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secondsite.gateway.source.subblocks import SubBlockTable, Uint64s
from secondsite.model.ids import DiskId, MachineId

MACHINE, DISK = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11"), DiskId("vda")
SIZE = 1000 * 4096


class Made:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "tables" / "vda.table"
        self.voids: list[str] = []
        self.table = self.open()

    def open(self, disk: DiskId = DISK) -> SubBlockTable:
        self.table = SubBlockTable(self.path, MACHINE, disk, on_void=self.voids.append)
        return self.table


@pytest.fixture
def made(tmp_path: Path) -> Made:
    found = Made(tmp_path)
    found.table.void("", size_bytes=SIZE)
    return found


def v(*values: int) -> Uint64s:
    return np.array(values, dtype=np.uint64)


def test_only_a_committed_cycle_makes_blocks_known(made: Made) -> None:
    table = made.table
    log = table.begin()
    assert table.changed(log, 10, v(7, 8)).tolist() == [True, True]
    table.fold(log, epoch=1, point=2)
    assert table.changed(table.begin(), 9, v(5, 7, 9)).tolist() == [True, False, True]


def test_a_later_cycle_sees_earlier_ones_on_their_way_and_dies_with_them(made: Made) -> None:
    table = made.table
    first = table.begin()
    table.changed(first, 0, v(7))
    second = table.begin()
    assert table.changed(second, 0, v(7)).tolist() == [False]
    table.abandon(first)
    assert table.changed(second, 0, v(7)).tolist() == [True], "its log went with the first"
    assert table.changed(table.begin(), 0, v(7)).tolist() == [True]


def test_unknown_is_never_unchanged_and_zero_is_known_only_when_sent(made: Made) -> None:
    table = made.table
    log = table.begin()
    assert table.changed(log, 5, v(1)).tolist() == [True]
    assert table.not_zero(log, 4, 3).tolist() == [True, False, True]
    table.changed(log, 6, v(77))
    assert table.not_zero(log, 6, 1).tolist() == [True]
    assert table.changed(log, 6, v(77)).tolist() == [True], "it was recorded as zeros"


def test_orderly_close_keeps_it_and_anything_else_voids_it(made: Made) -> None:
    log = made.table.begin()
    made.table.changed(log, 0, v(7))
    made.table.fold(log, epoch=1, point=2)
    made.table.close()
    table = made.open()
    assert table.expect(epoch=1, point=2, size_bytes=SIZE)
    assert table.changed(table.begin(), 0, v(7)).tolist() == [False]
    # opened and not closed: a kill
    assert not made.open().expect(epoch=1, point=2, size_bytes=SIZE)
    assert made.voids[-1].startswith("it was not closed in order")


@pytest.mark.parametrize(("epoch", "point", "size"), [(2, 2, SIZE), (1, 3, SIZE), (1, 2, SIZE + 4096)])
def test_a_stamp_that_is_not_the_targets_voids_it(made: Made, epoch: int, point: int, size: int) -> None:
    log = made.table.begin()
    made.table.changed(log, 0, v(7))
    made.table.fold(log, epoch=1, point=2)
    made.table.close()
    table = made.open()
    assert not table.expect(epoch=epoch, point=point, size_bytes=size)
    assert len(made.voids) == 1
    assert table.changed(table.begin(), 0, v(7)).tolist() == [True]


def test_a_torn_header_or_another_disk_is_nothing(made: Made) -> None:
    log = made.table.begin()
    made.table.fold(log, epoch=1, point=2)
    made.table.close()
    assert made.open(DiskId("vdb")).stamp is None
    made.table.close()
    assert made.path.read_bytes()[:8] == bytes(8)


def test_many_cycles_on_their_way_share_logs_and_fold_whole(made: Made) -> None:
    table = made.table
    logs = []
    for number in range(40):
        log = table.begin()
        table.changed(log, number, v(number + 100))
        table.changed(log, 0, v(5000 + number))
        logs.append(log)
    assert len({id(log) for log in logs}) <= 8
    for number, log in enumerate(logs[:-1]):
        table.fold(log, epoch=1, point=number + 2)
    assert table.stamp is None, "the shared log is not whole yet"
    table.fold(logs[-1], epoch=1, point=41)
    assert table.stamp is not None
    log = table.begin()
    assert table.changed(log, 0, v(5039)).tolist() == [False]
    assert not any(table.changed(log, number, v(number + 100)).any() for number in range(1, 40))


def test_abandoning_a_cycle_that_shares_a_log_forgets_everything(made: Made) -> None:
    logs = [made.table.begin() for _ in range(10)]
    made.table.changed(logs[9], 0, v(7))
    made.table.abandon(logs[9])
    assert "shared" in made.voids[-1]
    assert made.table.changed(made.table.begin(), 0, v(7)).tolist() == [True]


def test_abandoning_the_last_cycle_of_a_log_whose_others_are_committed_forgets_everything(made: Made) -> None:
    table = made.table
    logs = [table.begin() for _ in range(9)]
    assert logs[7] is logs[8], "the two share a log"
    table.changed(logs[0], 0, v(7))
    table.changed(logs[7], 0, v(8))
    for number, log in enumerate(logs[:8]):
        table.fold(log, epoch=1, point=number + 2)
    table.abandon(logs[8])
    # the target holds 8: a block that is 7 again must be sent
    assert table.changed(table.begin(), 0, v(7)).tolist() == [True]
    assert "shared" in made.voids[-1]
