"""The names a gateway depends on are looked up before they are needed; nothing here asks a network."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common import resolving
from secondsite.gateway.common.config import ServerSettings
from secondsite.gateway.common.desired import DESIRED, DesiredState
from secondsite.gateway.common.resolving import unresolved
from secondsite.gateway.control.readiness import look
from secondsite.gateway.failover.looks import look_at_names
from secondsite.gateway.uplink.names import hosts_of
from support.members import save_membership
from unit.gateway.test_readiness import configured

CLOCK = SystemClock()
GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def resolve(name: str) -> None:
    if name.endswith(".gone"):
        raise GONE


def test_names_that_do_not_resolve_are_told_and_addresses_are_not_asked_for() -> None:
    asked: list[str] = []

    def noting(name: str) -> None:
        asked.append(name)
        resolve(name)

    hosts = {
        "gateway gateway-b": "b.gone",
        "gateway gateway-c": "192.0.2.7",
        "gateway gateway-d": "2001:db8::7",
        "server": "server.here",
        "standby server https://b.gone": "b.gone",
    }
    assert unresolved(hosts, CLOCK, resolve=noting) == (
        "gateway gateway-b (b.gone): Name or service not known",
        "standby server https://b.gone (b.gone): Name or service not known",
    )
    assert sorted(asked) == ["b.gone", "server.here"], "each once, and no address"


def test_a_dns_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "RESOLVE_SECONDS", 0.05)
    released = threading.Event()
    try:
        [told] = unresolved({"server": "server.here"}, CLOCK, resolve=lambda _name: released.wait(60))
    finally:
        released.set()
    assert told.startswith("server (server.here): no DNS server answered")


@pytest.mark.parametrize(
    ("proxy", "by_the_server"),
    [(None, {"server": "server.here"}), ("http://proxy.here:3128", {"proxy": "proxy.here"})],
)
def test_a_gateway_depends_on_its_peers_its_server_or_the_proxy_before_it(
    tmp_path: Path, proxy: str | None, by_the_server: dict[str, str]
) -> None:
    config = configured(tmp_path).model_copy(
        update={
            "peers": {"gateway-b": "https://b.there:9443", "gateway-c": "https://[2001:db8::7]:9443"},
            "server": ServerSettings(directory=tmp_path),
        }
    )
    desired = DesiredState(config.state_dir / DESIRED)
    peers = {"gateway gateway-b": "b.there", "gateway gateway-c": "2001:db8::7"}
    assert hosts_of(config, desired) == peers, "it is not enrolled"
    save_membership(tmp_path, server="https://server.here", proxy=proxy)
    assert hosts_of(config, desired) == {**peers, **by_the_server}


def test_it_is_a_check_with_its_cause_and_what_to_do(tmp_path: Path) -> None:
    told = ("server (server.gone): Name or service not known",)
    found = look(configured(tmp_path), MemoryFabric(), None, CLOCK, lambda: told)
    [names] = [check for check in found.checks if check.code == "gateway.names"]
    assert not names.ok
    assert names.why == told[0]
    assert "/etc/resolv.conf" in names.fix
    check = look_at_names(told)
    assert (check.passed, check.required) == (False, False), "it is to know: a machine boots without them"
    assert told[0] in check.cause
    assert "/etc/hosts" in check.action
    assert look_at_names(()).passed
