"""What a gateway finds of its own place, tried: directories, store, certificate, libvirt's driver."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.fabrics.libvirt import readiness as host
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.control.readiness import look
from secondsite.journal.store import ObjectStore, StoreUnavailable
from secondsite.journal.stores import open_store
from secondsite.model.readiness import Check
from support.transfer import Certificates, Events

CLOCK = SystemClock()


def configured(directory: Path) -> GatewayConfig:
    files = Certificates(directory).of("gateway-a")
    for name in ("state", "cache", "store", "bases"):
        (directory / name).mkdir()
    return GatewayConfig.model_validate(
        {
            "name": "gateway-a",
            "site": "a",
            "state_dir": directory / "state",
            "cache_dir": directory / "cache",
            "store": f"file://{directory}/store",
            "base_dir": directory / "bases",
            "vault_key": directory / "key",
            "tls": {"cert": files.certificate, "key": files.key, "ca": files.authority},
        }
    )


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    return configured(tmp_path)


@pytest.fixture
def store(config: GatewayConfig) -> Iterator[ObjectStore]:
    assert config.store is not None
    opened = open_store(
        config.store, staging=config.cache_dir / "staging", credentials=None, lock_days=0, clock=CLOCK
    )
    yield opened
    opened.close()


def missing(checks: tuple[Check, ...] | list[Check]) -> list[str]:
    for check in checks:
        assert check.ok is not bool(check.why), check
        assert check.ok is not bool(check.fix), check
    return [check.code for check in checks if not check.ok]


def test_a_place_in_order_leaves_nothing_behind(config: GatewayConfig, store: ObjectStore) -> None:
    before = sorted(config.state_dir.parent.rglob("*"))
    found = look(config, MemoryFabric(), store, CLOCK)
    assert missing(found.checks) == []
    assert {"gateway.state", "store.write", "store.bases", "memory.define"} <= {
        one.code for one in found.checks
    }
    assert [path for path in sorted(config.state_dir.parent.rglob("*")) if path not in before] == []


def test_each_thing_that_is_missing_is_named(
    config: GatewayConfig, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as for a user that may not: root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != config.base_dir)
    late = FakeClock(CLOCK.utc() + dt.timedelta(days=29))

    def refuse(key: str, _data: bytes) -> None:
        raise StoreUnavailable(key=key, store=store.url, why="403 Forbidden")

    monkeypatch.setattr(store, "put", refuse)
    found = look(config, None, store, late)
    assert missing(found.checks) == ["gateway.certificate", "store.write", "store.bases"]
    by_code = {check.code: check for check in found.checks}
    assert "403 Forbidden" in by_code["store.write"].why
    assert "right to put, read and delete objects" in by_code["store.write"].ask
    assert f"write access to {config.base_dir}" in by_code["store.bases"].ask


@pytest.fixture
def connection() -> Iterator[Any]:
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


@pytest.fixture
def here(tmp_path: Path) -> Places:
    made = Places(tmp_path / "scratch", tmp_path / "sockets")
    made.scratch_dir.mkdir()
    made.backup_dir.mkdir(parents=True)
    return made


def test_libvirt_lets_us_define_and_keeps_nothing(connection: Any, here: Places) -> None:
    left = connection.defineXML(host._probe(connection))  # as a killed check leaves it
    assert left.name().startswith(host.PROBE_PREFIX)
    by_code = {check.code: check for check in host.checks(connection, here)}
    assert by_code["libvirt.define"].ok
    assert by_code["libvirt.backup"].ok
    assert [name for name in connection.listDefinedDomains() if name.startswith("secondsite")] == []
    # the test driver's pool names a directory that is not there
    assert "is no directory on the gateway's machine" in by_code["libvirt.pool-writable"].why


def test_a_read_only_account_is_told_what_to_ask_for(here: Places) -> None:
    connection = libvirt.openReadOnly("test:///default")
    [refused] = [check for check in host.checks(connection, here) if check.code == "libvirt.define"]
    connection.close()
    assert not refused.ok
    assert "group libvirt, or a polkit rule" in refused.ask
    assert "Give the gateway's user that right" in refused.fix


def test_scratch_on_a_network_file_system_is_named(
    connection: Any, here: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secondsite.fabrics.libvirt import space

    there = space.FileSystem(device=1, type="nfs4", source="nas:/scratch")
    monkeypatch.setattr(space, "file_system_of", lambda _path: there)
    [scratch] = [check for check in host.checks(connection, here) if check.code == "libvirt.scratch"]
    assert "is on a network file system (nfs4)" in scratch.why


def test_a_libvirt_that_does_not_answer(here: Places) -> None:
    fabric = LibvirtFabric(
        "qemu+unix:///system?socket=/nowhere/libvirt-sock",
        scratch_dir=here.scratch_dir,
        socket_dir=here.socket_dir,
        guard=None,
        clock=CLOCK,
        events=Events(),
    )
    assert missing(list(fabric.readiness())) == ["libvirt.connect"]
    fabric.close()
