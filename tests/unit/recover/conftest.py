"""A site that keeps a replica."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.recovery_site import Site, make_site
from support.replicas import Replica, make_replica


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return make_replica(tmp_path)


@pytest.fixture
def site(tmp_path: Path, replica: Replica) -> Iterator[Site]:
    site = make_site(tmp_path, replica)
    site.recovery.resume()
    try:
        yield site
    finally:
        site.recovery.close()
        for export in site.exports.all():
            site.exports.end(export.id)
