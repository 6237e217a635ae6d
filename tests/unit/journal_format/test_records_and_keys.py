"""Records, boxes and keys refuse what is damaged, foreign or from the future, in words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal import format as fmt
from secondsite.journal.chain import Journal
from secondsite.journal.errors import (
    FormatUnknown,
    KeyFileInvalid,
    KeyMissing,
    ObjectDamaged,
    TooManyRetired,
    WrongKey,
)
from secondsite.journal.key_file import RETIRED_MAX
from secondsite.journal.keys import DiskKey, KeyRing, LogKey, VaultKey, decode_wrapped, encode_wrapped
from secondsite.journal.manifest import decode_record, encode_record, open_definition
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.model.points import DiskState
from support.format_samples import (
    DISK,
    KEY,
    LOG_KEY,
    MACHINE,
    RENEWED,
    VAULT,
    golden_objects,
    mended_record,
    sample_claim,
    sample_definition,
    sample_point,
    sample_segment,
)

SEGMENT_REF = sample_segment()[1]
OTHER_MACHINE = MachineId("00000000-0000-4000-8000-000000000001")


def test_a_record_comes_back() -> None:
    assert decode_record(encode_record(sample_point(), LOG_KEY), LOG_KEY) == sample_point()
    assert decode_record(encode_record(sample_claim(), LOG_KEY), LOG_KEY) == sample_claim()


FORGED = LogKey(VAULT.id, bytes(32))


@pytest.mark.parametrize("key", [None, FORGED], ids=["not sealed", "sealed by somebody"])
def test_a_record_somebody_else_wrote_is_refused(key: LogKey | None) -> None:
    with pytest.raises(ObjectDamaged, match="somebody without the vault key"):
        decode_record(encode_record(sample_claim(), key), LOG_KEY)


def test_a_record_of_another_vault_names_both_keys() -> None:
    other = VaultKey.create()
    with pytest.raises(WrongKey) as caught:
        decode_record(encode_record(sample_claim(), other.log_key(MACHINE)), LOG_KEY)
    assert VAULT.id in str(caught.value)
    assert other.id in str(caught.value)


def test_a_state_somebody_else_wrote_is_refused() -> None:
    store = MemoryStore()
    Journal(store, MACHINE, None).update_state(lambda state: msgspec.structs.replace(state, floor=1))
    assert Journal(store, MACHINE, None).state().floor == 1
    with pytest.raises(ObjectDamaged, match="somebody without the vault key"):
        Journal(store, MACHINE, VAULT).state()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"number": 0}, "its number is 0"),
        ({"epoch": 0}, "its epoch is 0"),
        ({"machine": "../../etc"}, "is not valid"),
        ({"machine": MACHINE.upper()}, "not in lower case"),
        ({"previous_hash": "x"}, "hash of the record before"),
        ({"nonce": "x"}, "its nonce"),
        ({"checkpoint": "c" * 2000}, "longer than any name"),
        ({"disks": (DiskState(id=DISK, size_bytes=-1, key_id=KEY.id),)}, "has -1 bytes"),
        ({"disks": (DiskState(id=DiskId("../x"), size_bytes=1, key_id=KEY.id),)}, "is not valid"),
        ({"disks": (DiskState(id=DISK, size_bytes=1, key_id=KEY.id, fingerprint="x"),)}, "fingerprint"),
        ({"segments": (msgspec.structs.replace(SEGMENT_REF, id=SegmentId("../../../y")),)}, "is not valid"),
        ({"segments": (msgspec.structs.replace(SEGMENT_REF, hash="x"),)}, "hash of segment"),
        ({"segments": (msgspec.structs.replace(SEGMENT_REF, stored_bytes=-1),)}, "has -1 bytes"),
        ({"segments": (msgspec.structs.replace(SEGMENT_REF, data_bytes=-1),)}, "describes -1 bytes"),
        ({"segments": (msgspec.structs.replace(SEGMENT_REF, epoch=0),)}, "is of epoch 0"),
    ],
)
def test_every_rule_of_a_record(changes: dict[str, object], why: str) -> None:
    record = msgspec.structs.replace(sample_point(), **changes)
    with pytest.raises(ObjectDamaged, match=why):
        decode_record(encode_record(record, LOG_KEY), LOG_KEY)


OPENERS: dict[str, Callable[[bytes], object]] = {
    "claim-1.bin": lambda data: decode_record(data, LOG_KEY),
    "point-1.bin": lambda data: decode_record(data, LOG_KEY),
    "wrapped-key-1.bin": lambda data: decode_wrapped(VAULT, data),
    "definition-1.bin": lambda data: open_definition(data, VAULT, MACHINE),
}


@pytest.mark.parametrize("name", sorted(OPENERS))
def test_any_changed_byte_is_found(name: str) -> None:
    data = golden_objects()[name]
    for position in range(0, len(data), max(1, len(data) // 150)):
        bad = bytearray(data)
        bad[position] ^= 0x10
        with pytest.raises(SecondsiteError):
            OPENERS[name](bytes(bad))


def test_a_record_of_the_future_is_refused() -> None:
    data = bytearray(encode_record(sample_claim(), LOG_KEY))
    data[8] = 9
    with pytest.raises(FormatUnknown, match="its version is 9"):
        decode_record(bytes(data), LOG_KEY)


def test_the_number_in_body_and_header_must_agree() -> None:
    good = encode_record(sample_claim(), LOG_KEY)
    with pytest.raises(ObjectDamaged, match="its body says it is record 1"):
        decode_record(mended_record(good[:24] + (2).to_bytes(8, "little") + good[32:]), LOG_KEY)


def test_an_unknown_kind_is_named() -> None:
    good = encode_record(sample_claim(), LOG_KEY)
    with pytest.raises(ObjectDamaged, match="of the unknown kind 7"):
        decode_record(mended_record(good[:10] + (7).to_bytes(2, "little") + good[12:]), LOG_KEY)


def test_the_length_must_fit() -> None:
    with pytest.raises(ObjectDamaged, match="the header says"):
        decode_record(encode_record(sample_claim(), LOG_KEY) + b" ", LOG_KEY)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"\xff", b'{"number":"x"}', b'{"x":"\xff"}', b"[" * 100_000, b'{"x":' * 100_000],
    ids=["empty", "list", "no text", "type", "no utf-8", "deep list", "deep object"],
)
def test_a_body_that_does_not_parse(body: bytes) -> None:
    head = fmt.RECORD_HEADER.pack(
        fmt.RECORD_MAGIC, 1, fmt.RECORD_POINT, 0, 0, 0, 1, bytes(32), bytes(16), bytes(32)
    )
    with pytest.raises(ObjectDamaged, match="does not parse"):
        decode_record(mended_record(head + body), LOG_KEY)


def test_a_definition_belongs_to_its_machine() -> None:
    with pytest.raises(ObjectDamaged, match="it is the definition of machine"):
        open_definition(sample_definition(), VAULT, OTHER_MACHINE)


def test_another_vault_key_is_named() -> None:
    other = VaultKey.create()
    with pytest.raises(WrongKey) as caught:
        open_definition(sample_definition(), other, MACHINE)
    assert VAULT.id in str(caught.value)
    assert other.id in str(caught.value)
    with pytest.raises(WrongKey):
        decode_wrapped(other, golden_objects()["wrapped-key-1.bin"])


def test_a_wrapped_key_is_no_definition() -> None:
    with pytest.raises(ObjectDamaged, match="of kind 1 instead of 2"):
        open_definition(golden_objects()["wrapped-key-1.bin"], VAULT, MACHINE)


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    assert VAULT.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert VaultKey.load(path) == VAULT
    assert not VaultKey.create().save(path), "a key file is never overwritten"
    assert VaultKey.load(path) == VAULT


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("secondsite vault key", "another file", "first line"),
        ("key: AAEC", "key: AAED", "checksum"),
        ("checksum: ", "sum: ", "has no id, key and checksum"),
        ("key: ", "key: !", "checksum"),
    ],
)
def test_a_damaged_key_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = tmp_path / "vault.key"
    VAULT.save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(KeyFileInvalid, match=why):
        VaultKey.load(path)


def test_keys_do_not_show_themselves() -> None:
    assert VAULT.secret.hex() not in repr(VAULT)
    assert str(VAULT.secret) not in repr(VAULT)
    assert str(KEY.secret) not in repr(KEY)


def test_proof_is_the_keys_and_the_challenges() -> None:
    assert VAULT.prove(b"a") == VAULT.prove(b"a")
    assert VAULT.prove(b"a") != VAULT.prove(b"b")
    assert VAULT.prove(b"a") != VaultKey.create().prove(b"a")


def test_key_ring() -> None:
    store = MemoryStore()
    ring = KeyRing(store, MACHINE, VAULT)
    with pytest.raises(KeyMissing, match=KEY.id):
        ring.get(KEY.id)
    store.put(wrapped_key_name(MACHINE, KEY.id), encode_wrapped(VAULT, MACHINE, DISK, KEY))
    assert ring.get(KEY.id) == KEY
    foreign = DiskKey.create()
    store.put(wrapped_key_name(MACHINE, foreign.id), encode_wrapped(VAULT, OTHER_MACHINE, DISK, foreign))
    with pytest.raises(ObjectDamaged, match="another machine"):
        ring.get(foreign.id)


def test_segment_keys_differ_by_salt_and_disk() -> None:
    assert KEY.segment_key(b"a" * 32) != KEY.segment_key(b"b" * 32)
    assert KEY.segment_key(b"a" * 32) != DiskKey.create().segment_key(b"a" * 32)


def changed(text: str, field: str, value: str) -> str:
    """A key file with another value, and a checksum that fits."""
    lines = [
        f"{field}: {value}" if line.startswith(f"{field}: ") else line for line in text.splitlines()[:-1]
    ]
    body = "".join(f"{line}\n" for line in lines)
    return f"{body}checksum: {hashlib.sha256(body.encode()).hexdigest()[:16]}\n"


def test_key_file_version_2(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    assert RENEWED.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert VaultKey.load(path) == RENEWED
    text = path.read_text()
    assert VAULT.secret.hex() not in text, "retired keys are sealed"
    path.write_text(text.replace("\n", "\r\n"))
    assert VaultKey.load(path) == RENEWED, "it was retyped elsewhere"


@pytest.mark.parametrize("position", range(0, 900, 23))
def test_any_changed_character_of_a_key_file_is_found(tmp_path: Path, position: int) -> None:
    path = tmp_path / "vault.key"
    RENEWED.save(path)
    text = path.read_text()
    position %= len(text) - 1
    other = "A" if text[position] != "A" else "B"
    path.write_text(text[:position] + other + text[position + 1 :])
    with pytest.raises(KeyFileInvalid):
        VaultKey.load(path)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("generation", "2", "contradict"),
        ("generation", "x", "has no id"),
        ("retired", "AAAA", "do not open"),
        ("retired", "%", "has no id"),
        ("key", "AAAA", "the id does not fit"),
    ],
)
def test_a_key_file_that_contradicts_itself(tmp_path: Path, field: str, value: str, why: str) -> None:
    path = tmp_path / "vault.key"
    RENEWED.save(path)
    path.write_text(changed(path.read_text(), field, value))
    with pytest.raises(KeyFileInvalid, match=why):
        VaultKey.load(path)


def test_a_key_file_is_full_one_day() -> None:
    key = VAULT
    for _ in range(RETIRED_MAX):
        key = key.renew("2026-01-01T00:00:00+00:00")
    with pytest.raises(TooManyRetired):
        key.renew("2026-01-01T00:00:00+00:00")
