"""A machine that was made after its site was last read is found by a command that names it."""

from __future__ import annotations

import pytest

from secondsite.cli.server.site import machines_called
from secondsite.client import vaults
from secondsite.client.messages import Thing
from secondsite.client.vaults import Provider
from secondsite.gateway.common.enrolerrors import ServerUnreachable


def provider(name: str, connection: str = "Connected") -> Provider:
    fields: dict[str, object] = dict.fromkeys(Provider.__struct_fields__, "")
    return Provider(**(fields | {"name": name, "vault_id": "v", "connection_status": connection}))  # type: ignore[arg-type]


def thing(name: str, of: str) -> Thing:
    fields: dict[str, object] = dict.fromkeys(Thing.__struct_fields__, "")
    return Thing(**(fields | {"id": f"id of {name}", "name": name, "provider": of}))  # type: ignore[arg-type]


class Sites:
    """In place of a client: `new` becomes known when the site of its gateway is read."""

    def __init__(self, known: list[Thing], new: list[Thing]) -> None:
        self.known, self.new = known, new
        self.read: list[str] = []

    def things(self, kind: str, *, provider: str | None = None) -> list[Thing]:
        assert kind == "machines"
        return [one for one in self.known if provider in (None, one.provider)]

    def read_site(self, vault: str, name: str) -> None:
        assert vault == "v"
        self.read.append(name)
        if name == "gateway-silent":
            raise ServerUnreachable(server="the gateway", why="it does not answer")
        self.known += [one for one in self.new if one.provider == name]


@pytest.fixture(autouse=True)
def _providers(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [provider("gateway-silent"), provider("gateway-a"), provider("gateway-off", "Disconnected")]
    monkeypatch.setattr(vaults, "providers", lambda _server: iter(names))


def test_it_is_read_where_it_can_be_and_only_when_nothing_is_known() -> None:
    sites = Sites([], [thing("shop", "gateway-a")])
    found = machines_called(sites, "shop")  # type: ignore[arg-type]
    assert [one.provider for one in found] == ["gateway-a"]
    assert sites.read == ["gateway-silent", "gateway-a"]
    assert machines_called(sites, "id of shop", "gateway-a") == found  # type: ignore[arg-type]
    assert len(sites.read) == 2


def test_only_the_site_that_is_named_is_read() -> None:
    sites = Sites([thing("shop", "gateway-b")], [])
    assert machines_called(sites, "shop", "gateway-a") == []  # type: ignore[arg-type]
    assert sites.read == ["gateway-a"]
