"""Hostile peers on either side: whatever comes, the end is quick, small, and one of our errors.

Each example is a transcript of one side, played without listening to the other: an honest one that was
bent in a few places, frames with arbitrary fields, or plain noise.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.nbd import wire
from secondsite.nbd.channel import Channel
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdConnectionLost, NbdError, NbdPeerBroken
from secondsite.nbd.exports import MemoryExport
from secondsite.nbd.greeting import Greeting, Offer
from secondsite.nbd.handshake import negotiate
from secondsite.nbd.session import Session

pytestmark = pytest.mark.fault

# A peer may make us hold the largest status chunk and its array, or the buffers of a pipelined read.
MEMORY_BYTES_MAX = 32 * MIB
fuzz = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def meet(transcript: bytes, ours: Callable[[Channel], None]) -> bytes:
    """Play a transcript against one of our ends; returns what our end said. Fails when it hangs."""
    near, far = socket.socketpair()
    heard = bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                heard.extend(data[: 1 << 16])  # enough to look at; the rest need not be kept

    def speak() -> None:
        with contextlib.suppress(OSError):
            far.sendall(transcript)
            far.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=listen), threading.Thread(target=speak)]
    # longer than the join below: a test that only ends by this time limit has hung
    channel = Channel(near, "peer", 60.0, SystemClock())
    failure: list[BaseException] = []

    def run() -> None:
        try:
            ours(channel)
        except NbdError:
            pass
        except BaseException as error:  # noqa: BLE001 - the root of a thread of this test
            failure.append(error)
        finally:
            channel.close()

    subject = threading.Thread(target=run)
    tracemalloc.start()
    for thread in (*threads, subject):
        thread.start()
    subject.join(20)
    hung = subject.is_alive()
    channel.hang_up()
    for thread in (*threads, subject):
        thread.join()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    far.close()
    if failure:
        raise failure[0]
    assert not hung, "it waits for a peer that has nothing more to say"
    assert peak < MEMORY_BYTES_MAX, f"{peak} bytes taken for a peer"
    return bytes(heard)


@st.composite
def bent(draw: st.DrawFn, frames: st.SearchStrategy[list[bytes]]) -> bytes:
    """Frames joined, then a few places changed, cut out or doubled."""
    data = bytearray(b"".join(draw(frames)))
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "cut", "double", "end", "insert"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 16))]
            case "double":
                data[at:at] = data[at : at + 32]
            case "end":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
    return bytes(data)


# Lengths and offsets a decoder stumbles over
u32 = st.one_of(
    st.sampled_from([0, 1, 4, 8, 512, 4096, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
u64 = st.one_of(
    st.sampled_from([0, 1, 4096, 1 << 20, (1 << 20) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)

# --- a hostile server ---

EXPORT_BYTES = 1 << 20
GREETING = wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE)


def option_reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(body)) + body


HONEST_SERVER = [
    GREETING,
    option_reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK),
    option_reply(wire.OPT_SET_META_CONTEXT, wire.REP_META_CONTEXT, b"\0\0\0\x01base:allocation"),
    option_reply(wire.OPT_SET_META_CONTEXT, wire.REP_ACK),
    option_reply(
        wire.OPT_GO,
        wire.REP_INFO,
        wire.INFO_EXPORT_REPLY.pack(
            wire.INFO_EXPORT, EXPORT_BYTES, wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_TRIM
        ),
    ),
    option_reply(wire.OPT_GO, wire.REP_ACK),
]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """One reply to some request, right or wrong."""
    cookie = draw(st.one_of(st.integers(1, 6), u64))
    flags = draw(st.sampled_from([0, 1, 1, 1, 0xFFFF]))
    kind = draw(st.sampled_from([0, 1, 1, 2, 2, 5, 5, 0x8001, 0x8002, 77, 0xFFFF]))
    offset = draw(st.sampled_from([0, 0, 4096, 65536, EXPORT_BYTES - 512]))
    body = draw(
        st.one_of(
            st.builds(lambda n: struct.pack(">Q", offset) + bytes(n), st.sampled_from([0, 512, 4096, 65536])),
            st.builds(lambda n: wire.HOLE.pack(offset, n), u32),
            st.builds(
                lambda pairs: b"\0\0\0\x01" + b"".join(wire.DESCRIPTOR.pack(*pair) for pair in pairs),
                st.lists(st.tuples(u32, u32), max_size=5),
            ),
            st.builds(
                lambda number, message: struct.pack(">IH", number, len(message)) + message,
                u32,
                st.binary(max_size=9),
            ),
            st.binary(max_size=40),
        )
    )
    if draw(st.integers(0, 5)) == 0:
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, draw(st.sampled_from([0, 5, 22, 9999])), cookie)
    length = len(body) if draw(st.integers(0, 7)) else draw(u32)
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, flags, kind, cookie, length) + body


def use(channel: Channel) -> None:
    """Everything a client does."""
    client = NbdClient(channel, negotiate(channel, "disk", (wire.BASE_ALLOCATION,)))
    steps: list[Callable[[], object]] = [
        lambda: client.map(wire.BASE_ALLOCATION),
        lambda: list(client.read_many([(0, 4096), (4096, 65536), (1 << 19, 1 << 19)])),
        lambda: client.extents(wire.BASE_ALLOCATION, 0, 4096),
        lambda: client.write(0, bytes(512)),
        client.flush,
        lambda: client.trim(0, 4096),
    ]
    for step in steps:
        with contextlib.suppress(NbdError):
            step()
    client.close()


server_frames = st.builds(lambda replies: [*HONEST_SERVER, *replies], st.lists(answers(), max_size=8))


@fuzz
@given(st.one_of(bent(server_frames), st.binary(max_size=200)))
def test_a_hostile_server(transcript: bytes) -> None:
    meet(transcript, use)


@fuzz
@given(
    st.lists(
        st.builds(
            lambda option, kind, body, lie: (
                wire.OPTION_REPLY.pack(
                    wire.OPTION_REPLY_MAGIC, option, kind, len(body) if lie is None else lie
                )
                + body
            ),
            st.sampled_from([3, 6, 7, 7, 8, 8, 10, 10]),
            st.sampled_from([1, 1, 2, 3, 3, 4, 4, 0x80000001, 0x80000005, 0xFFFFFFFF]),
            st.one_of(
                st.binary(max_size=30),
                st.just(b"\0\0\0\x01base:allocation"),
                st.builds(wire.INFO_EXPORT_REPLY.pack, st.just(0), u64, st.integers(0, 65535)),
                st.builds(wire.INFO_BLOCK_SIZE_REPLY.pack, st.just(3), u32, u32, u32),
            ),
            st.one_of(st.none(), st.none(), st.none(), u32),
        ),
        max_size=10,
    )
)
def test_a_server_with_strange_options(replies: list[bytes]) -> None:
    meet(GREETING + b"".join(replies), use)


def test_the_honest_server_of_the_fuzzer_is_understood() -> None:
    """Without this the fuzzer could be bending a transcript that never got past its first byte."""
    seen: list[int] = []

    def use_a_little(channel: Channel) -> None:
        client = NbdClient(channel, negotiate(channel, "disk", (wire.BASE_ALLOCATION,)))
        seen.append(client.size_bytes)
        seen.append(len(client.read(0, 4096)))

    body = struct.pack(">Q", 0) + bytes(4096)
    answer = wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, wire.CHUNK_OFFSET_DATA, 1, len(body)) + body
    meet(b"".join(HONEST_SERVER) + answer, use_a_little)
    assert seen == [EXPORT_BYTES, 4096]


# --- a hostile client ---


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data) if length is None else length) + data


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


CLIENT_HELLO = wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
HONEST_CLIENT = [
    CLIENT_HELLO,
    option(wire.OPT_STRUCTURED_REPLY),
    option(wire.OPT_SET_META_CONTEXT, text(b"disk") + b"\0\0\0\x01" + text(b"base:allocation")),
    option(wire.OPT_GO, text(b"disk") + b"\0\x01\0\x03"),
]

option_frames = st.builds(
    option,
    st.sampled_from([1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99]),
    st.one_of(
        st.binary(max_size=24),
        st.just(text(b"disk") + b"\0\x01\0\x03"),
        st.just(text(b"scratch") + b"\0\0"),
        st.builds(
            lambda count, rest: text(b"disk") + struct.pack(">I", count) + rest, u32, st.binary(max_size=24)
        ),
        st.builds(lambda length, rest: struct.pack(">I", length) + rest, u32, st.binary(max_size=24)),
    ),
    st.one_of(st.none(), st.none(), st.none(), st.none(), u32),
)

requests = st.builds(
    lambda flags, command, cookie, offset, length, tail: (
        wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length) + tail
    ),
    st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 0xFFFF]),
    st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 99]),
    u64,
    st.one_of(st.sampled_from([0, 512, 4096, EXPORT_BYTES - 512]), u64),
    st.one_of(st.sampled_from([0, 1, 512, 4096, 300_000, EXPORT_BYTES]), u32),
    st.one_of(st.just(b""), st.binary(max_size=16), st.just(bytes(512)), st.just(bytes(4096))),
)

client_frames = st.one_of(
    st.builds(lambda more: [*HONEST_CLIENT, *more], st.lists(requests, max_size=10)),
    st.builds(
        lambda more, rest: [CLIENT_HELLO, *more, *rest],
        st.lists(option_frames, max_size=8),
        st.lists(requests, max_size=3),
    ),
)


def answer(channel: Channel) -> None:
    """Everything a server does with one connection."""
    memory = MemoryExport(bytearray(EXPORT_BYTES))
    flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES
    offers = {"disk": Offer(memory, flags), "sealed": Offer(memory, wire.HAS_FLAGS | wire.READ_ONLY)}
    clock = SystemClock()
    opened = Greeting(channel, offers, seconds_max=60, options_max=50, clock=clock).run()
    if opened is not None:
        channel.wait_for_ever()
        Session(channel, opened, clock).run()


@fuzz
@given(st.one_of(bent(client_frames), st.binary(max_size=200)))
def test_a_hostile_client(transcript: bytes) -> None:
    meet(transcript, answer)


def test_the_honest_client_of_the_fuzzer_is_understood() -> None:
    read = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, 42, 0, 512)
    heard = meet(b"".join(HONEST_CLIENT) + read, answer)
    assert heard.endswith(
        wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, wire.CHUNK_OFFSET_DATA, 42, 520)
        + struct.pack(">Q", 0)
        + bytes(512)
    )


def test_a_client_that_asks_for_ever_is_left() -> None:
    seen: list[str] = []

    def answer_and_tell(channel: Channel) -> None:
        with pytest.raises(NbdPeerBroken) as caught:
            answer(channel)
        seen.append(str(caught.value))

    meet(CLIENT_HELLO + option(wire.OPT_LIST) * 60, answer_and_tell)
    assert "more than 50 options" in seen[0]


def test_a_client_that_trickles_its_handshake_is_left() -> None:
    """One byte at a time, each well within the limit on silence; the whole is not."""
    near, far = socket.socketpair()
    channel = Channel(near, "peer", 0.3, SystemClock())
    stop = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.05):
                far.send(b"\0")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        offers = {"disk": Offer(MemoryExport(bytearray(512)), wire.HAS_FLAGS)}
        with pytest.raises((NbdConnectionLost, NbdPeerBroken)):
            Greeting(channel, offers, seconds_max=0.3, options_max=50, clock=SystemClock()).run()
    finally:
        stop.set()
        thread.join()
        far.close()
