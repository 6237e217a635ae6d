"""Encrypting a guest's disks in place: the alert, and the last clean point reads the old bytes."""

from __future__ import annotations

import random
from pathlib import Path

from secondsite.base.units import KIB, MIB
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.messages.gateway import DismissRequest
from secondsite.gateway.target.signals import SignalsWatch, doubts_of
from secondsite.journal.episodes import read_episodes, verdicts
from secondsite.model.signals import WARM_UP_POINTS
from support.source_rig import Rig


def test_the_last_clean_point_reads_what_was_there_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    watch = SignalsWatch(clock=rig.clock, events=rig.events)
    rig.receiver._on_commit = watch.committed
    text = b"".join(b"%d: a line of a document\n" % i for i in range(400_000))[: 4 * MIB]
    rig.fabric.write(rig.machine, "vda", 0, text)
    try:
        rig.open()
        for number in range(WARM_UP_POINTS + 6):
            have = len(rig.points())
            rig.fabric.write(rig.machine, "vda", 5 * MIB + number * 4 * KIB, text[: 4 * KIB])
            rig.until(lambda have=have: len(rig.points()) > have, "a point")  # type: ignore[misc]
        assert "signals.suspicious" not in rig.codes()
        rig.fabric.write(rig.machine, "vda", 0, random.Random(1).randbytes(4 * MIB))
        rig.until(lambda: "signals.suspicious" in rig.codes(), "the alert")
    finally:
        rig.close()
    journal, points = rig.journal, rig.points()
    clean = choose_point(
        points, "last-clean", machine="shop", episodes=lambda: verdicts(read_episodes(journal))
    )
    assert rig.view(clean.number)["vda"][: 4 * MIB] == text
    doubts = doubts_of(journal, points)
    assert doubts.trust(clean.number) == "LastClean"
    assert doubts.trust(points[-1].number) == "InDoubt"
    assert any(pin.number == clean.number for pin in journal.state().pins)
    watch.dismiss(journal, DismissRequest(note="we did it ourselves"))
    assert doubts_of(journal, points).first is None
    assert not journal.state().pins
