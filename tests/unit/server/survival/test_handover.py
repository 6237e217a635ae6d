"""Handing a server over: what is asked for is gone on with, whatever ends at that moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from secondsite.server.survival import handover as module
from secondsite.server.survival.handover import HandOver, HandOverState
from support.enrolled import enrolled_place
from support.until import until


def _no_note(*_: object) -> None:
    pass


def test_what_is_begun_again_while_it_ends_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread had seen that it was taken back, and was about to end."""
    seen, again = threading.Event(), threading.Event()
    goes_on, tries = HandOver._goes_on, list[bool]()

    def slowly(handover: HandOver) -> bool:
        found = goes_on(handover)
        if not found:
            seen.set()
            again.wait(2)  # who begins again waits for this, or was there before
        return found

    def away(*, final: bool) -> Any:
        tries.append(final)
        raise ConnectionError("no store is in touch")

    monkeypatch.setattr(HandOver, "_goes_on", slowly)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    with enrolled_place(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as place:
        survival = place.services.survival
        assert survival is not None
        assert survival.handover is not None
        monkeypatch.setattr(survival.handover._copies, "make", away)
        survival.handover.begin(_no_note)
        until(lambda: bool(tries), "it tried")
        survival.handover.take_back(_no_note)
        assert seen.wait(60)
        before = len(tries)
        assert survival.handover.begin(_no_note).state is HandOverState.COPYING
        again.set()
        until(lambda: len(tries) > before, "it goes on")
        assert all(tries)
        survival.handover.take_back(_no_note)
