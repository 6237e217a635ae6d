"""Taking what a server wants: item by item, revisions only grow, what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from secondsite.gateway.common import wanted as module
from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.common.wanted import take
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.policies import ReplicationPolicy
from secondsite.transfer.desired import Desired, Peer, WantedProtection, WantedReplica
from support.desk import wanted

SHOP = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")
WEB = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c12")
LOCAL = Protection(machine=SHOP, name="shop", peer="gateway-b", policy=ReplicationPolicy())


@pytest.fixture
def state(tmp_path: Path) -> DesiredState:
    return DesiredState(tmp_path / "desired.json")


def give(
    state: DesiredState, generation: int, *protections: WantedProtection, server: str = "s1", **more: object
) -> dict[str, str]:
    document = Desired.model_validate({"generation": generation, "protections": protections, **more})
    refused = take(state, document, server, {}).refused
    again = DesiredState(state._path).everything()
    assert again == state.everything(), "durable"
    return refused


def test_an_item_is_taken_and_its_next_revision(state: DesiredState) -> None:
    assert give(state, 3, wanted(SHOP, 1)) == {}
    assert give(state, 4, wanted(SHOP, 2, leftOut=["vdb"], resync=1)) == {}
    found = state.get(SHOP)
    assert found is not None
    assert (found.revision, found.left_out, found.resync, found.resynced) == (2, ("vdb",), 1, 0)
    assert (state.everything().generation, state.everything().server) == (4, "s1")


def test_an_older_generation_changes_nothing(state: DesiredState) -> None:
    give(state, 5, wanted(SHOP, 2))
    before = state.everything()
    assert give(state, 4, wanted(SHOP, 3), wanted(WEB, 1, item="item-2", name="web")) == {}
    assert state.everything() == before


def test_an_older_revision_is_refused_and_others_are_taken(state: DesiredState) -> None:
    """A server restored from an old backup counts its generations on, and knows old revisions."""
    give(state, 5, wanted(SHOP, 7))
    refused = give(state, 6, wanted(SHOP, 6, leftOut=["vdb"]), wanted(WEB, 1, item="item-2", name="web"))
    assert list(refused) == ["item-1"]
    assert "6 is older than 7" in refused["item-1"]
    found = state.get(SHOP)
    assert found is not None
    assert (found.revision, found.left_out) == (7, ())
    assert state.get(WEB) is not None
    refused = give(state, 7, wanted(SHOP, 7, leftOut=["vdb"]))
    assert "says otherwise" in refused["item-1"]
    assert give(state, 8, wanted(SHOP, 7, name="shop, renamed there")) == {}


def test_what_was_ended_is_not_begun_again_by_an_older_server(state: DesiredState) -> None:
    give(state, 5, wanted(SHOP, 7))
    give(state, 6, wanted(SHOP, 8, enabled=False))
    found = state.get(SHOP)
    assert found is not None
    assert not found.enabled
    assert "being ended" in give(state, 7, wanted(SHOP, 9))["item-1"]
    state.remove(SHOP)
    for revision in (7, 8):
        assert "with which the item was ended" in give(state, 8, wanted(SHOP, revision))["item-1"]
    assert give(state, 9, wanted(SHOP, 8, enabled=False)) == {}
    assert give(state, 10, wanted(SHOP, 9)) == {}
    assert state.get(SHOP) is not None


def test_what_is_not_named_is_left_alone(state: DesiredState) -> None:
    give(state, 1, wanted(SHOP, 1))
    give(state, 2)
    found = state.get(SHOP)
    assert found is not None
    assert found.enabled


def test_a_local_protection_becomes_the_servers_with_all_it_did(state: DesiredState) -> None:
    state.put(msgspec.structs.replace(LOCAL, paused_by="maria", resync=2, resynced=2))
    assert give(state, 1, wanted(SHOP, 4, enabled=False)) != {}, "not this item"
    assert give(state, 2, wanted(SHOP, 4)) == {}
    found = state.get(SHOP)
    assert found is not None
    assert (found.item, found.revision, found.paused_by) == ("item-1", 4, "maria")
    assert (found.resync, found.resynced) == (2, 2)
    other = wanted(SHOP, 9, item="item-2")
    assert "as the item item-1" in give(state, 3, other)["item-2"]


def test_a_pause_here_stays_until_the_server_speaks_of_pausing(state: DesiredState) -> None:
    give(state, 1, wanted(SHOP, 1))
    state.update(SHOP, lambda p: msgspec.structs.replace(p, paused_by="maria"))

    def paused_by() -> str:
        found = state.get(SHOP)
        assert found is not None
        return found.paused_by

    give(state, 2, wanted(SHOP, 2, leftOut=["vdb"]))
    assert paused_by() == "maria"
    give(state, 3, wanted(SHOP, 3, paused=True))
    assert paused_by() == "maria"
    give(state, 4, wanted(SHOP, 4))
    assert paused_by() == ""
    give(state, 5, wanted(SHOP, 5, paused=True))
    assert paused_by() == "the server"


def test_another_peer_is_refused(state: DesiredState) -> None:
    give(state, 1, wanted(SHOP, 1))
    refused = give(state, 2, wanted(SHOP, 2, peer="gateway-c"))
    assert "not moved to gateway-c" in refused["item-1"]
    found = state.get(SHOP)
    assert found is not None
    assert (found.peer, found.revision) == ("gateway-b", 1)


def test_peers_that_are_written_to_stay_known(state: DesiredState) -> None:
    b, c = Peer(name="gateway-b", url="https://b:9443"), Peer(name="gateway-c", url="https://c:9443")
    give(state, 1, wanted(SHOP, 1), peers=[b, c])
    give(state, 2)
    assert state.everything().peers == (b,)


def test_another_server_counts_anew(state: DesiredState) -> None:
    give(state, 50, wanted(SHOP, 7))
    assert give(state, 1, wanted(SHOP, 1, item="other"), server="s2") == {}
    found = state.get(SHOP)
    assert found is not None
    assert (found.item, found.revision, state.everything().generation) == ("other", 1, 1)


def test_replicas_are_kept_with_their_newest_revision(
    state: DesiredState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ITEMS_MAX", 1)

    def replica(machine: MachineId, revision: int, **more: object) -> WantedReplica:
        given = {"item": machine, "name": "x", "source": "a", "retention": "all:1d", "revision": revision}
        return WantedReplica.model_validate({**given, "machine": machine, **more})

    assert give(state, 1, replicas=[replica(SHOP, 3, enabled=False)]) == {}
    assert SHOP in give(state, 2, replicas=[replica(SHOP, 2)])
    found = state.replica(SHOP)
    assert found is not None
    assert (found.revision, found.enabled) == (3, False)
    give(state, 3, replicas=[replica(WEB, 1)])
    assert list(state.everything().replicas) == [WEB], "what is over and unnamed makes room"


def test_disks_keep_their_names(state: DesiredState) -> None:
    give(state, 1, wanted(SHOP, 1, disks=["vda", "vdb"]))
    found = state.get(SHOP)
    assert found is not None
    assert found.disks == (DiskId("vda"), DiskId("vdb"))
    assert found.as_wanted() == wanted(SHOP, 1, disks=["vda", "vdb"])


def test_a_replica_that_is_over_is_forgotten_once_its_machine_is_copied_from_here(
    state: DesiredState,
) -> None:
    """A way back that was begun and taken back: kept, it would refuse the next one."""
    over = {"item": "item-1", "revision": 4, "machine": SHOP, "name": "shop", "source": "gateway-b"}
    over |= {"retention": ReplicationPolicy().retention, "enabled": False}
    give(state, 3, wanted(SHOP, 3))
    give(state, 4, replicas=[over])
    give(state, 5, wanted(WEB, 1, item="item-2", name="web"))
    assert state.replica(SHOP) is not None, "nothing was said about it"
    give(state, 6, wanted(SHOP, 5))
    assert state.replica(SHOP) is None
    give(state, 7, replicas=[{**over, "revision": 6, "enabled": True}])
    give(state, 8, wanted(SHOP, 7))
    assert state.replica(SHOP) is not None, "one that is kept stays as it is"
