"""Answers a server must not give, and answers in an order it may choose."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdConnectionLost, NbdPeerBroken, NbdRequestRefused, NbdTryAgain
from secondsite.nbd.handshake import negotiate
from support.nbd_scripts import ScriptedServer, channel_to, chunk, data_chunk

Answer = Callable[[int, int, int], bytes]  # cookie, offset, length of a read


def answering(*answers: Answer) -> Callable[[socket.socket], None]:
    """A server that answers the n-th read with the n-th answer and then hangs up."""
    script = ScriptedServer()

    def play(sock: socket.socket) -> None:
        script.greet(sock)
        for answer in answers:
            _, cookie, offset, length = script.take(sock)
            sock.sendall(answer(cookie, offset, length))

    return play


def good(cookie: int, offset: int, length: int) -> bytes:
    return data_chunk(cookie, offset, bytes([offset // 4096 % 256]) * length)


BAD_ANSWERS: dict[str, Answer] = {
    "another request's cookie": lambda c, o, n: data_chunk(c + 1, o, bytes(n)),
    "before the range": lambda c, o, n: data_chunk(c, o - 1, bytes(n)),
    "beyond the range": lambda c, o, n: data_chunk(c, o + 1, bytes(n)),
    "too long": lambda c, o, n: data_chunk(c, o, bytes(n + 1)),
    "too short": lambda c, o, n: data_chunk(c, o, bytes(n - 1)),
    "no data at all": lambda c, o, n: chunk(c, wire.CHUNK_NONE, b""),
    "the same part twice": lambda c, o, n: (
        data_chunk(c, o, bytes(n // 2), done=False) + data_chunk(c, o, bytes(n // 2))
    ),
    "an overlap that adds up": lambda c, o, n: (
        data_chunk(c, o + n // 2, bytes(n // 2), done=False)
        + data_chunk(c, o + n // 2, bytes(n // 4), done=False)
        + data_chunk(c, o, bytes(n // 4))
    ),
    "a hole beyond the range": lambda c, o, n: chunk(c, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(o, n + 1)),
    "a hole of no length": lambda c, o, n: chunk(c, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(o, 0)),
    "a simple success": lambda c, o, n: wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, 0, c) + bytes(n),
    "a status": lambda c, o, n: chunk(c, wire.CHUNK_BLOCK_STATUS, bytes(12)),
    "a chunk of an unknown type": lambda c, o, n: chunk(c, 77, b""),
    "a chunk that ends nothing": lambda c, o, n: chunk(c, wire.CHUNK_NONE, b"", done=False),
    "an error without a number": lambda c, o, n: chunk(c, wire.CHUNK_ERROR, wire.ERROR_HEAD.pack(0, 0)),
    "an error with a message longer than itself": lambda c, o, n: chunk(
        c, wire.CHUNK_ERROR, wire.ERROR_HEAD.pack(5, 9) + b"short"
    ),
    "an error of 1 MiB": lambda c, o, n: chunk(c, wire.CHUNK_ERROR, bytes(1 << 20)),
    "no reply at all": lambda c, o, n: bytes(32),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_wrong_answer_ends_the_connection(answer: Answer) -> None:
    with channel_to(answering(good, answer)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        assert client.read(4096, 8192) == b"\x01" * 8192
        with pytest.raises(NbdPeerBroken):
            client.read(4096, 8192)
        assert client.closed


def test_parts_in_any_order_are_put_in_place() -> None:
    def backwards(cookie: int, offset: int, length: int) -> bytes:
        parts = [(at, b"%04d" % (at // 1024) * 256) for at in range(0, length, 1024)]
        chunks = [data_chunk(cookie, offset + at, data, done=at == 0) for at, data in reversed(parts)]
        return b"".join(chunks)

    with channel_to(answering(backwards)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        expected = b"".join(b"%04d" % number * 256 for number in range(8))
        assert client.read(0, 8192) == expected


def test_holes_and_data_make_one_answer() -> None:
    def mixed(cookie: int, offset: int, length: int) -> bytes:
        return chunk(cookie, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(offset, 4096), done=False) + data_chunk(
            cookie, offset + 4096, b"\x05" * 4096
        )

    with channel_to(answering(mixed)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        target = bytearray(b"\xff" * 8192)
        client.read_into(0, memoryview(target))
        assert target == bytes(4096) + b"\x05" * 4096


def test_answers_in_another_order_than_the_questions() -> None:
    script = ScriptedServer()

    def play(sock: socket.socket) -> None:
        script.greet(sock)
        asked = [script.take(sock) for _ in range(4)]
        for _, cookie, offset, length in reversed(asked):
            sock.sendall(good(cookie, offset, length))

    with channel_to(play) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        ranges = [(number * 4096, 4096) for number in range(4)]
        seen = [(offset, bytes(data)) for offset, data in client.read_many(ranges, depth=4)]
        assert seen == [(number * 4096, bytes([number]) * 4096) for number in range(4)]


def test_an_answer_that_never_comes_does_not_let_the_others_pile_up() -> None:
    """The first read stays open; no more ranges than the depth allows are taken from the caller."""
    script = ScriptedServer()
    taken = 0

    def play(sock: socket.socket) -> None:
        script.greet(sock)
        script.take(sock)
        while True:
            _, cookie, offset, length = script.take(sock)
            sock.sendall(good(cookie, offset, length))

    def ranges() -> object:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number * 4096, 4096

    with channel_to(play, timeout_seconds=0.3) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        with pytest.raises(NbdConnectionLost, match="silent"):
            list(client.read_many(ranges(), depth=4))  # type: ignore[arg-type]
    assert taken <= 6


def error(number: int, message: bytes = b"") -> Answer:
    body = wire.ERROR_HEAD.pack(number, len(message)) + message
    return lambda cookie, offset, length: chunk(cookie, wire.CHUNK_ERROR, body)


def test_errors_are_sorted_by_what_may_be_done_next() -> None:
    answers = [error(5, b"disk on fire"), error(1), good]
    with channel_to(answering(*answers)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        with pytest.raises(NbdTryAgain, match="disk on fire"):
            client.read(0, 4096)
        with pytest.raises(NbdRequestRefused, match="not permitted"):
            client.read(0, 4096)
        assert client.read(0, 4096) == bytes(4096)


def test_an_error_after_part_of_the_data() -> None:
    def half(cookie: int, offset: int, length: int) -> bytes:
        body = wire.ERROR_HEAD.pack(5, 0) + (offset + 2048).to_bytes(8, "big")
        return data_chunk(cookie, offset, bytes(2048), done=False) + chunk(
            cookie, wire.CHUNK_ERROR_OFFSET, body
        )

    with channel_to(answering(half, good)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        with pytest.raises(NbdTryAgain):
            client.read(0, 4096)
        assert client.read(4096, 4096) == b"\x01" * 4096


def test_the_end_inside_an_answer_is_a_lost_connection() -> None:
    with channel_to(answering(lambda c, o, n: data_chunk(c, o, bytes(n))[:-1])) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        with pytest.raises(NbdConnectionLost, match="closed"):
            client.read(0, 4096)


def test_leaving_a_pipelined_read_early_leaves_a_usable_connection() -> None:
    answers = [good] * 9
    with channel_to(answering(*answers)) as channel:
        client = NbdClient(channel, negotiate(channel, "", ()))
        reading = client.read_many([(number * 4096, 4096) for number in range(100)], depth=4)
        assert next(reading)[0] == 0
        reading.close()  # type: ignore[attr-defined]
        assert client.read(4096, 4096) == b"\x01" * 4096


STATUS = wire.CHUNK_BLOCK_STATUS
BAD_STATUSES: dict[str, Callable[[int], bytes]] = {
    "another context": lambda c: chunk(c, STATUS, (8).to_bytes(4, "big") + wire.DESCRIPTOR.pack(4096, 0)),
    "no length": lambda c: chunk(c, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(0, 0)),
    "no descriptor": lambda c: chunk(c, STATUS, (7).to_bytes(4, "big")),
    "half a descriptor": lambda c: chunk(c, STATUS, bytes(9)),
    "beyond the request": lambda c: chunk(
        c, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(1 << 20, 0) + wire.DESCRIPTOR.pack(512, 0)
    ),
    "the same context twice": lambda c: (
        chunk(c, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(4096, 0), done=False)
        + chunk(c, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(4096, 0))
    ),
    "16 MiB of them": lambda c: wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, STATUS, c, 1 << 24),
    "nothing": lambda c: chunk(c, wire.CHUNK_NONE, b""),
}


@pytest.mark.parametrize("answer", BAD_STATUSES.values(), ids=BAD_STATUSES.keys())
def test_a_wrong_status_ends_the_connection(answer: Callable[[int], bytes]) -> None:
    script = ScriptedServer(contexts={b"base:allocation": 7})

    def play(sock: socket.socket) -> None:
        script.greet(sock)
        _, cookie, _, _ = script.take(sock)
        sock.sendall(answer(cookie))

    with channel_to(play) as channel:
        client = NbdClient(channel, negotiate(channel, "", (wire.BASE_ALLOCATION,)))
        with pytest.raises(NbdPeerBroken):
            client.map(wire.BASE_ALLOCATION)


def test_an_extent_beyond_the_end_of_the_disk_is_clipped() -> None:
    script = ScriptedServer(contexts={b"base:allocation": 7})

    def play(sock: socket.socket) -> None:
        script.greet(sock)
        _, cookie, _, _ = script.take(sock)
        sock.sendall(chunk(cookie, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(4096, 0)))
        _, cookie, offset, _ = script.take(sock)
        assert offset == 4096
        sock.sendall(chunk(cookie, STATUS, (7).to_bytes(4, "big") + wire.DESCRIPTOR.pack(1 << 31, 3)))

    with channel_to(play) as channel:
        client = NbdClient(channel, negotiate(channel, "", (wire.BASE_ALLOCATION,)))
        whole = client.extents(wire.BASE_ALLOCATION, 0, client.size_bytes)
        assert whole == [(4096, 0), ((1 << 20) - 4096, 3)]
