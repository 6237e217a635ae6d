"""Desired state and configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.gateway.config import load_config
from secondsite.gateway.desired import DesiredDamaged, DesiredState, Protection
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping

MACHINE = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")
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


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', '{"version": 1, "protections": [{}]}', "x"])
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
