"""The recovery key must be proved from an exported copy, outside the store, to a fresh question."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.common.proofs import RECORD, KeyProofs, RecoveryKeyNeeded, host_id
from secondsite.gateway.keys.recoverykey import (
    NONCE_SECONDS_MAX,
    RecoveryKeyGuard,
    RecoveryKeyInStore,
    RecoveryKeyNotExported,
    RecoveryKeyNotProved,
)
from secondsite.gateway.messages.gateway import FileIdentity


class Key:
    def __init__(self, secret: bytes = b"right") -> None:
        self.id = "11" * 16
        self._secret = secret

    def prove(self, challenge: bytes) -> bytes:
        return hmac.new(self._secret, challenge, hashlib.sha256).digest()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.key"
    path.write_text("the gateway's copy")
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy.key"
    path.write_text("the exported copy")
    return path


@pytest.fixture
def guard(clock: FakeClock, own: Path, tmp_path: Path) -> RecoveryKeyGuard:
    (tmp_path / "store").mkdir()
    return RecoveryKeyGuard(Key(), own_file=own, store_root=tmp_path / "store", clock=clock)


def identity(path: Path) -> FileIdentity:
    status = path.stat()
    return FileIdentity(path=str(path), device=status.st_dev, inode=status.st_ino)


def answer(nonce: str, key: Key | None = None) -> str:
    return (key or Key()).prove(bytes.fromhex(nonce)).hex()


def test_an_exported_copy_is_accepted_once(guard: RecoveryKeyGuard, copy: Path) -> None:
    nonce = guard.challenge().nonce
    guard.check(nonce, answer(nonce), identity(copy))
    with pytest.raises(RecoveryKeyNotProved):
        guard.check(nonce, answer(nonce), identity(copy))


def test_questions_differ(guard: RecoveryKeyGuard) -> None:
    assert guard.challenge().nonce != guard.challenge().nonce


def test_another_vaults_key_is_refused(guard: RecoveryKeyGuard, copy: Path) -> None:
    nonce = guard.challenge().nonce
    with pytest.raises(RecoveryKeyNotProved) as caught:
        guard.check(nonce, answer(nonce, Key(b"wrong")), identity(copy))
    assert str(caught.value) == (f"The proof was refused: {copy} does not hold the recovery key {'11' * 16}.")


def test_a_question_of_our_own_making_is_refused(guard: RecoveryKeyGuard, copy: Path) -> None:
    with pytest.raises(RecoveryKeyNotProved):
        guard.check("ab" * 32, answer("ab" * 32), identity(copy))


def test_a_question_grows_old(guard: RecoveryKeyGuard, copy: Path, clock: FakeClock) -> None:
    nonce = guard.challenge().nonce
    clock.advance(NONCE_SECONDS_MAX + 1)
    with pytest.raises(RecoveryKeyNotProved):
        guard.check(nonce, answer(nonce), identity(copy))


def test_the_gateways_own_file_is_no_export_whatever_its_name(
    guard: RecoveryKeyGuard, own: Path, tmp_path: Path
) -> None:
    link = tmp_path / "looks-like-a-copy.key"
    link.hardlink_to(own)
    nonce = guard.challenge().nonce
    with pytest.raises(RecoveryKeyNotExported):
        guard.check(nonce, answer(nonce), identity(link))


def test_a_key_inside_the_store_is_refused_also_through_a_link(
    guard: RecoveryKeyGuard, tmp_path: Path
) -> None:
    inside = tmp_path / "store" / "vault.key"
    inside.write_text("beside what it opens")
    (tmp_path / "outside").symlink_to(tmp_path / "store")
    nonce = guard.challenge().nonce
    with pytest.raises(RecoveryKeyInStore):
        guard.check(nonce, answer(nonce), identity(tmp_path / "outside" / "vault.key"))


def test_many_questions_do_not_pile_up_and_the_newest_still_counts(
    guard: RecoveryKeyGuard, copy: Path
) -> None:
    first = guard.challenge().nonce
    for _ in range(100):
        last = guard.challenge().nonce
    guard.check(last, answer(last), identity(copy))
    with pytest.raises(RecoveryKeyNotProved):
        guard.check(first, answer(first), identity(copy))


def keeping(tmp_path: Path, clock: FakeClock, key: Key, *, host: str = "") -> RecoveryKeyGuard:
    return RecoveryKeyGuard(
        key,
        own_file=tmp_path / "own.key",
        store_root=tmp_path / "store",
        clock=clock,
        name="gateway-a",
        proofs=KeyProofs(tmp_path / RECORD, clock),
        host=host,
    )


def test_a_proof_counts_once_for_all_and_for_its_key_alone(
    tmp_path: Path, own: Path, copy: Path, clock: FakeClock
) -> None:
    guard = keeping(tmp_path, clock, Key())
    with pytest.raises(RecoveryKeyNeeded, match="gateway-a"):
        guard.require_proved()
    nonce = guard.challenge().nonce
    with pytest.raises(RecoveryKeyNotExported):
        guard.check(nonce, answer(nonce), identity(own), by="maria")
    assert not guard.state().proved
    nonce = guard.challenge().nonce
    guard.check(nonce, answer(nonce), identity(copy), by="maria")
    again = keeping(tmp_path, clock, Key())  # a restart
    again.require_proved()
    assert (again.state().proved_by, again.state().proved_at) == (
        "maria",
        clock.utc().isoformat(timespec="seconds"),
    )
    rotated = Key(b"new")
    rotated.id = "22" * 16
    with pytest.raises(RecoveryKeyNeeded):
        keeping(tmp_path, clock, rotated).require_proved()
    (tmp_path / RECORD).write_bytes(b"{}")
    with pytest.raises(RecoveryKeyNeeded):
        keeping(tmp_path, clock, Key()).require_proved()


def test_a_file_of_another_machine_is_not_the_gateways_own(
    tmp_path: Path, own: Path, clock: FakeClock
) -> None:
    """Its device and inode are that machine's, and may be the very numbers of ours."""
    guard = keeping(tmp_path, clock, Key(), host="ours")
    there = msgspec.structs.replace(identity(own), host="theirs")
    nonce = guard.challenge().nonce
    guard.check(nonce, answer(nonce), there)
    here = msgspec.structs.replace(identity(own), host="ours")
    nonce = guard.challenge().nonce
    with pytest.raises(RecoveryKeyNotExported):
        guard.check(nonce, answer(nonce), here)


def test_a_machine_is_told_from_others_without_its_id(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    assert host_id(path) == ""
    path.write_text("b5b6a0e0c8f64f0f8b0b1d1c7b0e9a11\n")
    first = host_id(path)
    assert len(first) == 32
    assert first != "b5b6a0e0c8f64f0f8b0b1d1c7b0e9a11"
    path.write_text("b5b6a0e0c8f64f0f8b0b1d1c7b0e9a12\n")
    assert host_id(path) != first
