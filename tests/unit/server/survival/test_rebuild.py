"""Nothing is left but a store and its key: what it tells, and a server that gateways can enter again."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.gateway.recovery.rescue import StoreEmpty
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.main import Server
from secondsite.transfer.registration import parse_key
from secondsite.up.rebuild import ServerNotNew, plan, rebuild
from support.control import run_command
from support.replicas import SIZES, make_replica
from support.server import cheap_passwords

CLOCK = SystemClock()


def test_a_store_tells_its_machines_and_a_new_server_takes_its_gateways(tmp_path: Path) -> None:
    replica = make_replica(tmp_path, points=3)
    url = f"file://{replica.store_path}"
    before = sorted(path for path in replica.store_path.rglob("*") if path.is_file())
    found = plan([url], replica.key_file)
    assert sorted(path for path in replica.store_path.rglob("*") if path.is_file()) == before
    (machine,) = found.machines
    assert (machine.machine, machine.name, machine.source, machine.points) == (
        replica.journal.machine,
        "shop",
        "a",
        3,
    )
    assert {disk.id: disk.size_bytes for disk in machine.disks} == SIZES
    assert found.gateways == ("a",)
    state = tmp_path / "server"
    config = ServerConfig(state_dir=state, url="https://new.example", listen=Listen(host="127.0.0.1", port=0))
    key_out = tmp_path / "again.key"
    done = rebuild(found, config, vault="Main", key_out=key_out, clock=CLOCK)
    assert (done.vault, done.machines) == ("Main", 1)
    assert key_out.stat().st_mode & 0o777 == 0o600
    key = parse_key(key_out.read_text())
    server = Server(config, passwords=cheap_passwords())
    try:
        services = server.open()
        assert services.identity is not None
        assert key.authority == services.identity.authority.fingerprint
        assert services.audit.verify().entries >= 1
    finally:
        server.stop()
    with pytest.raises(ServerNotNew):  # once: what is in use is not mixed with
        rebuild(found, config, vault="Again", key_out=tmp_path / "other.key", clock=CLOCK)
    assert not (tmp_path / "other.key").exists()


def test_a_damaged_machine_is_told_and_harms_no_other(tmp_path: Path) -> None:
    replica = make_replica(tmp_path, points=1)
    other = replica.store_path / "machines" / "00000000-0000-0000-0000-000000000001" / "log"
    other.mkdir(parents=True)
    (other / f"{1:016d}").write_bytes(b"no record at all")
    found = plan([str(replica.store_path)], replica.key_file)
    assert [bool(one.problem) for one in found.machines] == [True, False]


def test_a_store_without_machines_is_told(tmp_path: Path) -> None:
    replica = make_replica(tmp_path, points=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreEmpty):
        plan([str(tmp_path / "empty")], replica.key_file)


def test_the_command_shows_and_changes_nothing_without_apply(tmp_path: Path) -> None:
    replica = make_replica(tmp_path, points=2)
    words = ("server", "rebuild", "--store", str(replica.store_path), "--key", str(replica.key_file))
    ran = run_command(*words)
    assert ran.code == 0, ran.err
    assert "shop" in ran.out
    assert "nothing was changed" in ran.out
    assert run_command(*words, "--apply").code == 2
