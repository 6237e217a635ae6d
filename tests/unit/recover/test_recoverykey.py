"""The recovery key must be proved from an exported copy, outside the store, to a fresh question."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.messages import FileIdentity
from secondsite.gateway.recoverykey import (
    NONCE_SECONDS_MAX,
    RecoveryKeyGuard,
    RecoveryKeyInStore,
    RecoveryKeyNotExported,
    RecoveryKeyNotProved,
)


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
