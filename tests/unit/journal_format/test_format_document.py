"""FORMAT.md says what the code does: every byte table adds up, and to the size of its struct."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from secondsite.gateway.target import qcow2
from secondsite.journal import base_sums, log_pages, pages, state
from secondsite.journal import format as fmt
from secondsite.server.identity import envelopes
from secondsite.server.survival import container
from secondsite.transfer import registration

TEXT = (Path(__file__).resolve().parents[3] / "FORMAT.md").read_text()
SIZES = {
    "Segment header": fmt.SEGMENT_HEADER.size,
    "Segment footer": fmt.SEGMENT_FOOTER.size,
    "Block associated data": fmt.BLOCK_AAD.size,
    "Index associated data": fmt.INDEX_AAD.size,
    "Index header": fmt.INDEX_HEADER.size,
    "Index row": fmt.INDEX_DTYPE.itemsize,
    "Record header": fmt.RECORD_HEADER.size,
    "Box header": fmt.BOX_HEADER.size,
    "State header": state.HEADER.size,
    "Page header": pages.HEADER.size,
    "Log page header": log_pages.HEADER.size,
    "Sums header": base_sums.HEADER.size,
    "Base extension": qcow2.EXTENSION.size,
    "Registration key header": registration.HEADER.size,
    "Envelope header": envelopes.HEADER.size,
    "Backup header": container.HEADER.size,
    "Backup frame": container.FRAME.size,
    "Backup end": container.END.size,
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_table_adds_up_to_the_struct(name: str) -> None:
    section = re.search(rf"### {name}: (\d+) bytes\n(.*?)(?=\n##|\Z)", TEXT, re.DOTALL)
    assert section, f"FORMAT.md has no table {name!r}"
    rows = [(int(a), int(b)) for a, b in re.findall(r"^\| (\d+) \| (\d+) \|", section[2], re.MULTILINE)]
    assert rows[0][0] == 0
    for (offset, size), (following, _) in itertools.pairwise(rows):
        assert offset + size == following
    assert rows[-1][0] + rows[-1][1] == SIZES[name] == int(section[1])


def test_every_table_is_checked() -> None:
    assert set(re.findall(r"### ([A-Z][a-z ]+): \d+ bytes", TEXT)) == set(SIZES)


def test_magics_and_limits_are_the_codes() -> None:
    for magic in (fmt.SEGMENT_MAGIC, fmt.FOOTER_MAGIC, fmt.RECORD_MAGIC, fmt.BOX_MAGIC):
        assert f"`{magic.decode()}`" in TEXT
    assert fmt.SEGMENT_DATA_BYTES_MAX == 16 << 20
    assert fmt.BLOCKS_MAX == 4096
    assert fmt.RECORD_BODY_BYTES_MAX == 64 << 20


def test_rows_of_the_index_stand_where_the_table_says() -> None:
    assert fmt.INDEX_DTYPE.fields is not None
    offsets = {name: field[1] for name, field in fmt.INDEX_DTYPE.fields.items()}
    assert offsets == {
        "offset": 0,
        "length": 8,
        "kind": 12,
        "position": 16,
        "stored_length": 24,
        "digests": 28,
        "checksum": 32,
    }
