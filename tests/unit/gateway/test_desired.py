"""Desired state and configuration files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.gateway.common import desired
from secondsite.gateway.common.config import load_config
from secondsite.gateway.common.desired import DesiredDamaged, DesiredState, Protection
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping
from secondsite.model.policies import BandwidthWindow, ReplicationPolicy
from secondsite.transfer.desired import Peer, WantedMapping, WantedReplica

MACHINE = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")
OTHER = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c12")
WINDOW = BandwidthWindow.model_validate({"from": "08:00", "until": "18:00", "bytesPerSecond": 1e6})
CONFIG = """
name = "gateway-a"
site = "a"
state_dir = "/s"
cache_dir = "/c"
vault_key = "/k"
[tls]
cert = "/t/c"
key = "/t/k"
ca = "/t/a"
[peers]
"gateway-b.site-b" = "https://b:9443"
"""


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "desired.json"
    wanted = Protection(
        machine=MACHINE,
        name="shop",
        peer="b",
        disks=(DiskId("vda"),),
        mapping=Mapping(networks={"lan": "lan-b"}),
    )
    DesiredState(path).put(wanted)
    again = DesiredState(path)
    assert again.all() == [wanted]
    again.remove(MACHINE)
    assert DesiredState(path).all() == []


def test_a_file_of_version_1_is_read_and_becomes_version_2(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes((Path(__file__).parents[2] / "golden/data/desired-1.json").read_bytes())
    state = DesiredState(path)
    shop, web = state.all()
    assert (shop.disks, shop.mapping.default_pool, shop.enabled) == (("vda", "vdb"), "replicas", True)
    # every point was application-consistent where that was asked for more often than points come
    assert shop.policy == ReplicationPolicy(
        copy_frequency_seconds=30.0, application_consistent_frequency_seconds=30.0, compression_level=3
    )
    assert (shop.item, shop.revision, shop.paused_by, shop.resync) == ("", 0, "", 0)
    assert (web.enabled, web.policy) == (False, ReplicationPolicy())
    state.remove(web.machine)
    assert json.loads(path.read_bytes())["version"] == 2
    assert DesiredState(path).all() == [shop]


def test_everything_a_server_wants_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    state = DesiredState(path)
    replica = WantedReplica(item="i2", revision=3, machine=OTHER, name="web", source="a", retention="all:1d")
    item = Protection(
        machine=MACHINE,
        name="shop",
        peer="b",
        left_out=(DiskId("vdb"),),
        policy=ReplicationPolicy(compression_level=None, bandwidth=(WINDOW,)),
        item="i1",
        revision=4,
        paused_by="maria",
        resync=2,
        resynced=1,
    )
    taken = state.change(
        lambda now: dataclasses.replace(
            now,
            protections={MACHINE: item},
            replicas={OTHER: replica},
            peers=(Peer(name="c", url="https://c:9443"),),
            server="s1",
            generation=7,
        )
    )
    assert DesiredState(path).everything() == taken
    assert DesiredState(path).replica(OTHER) == replica
    state.remove(MACHINE)
    again = DesiredState(path)
    assert (again.all(), again.everything().ended) == ([], {"i1": 4})
    assert again.update(MACHINE, lambda _: pytest.fail("it is not there")) is None


def test_ended_items_are_remembered_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired, "ENDED_MAX", 2)
    state = DesiredState(tmp_path / "desired.json")
    for name in ("one", "two", "one", "three"):
        state.put(Protection(machine=MACHINE, name="shop", peer="b", item=name, revision=len(name)))
        state.remove(MACHINE)
    assert state.everything().ended == {"one": 3, "three": 5}


def test_a_protection_says_what_it_works_towards() -> None:
    mapping = Mapping(networks={"lan": "lan-b"}, default_pool="fast")
    shown = Protection(
        machine=MACHINE, name="shop", peer="b", item="i1", revision=4, mapping=mapping, resync=1
    ).as_wanted()
    assert (shown.item, shown.revision, shown.resync, shown.enabled) == ("i1", 4, 1, True)
    assert shown.mapping == WantedMapping(networks={"lan": "lan-b"}, default_pool="fast")


@pytest.mark.parametrize("text", ["", "{}", '{"version": 3}', '{"version": 1, "protections": [{}]}', "x"])
def test_a_damaged_file_is_told_and_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "desired.json"
    path.write_text(text)
    with pytest.raises(DesiredDamaged):
        DesiredState(path)
    assert path.read_text() == text


def test_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    config = load_config(path)
    assert config.peers == {"gateway-b.site-b": "https://b:9443"}
    assert config.store is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("site", "sight"), "site"),
        (('name = "gateway-a"', 'name = "Gateway A"'), "name"),
        (('site = "a"', 'site = "a"\ncache_limit_bytes = 5'), "cache_limit_bytes"),
        (("[tls]", "[tls"), "gateway.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG.replace(*change, 1))
    with pytest.raises(InvalidInput) as caught:
        load_config(path)
    assert named in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        load_config(tmp_path / "none.toml")
