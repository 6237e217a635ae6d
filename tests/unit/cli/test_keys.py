"""``secondsite key``: files made, shown, renewed, given back; what a store needs; a rotation to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.keys import rotation as keyrotation
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.keys.rotation import KeyRotation
from secondsite.journal.keys import VaultKey
from support.control import Events, Ran, run_command
from support.replicas import make_replica


def key(*arguments: str | Path, gateway: Path | None = None) -> Ran:
    return run_command("key", *arguments, gateway=gateway)


def test_files_are_renewed_and_given_back(tmp_path: Path) -> None:
    first, second, old = tmp_path / "1.key", tmp_path / "2.key", tmp_path / "old.key"
    identity = key("create", first, "--json").json["keyId"]
    made = key("renew", first, second, "--json").json
    assert (made["generation"], made["retired"]) == (2, identity)
    assert second.stat().st_mode & 0o777 == 0o600
    again = key("renew", first, second)
    assert again.code == 4
    assert "exists" in again.err
    shown = key("show", second, "--json").json
    assert [r["keyId"] for r in shown["retired"]] == [identity]
    assert f"it opens what was sealed with {identity}" in key("show", second).out
    unknown = key("retired", second, made["keyId"], old)
    assert unknown.code == 3
    assert f"it holds {identity}" in unknown.err
    assert key("retired", second, identity, old).code == 0
    assert old.read_text() == first.read_text()
    text = second.read_text()
    second.write_text(text.replace("generation: 2", "generation: 3"))
    damaged = key("show", second)
    assert damaged.code == 4
    assert "the checksum does not fit" in damaged.err


def test_a_store_says_which_keys_it_needs_without_any(tmp_path: Path) -> None:
    replica = make_replica(tmp_path)
    store = f"file://{replica.store_path}"
    rows = key("show", "--store", store, "--json").json
    assert [(row["keyId"], row["state"], row["opens"]) for row in rows] == [(replica.vault.id, False, None)]
    assert rows[0]["records"] >= 3
    other = tmp_path / "other.key"
    VaultKey.create().save(other)
    assert key("show", other, "--store", store).out.rstrip().endswith("NO")
    assert key("show", replica.key_file, "--store", store).out.rstrip().endswith("yes")


def test_a_rotation_is_carried_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyrotation, "PASS_SECONDS", 0.1)
    monkeypatch.setattr(keyrotation, "ACTIVE", keyrotation.ACTIVE * 0)
    replica = make_replica(tmp_path)
    socket, clock = tmp_path / "c.sock", SystemClock()
    copy, own = tmp_path / "copy.key", tmp_path / "own.key"
    (tmp_path / "state").mkdir(exist_ok=True)

    def run(vault: VaultKey, *lines: tuple[str | Path, ...]) -> list[Ran]:
        """Each line typed at a gateway with that key, which is started and stopped."""
        guard = RecoveryKeyGuard(vault, own_file=own, store_root=replica.store_path, clock=clock)
        events = Events()
        rotation = KeyRotation(
            vault,
            replica.journal.store,
            guard=guard,
            name="b",
            state_dir=tmp_path / "state",
            clock=clock,
            events=events,
        )
        rotation.start()
        services = ControlServices(
            name="b", site="b", clock=clock, events=events, recovery_key=guard, key_rotation=rotation
        )
        server = serve_control(services, socket)
        try:
            return [key(*line, gateway=socket) for line in lines]
        finally:
            server.stop()
            rotation.close()

    never, shown = run(replica.vault, ("rotate",), ("show",))
    assert never.code == 4
    assert "No rotation is under way: gateway b" in never.err
    assert "it was never rotated" in shown.out
    new = replica.vault.renew("2026-01-01T00:00:00+00:00")
    new.save(copy)
    new.save(own)
    unproved, wrong, theirs, done, after = run(
        new,
        ("rotate",),
        ("rotate", "--recovery-key-file", replica.key_file),
        ("rotate", "--recovery-key-file", own),
        ("rotate", "--recovery-key-file", copy, "--json"),
        ("show",),
    )
    assert unproved.code == 4
    assert "is kept elsewhere is not proved" in unproved.err
    assert "rotation, step 2 of 3" in unproved.err
    assert "the gateway seals with key" in wrong.err
    assert "is the gateway's own copy" in theirs.err
    assert (done.json["phase"], done.json["machinesTotal"]) == ("Finished", 1)
    assert "its rotation is finished" in after.out
    assert replica.vault.id in after.out
    rows = key("show", copy, "--store", f"file://{replica.store_path}", "--json").json
    assert {(row["keyId"], row["state"], row["wrappedKeys"] > 0) for row in rows} == {
        (new.id, True, True),
        (replica.vault.id, False, False),
    }


def test_a_disk_needs_a_machine() -> None:
    wrong = key("rotate", "--disk", "vda")
    assert wrong.code == 2
    assert "it belongs to --data" in wrong.err
