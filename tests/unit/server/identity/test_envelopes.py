"""Secrets at rest: bound to their place, and useless without the master key's file."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from secondsite.server.identity import envelopes
from secondsite.server.identity.envelopes import (
    EnvelopeUnopened,
    MasterKey,
    MasterKeyMissing,
    MasterKeyUnusable,
    Place,
    open_master_key,
)

PLACE = Place("authorities", "1", "key_envelope")
MASTER = MasterKey(bytes(range(32)))


def test_an_envelope_opens_where_it_was_sealed() -> None:
    assert MASTER.open(PLACE, MASTER.seal(PLACE, b"secret")) == b"secret"


def test_two_envelopes_of_one_secret_differ() -> None:
    assert MASTER.seal(PLACE, b"secret") != MASTER.seal(PLACE, b"secret")


@pytest.mark.parametrize(
    "other",
    [
        Place("authorities", "2", "key_envelope"),
        Place("authorities", "1", "certificate"),
        Place("users", "1", "key_envelope"),
        # the same characters, cut elsewhere
        Place("authorities1", "", "key_envelope"),
    ],
)
def test_it_opens_nowhere_else(other: Place) -> None:
    with pytest.raises(EnvelopeUnopened, match="belongs elsewhere"):
        MASTER.open(other, MASTER.seal(PLACE, b"secret"))


def test_every_byte_of_it_counts() -> None:
    sealed = MASTER.seal(PLACE, b"secret")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(EnvelopeUnopened):
            MASTER.open(PLACE, bytes(changed))


def test_another_master_key_is_named() -> None:
    other = MasterKey(bytes(32))
    with pytest.raises(EnvelopeUnopened) as refused:
        other.open(PLACE, MASTER.seal(PLACE, b"secret"))
    assert MASTER.id.hex() in " ".join(refused.value.sentences())
    assert MASTER.secret.hex() not in " ".join(refused.value.sentences())


def test_the_table_is_the_struct() -> None:
    rows = re.findall(r"^    (\d+) +(\d+) ", envelopes.__doc__ or "", re.MULTILINE)
    ends = [int(offset) + int(size) for offset, size in rows]
    assert [int(offset) for offset, _ in rows] == [0, *ends[:-1]]
    assert ends[-1] == envelopes.HEADER.size


def test_the_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "master.key"
    made = open_master_key(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_master_key(path, create=True) == made == open_master_key(path, create=False)
    assert made.secret.hex() not in repr(made)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    open_master_key(path, create=True)
    path.chmod(0o640)
    with pytest.raises(MasterKeyUnusable, match="0640"):
        open_master_key(path, create=False)


def test_none_is_made_where_there_are_secrets(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyMissing):
        open_master_key(tmp_path / "master.key", create=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "no key", "secondsite master key, version 1\nabc\n", "x" * 200])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "master.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(MasterKeyUnusable):
        open_master_key(path, create=False)


def test_derived_keys_differ_by_purpose() -> None:
    assert MASTER.derive("a") != MASTER.derive("b")
    assert MASTER.derive("a") == MasterKey(MASTER.secret).derive("a")
