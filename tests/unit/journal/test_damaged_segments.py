"""Views over a store in which whole segments were exchanged or cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from secondsite.journal.errors import ObjectDamaged
from secondsite.journal.keys import KeyRing
from secondsite.journal.view import open_view
from support.machines import SHOP
from support.replicas import Replica, make_replica


def exchange(newest: Path, older: Path) -> None:
    """Somebody who may write the store but has no key puts an older segment in a newer one's place."""
    newest.write_bytes(older.read_bytes())


def cut(newest: Path, _older: Path) -> None:
    newest.write_bytes(newest.read_bytes()[:-200])


def path_of(replica: Replica, point: int) -> Path:
    journal = replica.journal
    ref = next(ref for ref in journal.point(point).segments if ref.disk == "vda")
    return replica.store_path / journal.segment_name(ref)


@pytest.mark.parametrize("damage", [exchange, cut])
def test_a_segment_that_is_not_its_points_is_refused(
    tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    replica = make_replica(tmp_path)
    older, newest = sorted(replica.contents)[-2:]
    damage(path_of(replica, newest), path_of(replica, older))
    keys = KeyRing(replica.journal.store, SHOP, replica.vault)
    with pytest.raises(ObjectDamaged):
        open_view(replica.journal, newest, keys, bases=lambda _: None).disks  # noqa: B018
    view = open_view(replica.journal, older, keys, bases=lambda _: None)
    assert {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()} == {
        disk: bytes(content) for disk, content in replica.contents[older].items()
    }
