"""Registration keys: what they carry, what is refused, and that nothing shows them."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.base.errors import InvalidInput
from secondsite.transfer import registration
from secondsite.transfer.registration import RegistrationKey, hide_keys, parse_key, proves, server_url

KEY = RegistrationKey(
    id="00112233445566778899aabbccddeeff",
    url="https://server.example:8443",
    ends_at=datetime(2026, 1, 6, tzinfo=UTC),
    authority=bytes(range(32)),
    secret=bytes(range(100, 132)),
)


def test_a_key_reads_as_it_was_made() -> None:
    assert parse_key(KEY.text()) == KEY


def test_the_text_never_changes() -> None:
    """Keys on paper and in files outlive an update."""
    assert KEY.text() == (
        "ssrk1_U1NSSwEAGwCAUFxpAAAAAAARIjNEVWZ3iJmqu8zd7v9kZWZnaGlqa2xtbm9wcXJzdHV2d3h5ent8fX5_gIGCgwABAgMEBQYH"
        "CAkKCwwNDg8QERITFBUWFxgZGhscHR4faHR0cHM6Ly9zZXJ2ZXIuZXhhbXBsZTo4NDQzKOyd8A"
    )


def test_the_table_is_the_struct() -> None:
    rows = re.findall(r"^    (\d+) +(\d+) ", registration.__doc__ or "", re.MULTILINE)
    ends = [int(offset) + int(size) for offset, size in rows]
    assert [int(offset) for offset, _ in rows] == [0, *ends[:-1]]
    assert ends[-1] == registration.HEADER.size


def test_a_key_broken_over_lines_reads_the_same() -> None:
    text = KEY.text()
    assert parse_key(f"  {text[:40]}\n{text[40:90]}\r\n\t{text[90:]}\n") == KEY


@given(st.integers(0, len(KEY.text()) - 1), st.characters(codec="ascii"))
def test_a_mistyped_key_is_told(at: int, character: str) -> None:
    text = KEY.text()
    changed = text[:at] + character + text[at + 1 :]
    if "".join(changed.split()) == text:
        return
    if at == len(text) - 1 and character.isalnum():
        return  # of the last digit only some bits are used
    with pytest.raises(InvalidInput) as refused:
        parse_key(changed)
    assert text[20:60] not in " ".join(refused.value.sentences())


@given(st.text(max_size=300) | st.text(max_size=300).map(lambda text: "ssrk1_" + text))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_key(text)


def test_a_newer_key_is_told_as_such() -> None:
    raw = bytearray(base64.urlsafe_b64decode(KEY.text()[6:] + "=="))
    raw[4] = 2
    raw[-4:] = registration._check(bytes(raw[:-4]))
    text = "ssrk1_" + base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    with pytest.raises(InvalidInput, match="newer version"):
        parse_key(text)


def test_a_key_is_never_shown() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
    assert hide_keys(f"enrolling with {KEY.text()} now") == "enrolling with ssrk1_… now"


def test_only_the_holder_proves() -> None:
    signature = KEY.sign(b"said")
    assert proves(KEY.public(), signature, b"said")
    assert not proves(KEY.public(), signature, b"Said")
    assert not proves(bytes(32), signature, b"said")
    assert not proves(KEY.public(), b"", b"said")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://server", "https://server"),
        ("https://SERVER.example:9443/", "https://server.example:9443"),
        ("https://[::1]:443", "https://[::1]:443"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server",
        "http://server",
        "https://",
        "https://server/path",
        "https://u:p@server",
        "https://server:0x1",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        server_url(text)
