"""What the encoder measures of what it writes, against a plain count of the same bytes."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from secondsite.base.units import KIB, MIB
from secondsite.gateway.source.encode import DiskTrack, Encoder
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.gateway.source.tally import entropy_of
from secondsite.journal.keys import DiskKey
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.signals import Signals, signals_wrong
from secondsite.transfer.shipping import Shipment

MACHINE = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")
SIZE = 40 * MIB
TEXT = b"".join(b"%d: a line of a log, said user %d\n" % (i, i % 97) for i in range(60_000))


class Source:
    """A disk whose cycles are encoded as a gateway does, each committed."""

    def __init__(self, directory: Path) -> None:
        self.table = SubBlockTable(directory / "t.table", MACHINE, DiskId("vda"), on_void=lambda _: None)
        self.table.void("", size_bytes=SIZE)
        self.key = DiskKey.create()
        self.point = 0

    def cycle(
        self, writes: list[tuple[int, bytes]], *, whole: bool = False, threads: bool = False
    ) -> Signals:
        log = self.table.begin()
        shipment = cast("Shipment", SimpleNamespace(epoch=1, add=lambda *_, **__: None))
        encoder = Encoder(shipment, machine=MACHINE, level=1, wait=True, cancel=threading.Event())
        track = DiskTrack(id=DiskId("vda"), size_bytes=SIZE, key=self.key, table=self.table, log=log)
        try:
            for offset, data in writes:
                for start in range(0, len(data), MIB):
                    encoder.feed(track, offset + start, memoryview(data)[start : start + MIB])
            encoder.flush()
            assert bool(encoder._workers) == threads
        finally:
            encoder.close()
        self.point += 1
        self.table.fold(log, epoch=1, point=self.point, whole=whole)
        found = encoder.tally.signals()
        assert signals_wrong(found) is None
        return found


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def text(length: int, start: int = 0) -> bytes:
    return TEXT[start : start + length]


def test_new_space_and_overwrites_and_zeros_are_told_apart(source: Source) -> None:
    first = source.cycle([(0, text(MIB)), (4 * MIB, noise(MIB))], whole=True)
    assert (first.written_bytes, first.rewritten_bytes, first.hard_bytes) == (2 * MIB, 2 * MIB, MIB)
    assert first.assumed_bytes == 2 * MIB, "what a first copy replaces is not known"

    second = source.cycle(
        [
            (0, text(256 * KIB)),  # the same again
            (256 * KIB, noise(128 * KIB, 2)),  # over text
            (MIB, noise(512 * KIB, 3)),  # new space
            (2 * MIB, text(64 * KIB)),  # new space
            (4 * MIB, bytes(256 * KIB)),  # zeros over data
            (8 * MIB, bytes(MIB)),  # zeros over nothing
        ]
    )
    assert second == Signals(
        written_bytes=(128 + 512 + 64) * KIB,
        zeroed_bytes=256 * KIB,
        rewritten_bytes=128 * KIB,
        packed_bytes=second.packed_bytes,
        hard_bytes=(128 + 512) * KIB,
        scrambled_bytes=128 * KIB,
        entropy=second.entropy,
        rewritten_entropy=second.rewritten_entropy,
    )
    assert (128 + 512) * KIB <= second.packed_bytes <= (128 + 512 + 64) * KIB
    assert second.rewritten_entropy > 7900
    third = source.cycle([(MIB, text(64 * KIB)), (2 * MIB, text(64 * KIB, 5000))])
    assert (third.rewritten_bytes, third.scrambled_bytes) == (128 * KIB, 0)
    assert third.rewritten_entropy < 5000


def test_the_last_sub_block_of_a_disk_and_pieces_of_every_length(source: Source) -> None:
    chance = random.Random(4)
    source.cycle([(0, text(MIB))], whole=True)
    held = set(range(256))
    writes, expected, over = [], 0, 0
    for number in chance.sample(range(0, 2048, 8), 200):
        count = chance.randint(1, 7)
        writes.append((number * 4 * KIB, noise(count * 4 * KIB, number)))
        expected += count
        over += sum(n in held for n in range(number, number + count))
    found = source.cycle(writes)
    assert found.written_bytes == expected * 4 * KIB
    assert found.rewritten_bytes == over * 4 * KIB == found.scrambled_bytes
    assert found.hard_bytes == found.written_bytes


def test_several_threads_count_the_same(source: Source, tmp_path: Path) -> None:
    everything = [
        (offset, noise(MIB, offset) if offset % (2 * MIB) else text(MIB))
        for offset in range(0, 32 * MIB, MIB)
    ]
    found = source.cycle(everything, threads=True)
    assert found.written_bytes == 32 * MIB
    assert found.hard_bytes == 16 * MIB
    assert 16 * MIB < found.packed_bytes < 24 * MIB


def test_after_an_unclean_stop_what_was_there_is_assumed(source: Source) -> None:
    source.cycle([(0, text(MIB))], whole=True)
    assert source.cycle([(4 * MIB, noise(MIB))]).rewritten_bytes == 0
    source.table.void("the gateway was killed")
    found = source.cycle([(8 * MIB, noise(MIB, 2))])
    assert (found.rewritten_bytes, found.assumed_bytes, found.scrambled_bytes) == (MIB, MIB, MIB)


def test_what_is_whole_survives_an_orderly_restart(source: Source, tmp_path: Path) -> None:
    source.cycle([(0, text(MIB))], whole=True)
    source.table.close()
    again = SubBlockTable(tmp_path / "t.table", MACHINE, DiskId("vda"), on_void=lambda _: None)
    assert again.expect(epoch=1, point=1, size_bytes=SIZE)
    assert again.complete
    again.expect(epoch=1, point=9, size_bytes=SIZE)
    assert not again.complete


@pytest.mark.parametrize("data", [noise(200_000), text(200_000), b"a" * 5000, bytes(range(256)) * 4])
def test_entropy_is_shannons(data: bytes) -> None:
    counts = Counter(data)
    exact = -sum(n / len(data) * math.log2(n / len(data)) for n in counts.values())
    histogram = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    assert abs(entropy_of(histogram) / 1000 - exact) < (len(counts) - 1) / len(data) + 0.001


def test_the_sample_speaks_for_the_whole(source: Source) -> None:
    """Pages whose first 512 bytes are zeros, or all alike, are judged by the rest."""
    page = bytes(512) + noise(3584)
    found = source.cycle([(0, b"".join(page[:512] + noise(3584, n) for n in range(1024)))])
    assert found.entropy > 6500
    assert entropy_of(np.zeros(256, dtype=np.int64)) == 0
