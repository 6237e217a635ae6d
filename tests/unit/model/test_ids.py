"""Identities are parsed at the edge."""

from __future__ import annotations

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.model import ids


def test_machine_id_is_lower_case_canonical() -> None:
    assert ids.machine_id("6F9619FF-8B86-D011-B42D-00CF4FC964FF") == "6f9619ff-8b86-d011-b42d-00cf4fc964ff"


@pytest.mark.parametrize("text", ["", "shop", "../../etc/passwd", "6f9619ff"])
def test_machine_id_refuses(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not valid"):
        ids.machine_id(text)


@pytest.mark.parametrize("text", ["", "..", "a/b", "VDA", "a" * 64, "vda\n", "-x"])
def test_disk_id_refuses(text: str) -> None:
    with pytest.raises(InvalidInput):
        ids.disk_id(text)


@pytest.mark.parametrize("text", ["0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"])
def test_segment_and_key_ids_refuse(text: str) -> None:
    with pytest.raises(InvalidInput):
        ids.segment_id(text)
    with pytest.raises(InvalidInput):
        ids.key_id(text)


def test_good_ones_pass() -> None:
    assert ids.disk_id("vda") == "vda"
    assert ids.segment_id("0123456789abcdef" * 2) == "0123456789abcdef" * 2
