"""What is looked at every few seconds is looked at every time."""

from __future__ import annotations

import pytest

from secondsite.gateway.uplink import whichserver
from secondsite.server.survival import service


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CALM_SECONDS", "TROUBLE_SECONDS"):
        monkeypatch.setattr(whichserver, name, 0.0)
    monkeypatch.setattr(service, "FORMER_SECONDS", 0.3)
