"""Bytes written by version 1 are read for ever, and version 1 still writes the same bytes.

To add a version, add files; never change one. ``python -m pytest tests/golden --write-golden`` does not exist
on purpose: a golden file is written once, by hand, with the commit that introduces its version.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.journal.keys import VaultKey, decode_wrapped
from secondsite.journal.manifest import decode_record, open_definition
from secondsite.journal.names import state_name
from secondsite.journal.segment import SegmentReader, verify_segment
from secondsite.journal.state import FLAG_DROPPED, FLAG_KEYED, HEADER, decode_state
from support.format_samples import (
    DISK,
    KEY,
    LATER,
    LOG_KEY,
    MACHINE,
    RENEWED,
    VAULT,
    golden_objects,
    guest_blocks,
    sample_boundary,
    sample_claim,
    sample_dropped_state,
    sample_head,
    sample_later_point,
    sample_point,
    sample_state,
)

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", sorted(golden_objects()))
def test_the_encoder_still_writes_these_bytes(name: str) -> None:
    assert golden_objects()[name] == (DATA / name).read_bytes()


def test_segment_version_1() -> None:
    data = (DATA / "segment-1.bin").read_bytes()
    reader = SegmentReader(lambda start, length: data[start : start + length], len(data), KEY)
    assert reader.head == sample_head()
    disk = bytearray(b"\xee" * reader.head.disk_size_bytes)
    for number, row in enumerate(reader.index):
        offset = int(row["offset"])
        disk[offset : offset + int(row["length"])] = reader.read_block(number)
    for offset, content in guest_blocks():
        assert disk[offset : offset + len(content)] == content
    assert disk[960 << 10 :] == bytes(64 << 10)
    report = verify_segment(lambda start, length: data[start : start + length], len(data), KEY)
    assert (report.opened, report.stored_bytes) == (True, len(data))


def test_records_version_1() -> None:
    assert decode_record((DATA / "claim-1.bin").read_bytes(), LOG_KEY) == sample_claim()
    assert decode_record((DATA / "point-1.bin").read_bytes(), LOG_KEY) == sample_point()


def test_wrapped_key_and_definition_version_1() -> None:
    assert decode_wrapped(VAULT, (DATA / "wrapped-key-1.bin").read_bytes()) == (MACHINE, DISK, KEY)
    opened = open_definition((DATA / "definition-1.bin").read_bytes(), VAULT, MACHINE)
    assert (opened.text, opened.firmware_variables) == ("<domain/>", b"\x00\x01")


def test_vault_key_file_version_1() -> None:
    assert VaultKey.load(DATA / "vault-1.key") == VAULT


def test_vault_key_file_version_2() -> None:
    """It opens what each of its three keys sealed."""
    key = VaultKey.load(DATA / "vault-2.key")
    assert key == RENEWED
    assert [old.generation for old in key.retired] == [2, 1]
    assert key.as_of(VAULT.id) == VAULT
    log_key = key.log_key(MACHINE)
    assert decode_record((DATA / "claim-1.bin").read_bytes(), log_key) == sample_claim()
    assert decode_record((DATA / "boundary-2.bin").read_bytes(), log_key) == sample_boundary()
    for name in ("wrapped-key-1.bin", "wrapped-key-2.bin"):
        assert decode_wrapped(key, (DATA / name).read_bytes()) == (MACHINE, DISK, KEY)
    assert open_definition((DATA / "definition-1.bin").read_bytes(), key, MACHINE).text == "<domain/>"


def test_state_of_a_rotated_key() -> None:
    data = (DATA / "state-2.bin").read_bytes()
    assert decode_state(state_name(MACHINE, 5), data, RENEWED.log_key(MACHINE)) == sample_state()
    assert HEADER.unpack_from(data)[2] == FLAG_KEYED


def test_state_whose_points_were_deleted() -> None:
    data = (DATA / "state-3.bin").read_bytes()
    assert decode_state(state_name(MACHINE, 6), data, LOG_KEY) == sample_dropped_state()
    assert HEADER.unpack_from(data)[2] == FLAG_DROPPED


def test_a_later_data_key() -> None:
    assert decode_wrapped(RENEWED, (DATA / "wrapped-key-later-2.bin").read_bytes()) == (MACHINE, DISK, LATER)
    assert (LATER.origin, LATER.digest_seed()) == (KEY.id, KEY.digest_seed())
    point = decode_record((DATA / "point-later-2.bin").read_bytes(), RENEWED.log_key(MACHINE))
    assert point == sample_later_point()
