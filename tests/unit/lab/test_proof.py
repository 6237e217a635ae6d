"""The demo's verdict can be no: damage, a lost acknowledged record and one from after the instant fail it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import msgspec
import pytest
from rich.console import Console

from secondsite.gateway.messages.gateway import Health, ProtectionState, ProtectionStatus
from secondsite.lab import proof
from secondsite.lab.errors import LabProofFailed
from secondsite.lab.machine import Check
from secondsite.lab.report import Figures, print_table
from secondsite.lab.watch import describe
from secondsite.lab.witness import Expectation
from secondsite.model.ids import MachineId

SOUND = Check(True, 1, 100, 40, 0, 0, 0, 0, 0, (96, 96), 0)
EXPECTED = Expectation(last_at_least=99, token_at_most=40)


def test_what_fits_passes() -> None:
    proof.require(SOUND, EXPECTED, 7)


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (msgspec.structs.replace(SOUND, good=False, gaps=1), "damaged or out of order"),
        (msgspec.structs.replace(SOUND, last=98), "record 99 was acknowledged before"),
        (msgspec.structs.replace(SOUND, token=41), "token 41 was sent after"),
    ],
    ids=["damaged", "too old", "too young"],
)
def test_what_does_not_fit_fails(check: Check, why: str) -> None:
    with pytest.raises(LabProofFailed, match=why) as failure:
        proof.require(check, EXPECTED, 7)
    assert "point 7" in str(failure.value)


@dataclass
class Cycle:
    changed: int
    sent: int


def _status(total: Cycle, *, point: int) -> ProtectionStatus:
    return ProtectionStatus(
        machine=MachineId("4f0d3a52-5f1c-4b52-9f60-0d6c3ad5b8f1"),
        name="shop",
        peer="b",
        state=ProtectionState.PROTECTED,
        health=Health.NORMAL,
        copy_frequency_seconds=5,
        last_point=point,
        rpo_seconds=1.25,
        cycle_seconds=0.1,
        changed_bytes=4 << 20,
        sent_bytes=1 << 20,
        total_changed_bytes=total.changed,
        total_sent_bytes=total.sent,
    )


def test_the_table_counts_from_the_first_point_on() -> None:
    figures = Figures(first_copy_bytes=100_000_000, first_copy_seconds=2.0, first_line_seconds=3.0)
    figures.before = _status(Cycle(200 << 20, 100 << 20), point=2)
    figures.note_rpo(None)
    figures.note_rpo(2.0)
    figures.note_rpo(5.0)
    figures.note_cycle(_status(Cycle(208 << 20, 102 << 20), point=4))
    output = io.StringIO()
    print_table(Console(file=output, width=120), figures, 51.0)
    text = output.getvalue()
    assert "50 MB/s" in text
    assert "8.0 MiB : 2.0 MiB = 4.0 : 1" in text
    assert "3.5 s, 5.0 s" in text
    assert "51.0 s" in text


def test_the_live_line_says_points_rpo_changed_and_sent() -> None:
    line = describe(_status(Cycle(0, 0), point=9))
    assert "point 9" in line
    assert "RPO  1.2 s" in line or "RPO  1.3 s" in line
    assert "changed 4.0 MiB, sent 1.0 MiB" in line
    unknown = describe(msgspec.structs.replace(_status(Cycle(0, 0), point=9), rpo_seconds=None))
    assert "RPO unknown" in unknown
