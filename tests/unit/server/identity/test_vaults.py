"""Vaults: made, renamed, refused while they are needed."""

from __future__ import annotations

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput
from secondsite.server.identity.errors import GatewayUnknown, VaultInUse, VaultNameTaken, VaultUnknown
from secondsite.server.identity.service import Identity
from secondsite.transfer.registration import RegistrationKey
from support.identity import URL, NewGateway


def test_a_vault_is_active_at_once_and_found_by_either_name(identity: Identity, clock: FakeClock) -> None:
    made = identity.vaults.create("Recovery North 北", description="machines of the north")
    assert (made.state, made.friendly_name, made.gateways) == ("Active", "Recovery North 北", 0)
    assert made.created_at == clock.utc()
    assert identity.vaults.get(made.id) == identity.vaults.get("recovery north 北") == made
    assert identity.vaults.all() == [made]


def test_names_differ_by_more_than_case(identity: Identity) -> None:
    identity.vaults.create("North")
    other = identity.vaults.create("South")
    with pytest.raises(VaultNameTaken):
        identity.vaults.create("NORTH ")
    with pytest.raises(VaultNameTaken):
        identity.vaults.change(other.id, name="north")
    assert [vault.friendly_name for vault in identity.vaults.all()] == ["North", "South"]


def test_a_vault_is_renamed_also_to_its_own_name_written_otherwise(identity: Identity) -> None:
    made = identity.vaults.create("north")
    assert identity.vaults.change("north", name="North", description="x").friendly_name == "North"
    assert identity.vaults.get(made.id).description == "x"
    with pytest.raises(VaultUnknown):
        identity.vaults.change("south", name="x")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0b", "x" * 101, "a\u202eb", "\ud800", "a/b", "*"])
def test_names_that_lie_or_are_none_are_refused(identity: Identity, name: str) -> None:
    with pytest.raises(InvalidInput):
        identity.vaults.create(name)


def test_an_empty_vault_is_deleted_with_its_keys(identity: Identity, key: RegistrationKey) -> None:
    identity.vaults.delete("North")
    with pytest.raises(VaultUnknown):
        identity.vaults.get("North")
    with pytest.raises(VaultUnknown):
        identity.keys.of_vault("North")


def test_a_vault_with_gateways_is_kept_unless_told(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    NewGateway(identity).enrol(key, clock)
    with pytest.raises(VaultInUse, match="1 gateway"):
        identity.vaults.delete("North")
    assert identity.gateways.get("gateway-a").vault == "North"
    identity.vaults.delete("North", also=identity.gateways.empty_vault)
    with pytest.raises(GatewayUnknown):
        identity.gateways.get("gateway-a")


def test_another_areas_things_keep_it_even_when_told(identity: Identity, key: RegistrationKey) -> None:
    identity.vaults.watch(lambda _connection, _vault: "3 protected items")
    with pytest.raises(VaultInUse, match="3 protected items"):
        identity.vaults.delete("North", also=identity.gateways.empty_vault)
    assert identity.keys.of_vault("North")


def test_a_key_is_of_a_vault_that_is_there(identity: Identity) -> None:
    with pytest.raises(VaultUnknown):
        identity.keys.create("nowhere", url=URL, by="maria")
