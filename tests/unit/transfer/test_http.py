"""Heads, targets and bodies of the wire: what is taken, and what is refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.base.errors import InvalidInput, Outcome, RemoteError, SecondsiteError
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.transfer import wire
from secondsite.transfer.errors import LinkDown, ProtocolViolation
from secondsite.transfer.http import HEADERS_MAX, TARGET_BYTES_MAX, Head, format_head, parse_head
from secondsite.transfer.protocols import SegmentName, error_code
from support.transfer import MACHINE

NAME = SegmentName(machine=MACHINE, epoch=3, disk=DiskId("vda"), id=SegmentId("ab" * 16))


def test_a_head_is_read_as_it_was_written() -> None:
    data = format_head("PUT /x HTTP/1.1", {"content-length": "5", "x-hash": "ab"})
    head = parse_head(data[:-4], peer="p")
    assert head.start == ("PUT", "/x", "HTTP/1.1")
    assert head.headers == {"content-length": "5", "x-hash": "ab"}


@pytest.mark.parametrize(
    "data",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx",
        b"GET / HTTP/1.1\r\nx y: 1",
        b"GET / HTTP/1.1\r\nx: 1\r\nX: 1",
        b"GET / HTTP/1.1\r\nx: a\nb",
        b"GET / HTTP/1.1\r\n folded: 1",
        b"GET /" + b"a" * TARGET_BYTES_MAX + b" HTTP/1.1",
        b"GET / HTTP/1.1" + b"".join(b"\r\nx%d: 1" % i for i in range(HEADERS_MAX + 1)),
        "GET /ä HTTP/1.1".encode(),
    ],
)
def test_heads_that_do_not_parse_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_head(data, peer="p")


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        head = parse_head(data, peer="p")
    except ProtocolViolation:
        return
    assert len(head.start) == 3


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        (None, 10, (0, 10)),
        ("bytes 0-9/10", 10, (0, 10)),
        ("bytes 5-9/10", 5, (5, 10)),
        ("bytes 5-9/10", 4, None),
        ("bytes 5-10/10", 6, None),
        ("bytes 9-5/10", 0, None),
        ("bytes */10", 0, None),
        ("bits 0-9/10", 10, None),
    ],
)
def test_content_range(text: str | None, length: int, expected: tuple[int, int] | None) -> None:
    head = Head(("PUT", "/", "HTTP/1.1"), {} if text is None else {"content-range": text})
    if expected is None:
        with pytest.raises(ProtocolViolation):
            head.content_range(length, peer="p")
    else:
        assert head.content_range(length, peer="p") == expected


def test_every_target_leads_to_its_route_and_back() -> None:
    assert wire.parse_target(wire.segment_target(NAME)) == wire.Route(
        kind="segment", machine=MACHINE, segment=NAME
    )
    assert wire.parse_target(f"/v1/machines/{MACHINE.upper()}/head") == wire.Route(
        kind="head", machine=MACHINE
    )
    for target in ("/", "/v2/health", f"/v1/machines/{MACHINE}", "/v1/health/", "/v1/machines//x/y/z"):
        assert wire.parse_target(target) is None


@pytest.mark.parametrize(
    "target",
    [
        "/v1/machines/not-a-uuid/head",
        f"/v1/machines/{MACHINE}/keys/../../etc",
        f"/v1/machines/{MACHINE}/keys/{'AB' * 16}",
        f"/v1/machines/{MACHINE}/segments/1/../{'ab' * 16}",
        f"/v1/machines/{MACHINE}/segments/0/vda/{'ab' * 16}",
        f"/v1/machines/{MACHINE}/segments/1/vda/short",
        f"/v1/machines/{MACHINE}/segments/123456789/vda/{'ab' * 16}",
        f"/v1/machines/{MACHINE}/segments/1/VDA/{'ab' * 16}",
    ],
)
def test_bad_ids_in_a_target_lead_nowhere(target: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert wire.parse_target(target) is None


def test_an_error_crosses_the_wire_with_its_code_and_whether_to_try_again() -> None:
    for error, retryable in (
        (LinkDown(peer="b", why="x"), True),
        (ProtocolViolation(peer="b", why="x"), False),
    ):
        body = wire.remote_error(msgspec.json.encode(error.as_dict()), wire.status_of(error), peer="b")
        assert isinstance(body, RemoteError)
        assert error_code(body) == error.code
        assert body.retryable is retryable
        assert body.sentences() == error.sentences()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 1}', b"\xff"])
def test_an_answer_that_is_no_error_of_ours_is_one_of_the_protocol(body: bytes) -> None:
    error: SecondsiteError = wire.remote_error(body, 502, peer="b")
    assert isinstance(error, ProtocolViolation)
    assert error.outcome is Outcome.REFUSED


def test_ids_are_canonical_inside() -> None:
    route = wire.parse_target(f"/v1/machines/{{{MACHINE}}}/head")
    assert route is not None
    assert route.machine == MachineId(MACHINE)
