"""A server's identity services on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from secondsite.server.identity.service import Identity
from secondsite.transfer.registration import RegistrationKey
from support.identity import URL, open_identity


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def identity(database: Database, tmp_path: Path, clock: FakeClock) -> Identity:
    return open_identity(database, tmp_path, clock)


@pytest.fixture
def key(identity: Identity) -> RegistrationKey:
    """A registration key of the vault "North"."""
    identity.vaults.create("North")
    made, _ = identity.keys.create("North", url=URL, by="maria")
    return made
