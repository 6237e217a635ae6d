"""Every decoder against hostile bytes: only our errors, no surprise, no large allocation."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.base.errors import SecondsiteError
from secondsite.journal import format as fmt
from secondsite.journal.digests import digest_sub_blocks
from secondsite.journal.keys import decode_wrapped
from secondsite.journal.manifest import decode_record, open_definition
from secondsite.journal.segment import verify_segment
from support.format_samples import KEY, LOG_KEY, MACHINE, VAULT, golden_objects, mended_record

GOLDEN = golden_objects()


def _segment(data: bytes) -> None:
    verify_segment(lambda start, length: data[start : start + length], len(data), KEY)


def _segment_without_key(data: bytes) -> None:
    verify_segment(lambda start, length: data[start : start + length], len(data), None)


DECODERS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "segment": ("segment-1.bin", _segment),
    "segment without key": ("segment-1.bin", _segment_without_key),
    "claim": ("claim-1.bin", lambda data: decode_record(data, LOG_KEY)),
    "point": ("point-1.bin", lambda data: decode_record(data, LOG_KEY)),
    "wrapped key": ("wrapped-key-1.bin", lambda data: decode_wrapped(VAULT, data)),
    "definition": ("definition-1.bin", lambda data: open_definition(data, VAULT, MACHINE)),
}

EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 17), st.sampled_from(["set", "cut", "insert"]), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def mended(data: bytes) -> bytes:
    """Header and footer checksums made right again, so that mutations reach the rules behind them."""
    if len(data) < fmt.SEGMENT_HEADER.size + fmt.SEGMENT_FOOTER.size:
        return data
    head, foot = data[: fmt.SEGMENT_HEADER.size - 8], data[-fmt.SEGMENT_FOOTER.size : -8]
    middle = data[fmt.SEGMENT_HEADER.size : -fmt.SEGMENT_FOOTER.size]
    sums = [fmt.checksum(part).to_bytes(8, "little") for part in (head, foot)]
    return head + sums[0] + middle + foot + sums[1]


@pytest.mark.parametrize("kind", sorted(DECODERS))
@pytest.mark.parametrize("mend", [False, True], ids=["as is", "checksums mended"])
@settings(max_examples=150, deadline=None)
@given(edits=EDITS)
def test_mutated_objects(kind: str, mend: bool, edits: list[tuple[int, str, bytes]]) -> None:
    name, decode = DECODERS[kind]
    original = GOLDEN[name]
    data = original
    for anywhere, what, value in edits:
        place = anywhere % max(1, len(data))
        end = place + (len(value) if what == "set" else len(value) * 99 if what == "cut" else 0)
        data = data[:place] + (b"" if what == "cut" else value) + data[end:]
    if mend and name.startswith("segment"):
        data = mended(data)
    if mend and kind in ("claim", "point"):
        _mended_records_are_read_or_refused(decode, mended_record(data))
        return
    if data == original:
        return
    with pytest.raises(SecondsiteError):
        decode(data)


def _mended_records_are_read_or_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    """Whoever holds the key can seal any values: they are read, or refused in our words."""
    with contextlib.suppress(SecondsiteError):
        decode(data)


@pytest.mark.parametrize("kind", sorted(DECODERS))
@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=600))
def test_random_bytes(kind: str, data: bytes) -> None:
    with pytest.raises(SecondsiteError):
        DECODERS[kind][1](data)


def test_a_header_that_promises_much_allocates_little() -> None:
    data = bytearray(GOLDEN["segment-1.bin"])
    foot = bytearray(data[-fmt.SEGMENT_FOOTER.size :])
    foot[28:32] = (fmt.INDEX_PLAIN_BYTES_MAX).to_bytes(4, "little")  # a plain index as large as may be
    data[-fmt.SEGMENT_FOOTER.size :] = foot
    lie = mended(bytes(data))
    tracemalloc.start()
    with pytest.raises(SecondsiteError):
        _segment(lie)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@given(st.binary(max_size=3 * 4096))
def test_digests_of_anything(data: bytes) -> None:
    digests = digest_sub_blocks(memoryview(data), 3, 1)
    assert len(digests) == -(-len(data) // 4096)
    for number, row in enumerate(digests):
        assert row.any() == any(data[number * 4096 : number * 4096 + 4096])
