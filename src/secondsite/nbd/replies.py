"""The client's decoder of replies: one request's progress, and everything a reply may not do.

A reply belongs to a request by its cookie. With structured replies a read's answer is any number of
chunks, each data or a hole of a part of it; together they cover the request exactly once.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secondsite.nbd import wire
from secondsite.nbd.channel import Channel
from secondsite.nbd.errors import NbdError, NbdRequestRefused, NbdTryAgain

Descriptors = NDArray[np.uint32]  # shape (n, 2): length in bytes, flags

_COMMAND_NAMES = {
    wire.CMD_READ: "read",
    wire.CMD_WRITE: "write",
    wire.CMD_FLUSH: "flush",
    wire.CMD_TRIM: "trim",
    wire.CMD_WRITE_ZEROES: "zero",
    wire.CMD_BLOCK_STATUS: "report the status of",
}


@dataclass
class Request:
    """A request that was sent and what of its answer has come."""

    command: int
    offset: int
    length: int
    target: memoryview | None = None  # where a read's data goes
    covered: int = 0  # bytes of a read that have come, in order
    pieces: list[tuple[int, int]] = field(default_factory=list)  # (start, end) when they came out of order
    error: int = 0  # errno of the server's answer
    message: str = ""
    descriptors: dict[int, Descriptors] = field(default_factory=dict)  # context id -> descriptors
    done: bool = False

    def describe(self) -> str:
        """``read 4096 bytes at 8192``."""
        name = _COMMAND_NAMES[self.command]
        return name if self.command == wire.CMD_FLUSH else f"{name} {self.length} bytes at {self.offset}"

    def failure(self, address: str) -> NbdError | None:
        """The error the server answered with, if it did."""
        if not self.error:
            return None
        kind = NbdTryAgain if self.error in wire.ERRORS_WORTH_A_RETRY else NbdRequestRefused
        why = self.message or os.strerror(self.error)
        return kind(address=address, request=self.describe(), why=why)


def receive_reply(
    channel: Channel, requests: dict[int, Request], head: bytearray, structured: bool
) -> Request:
    """Receive one reply or chunk; returns the request it belongs to, removed from `requests` when done.

    head: a scratch buffer of at least `wire.CHUNK.size` bytes, reused between calls.
    """
    view = memoryview(head)
    if structured:
        # a chunk's head is 4 bytes longer than a simple reply; which comes is in the first 4
        channel.receive_into(view[: wire.SIMPLE_REPLY.size])
        if head[:4] == _CHUNK_MAGIC_BYTES:
            channel.receive_into(view[wire.SIMPLE_REPLY.size : wire.CHUNK.size])
            return _chunk(channel, requests, head)
    else:
        channel.receive_into(view[: wire.SIMPLE_REPLY.size])
    return _simple(channel, requests, head, structured)


_CHUNK_MAGIC_BYTES = wire.CHUNK_MAGIC.to_bytes(4, "big")


def _simple(channel: Channel, requests: dict[int, Request], head: bytearray, structured: bool) -> Request:
    magic, error, cookie = wire.SIMPLE_REPLY.unpack_from(head)
    if magic != wire.SIMPLE_MAGIC:
        raise channel.broken(f"a reply begins with {magic:#x}")
    request = requests.pop(cookie, None)
    if request is None:
        raise channel.broken(f"a reply to the cookie {cookie:#x}, which no request has")
    request.done = True
    if (
        structured
        and request.command in {wire.CMD_READ, wire.CMD_BLOCK_STATUS}
        and not (
            # QEMU 7.2 and others answer a request they refuse before looking at it with a simple error
            error and not request.covered and not request.pieces
        )
    ):
        raise channel.broken(f"a simple reply to a request to {request.describe()}")
    if error:
        request.error = wire.ERRORS.get(error, errno.EIO if error == 0 else errno.EINVAL)
    elif request.target is not None:
        channel.receive_into(request.target)
    return request


def _chunk(channel: Channel, requests: dict[int, Request], head: bytearray) -> Request:
    _, flags, kind, cookie, length = wire.CHUNK.unpack_from(head)
    request = requests.get(cookie)
    if request is None:
        raise channel.broken(f"a reply to the cookie {cookie:#x}, which no request has")
    if kind == wire.CHUNK_OFFSET_DATA:
        _data(channel, request, length)
    elif kind == wire.CHUNK_OFFSET_HOLE:
        _hole(channel, request, length)
    elif kind == wire.CHUNK_BLOCK_STATUS:
        _block_status(channel, request, length)
    elif kind & wire.CHUNK_IS_ERROR:
        _error(channel, request, kind, length)
    elif kind != wire.CHUNK_NONE or length or not flags & wire.CHUNK_FLAG_DONE:
        raise channel.broken(f"a chunk of type {kind} with {length} bytes and flags {flags:#x}")
    if flags & wire.CHUNK_FLAG_DONE:
        del requests[cookie]
        request.done = True
        if not request.error:
            _check_complete(channel, request)
    return request


def _data(channel: Channel, request: Request, length: int) -> None:
    if request.target is None or length <= wire.DATA_OFFSET.size:
        raise channel.broken(f"a data chunk of {length} bytes for a request to {request.describe()}")
    (offset,) = wire.DATA_OFFSET.unpack(channel.receive(wire.DATA_OFFSET.size))
    part = _part(channel, request, offset, length - wire.DATA_OFFSET.size)
    channel.receive_into(part)


def _hole(channel: Channel, request: Request, length: int) -> None:
    if request.target is None or length != wire.HOLE.size:
        raise channel.broken(f"a hole chunk of {length} bytes for a request to {request.describe()}")
    offset, hole_length = wire.HOLE.unpack(channel.receive(wire.HOLE.size))
    part = _part(channel, request, offset, hole_length)
    part[:] = bytes(len(part))


def _part(channel: Channel, request: Request, offset: int, length: int) -> memoryview:
    """The part of the target a chunk fills, after checking that it is inside and not filled before."""
    start = offset - request.offset
    if start < 0 or not 0 < length <= request.length - start:
        raise channel.broken(f"a chunk of {length} bytes at {offset} for a request to {request.describe()}")
    if start == request.covered:
        request.covered += length
    else:
        request.pieces.append((start, start + length))
        if len(request.pieces) > request.length // 512:
            raise channel.broken("chunks of less than 512 bytes in disorder")
    assert request.target is not None
    return request.target[start : start + length]


def _check_complete(channel: Channel, request: Request) -> None:
    if request.command == wire.CMD_BLOCK_STATUS:
        if not request.descriptors:
            raise channel.broken(f"no status in the answer to a request to {request.describe()}")
        return
    if request.target is None:
        return
    covered = request.covered
    for start, end in sorted(request.pieces):
        if start != covered:
            break
        covered = end
    if covered != request.length or sum(e - s for s, e in request.pieces) != covered - request.covered:
        raise channel.broken(f"an answer that does not cover the request to {request.describe()} once")


def _block_status(channel: Channel, request: Request, length: int) -> None:
    count, rest = divmod(length - wire.CONTEXT_ID.size, wire.DESCRIPTOR.size)
    if request.command != wire.CMD_BLOCK_STATUS or rest or not 1 <= count <= wire.DESCRIPTORS_MAX:
        raise channel.broken(f"a status chunk of {length} bytes for a request to {request.describe()}")
    body = channel.receive(length)
    (context,) = wire.CONTEXT_ID.unpack_from(body)
    # one array per chunk, converted at C speed: a 64 GiB disk in 64 KiB pieces has a million descriptors
    descriptors = (
        np.frombuffer(body, dtype=">u4", offset=wire.CONTEXT_ID.size).astype(np.uint32).reshape(-1, 2)
    )
    if context in request.descriptors:
        raise channel.broken(f"two status chunks for context {context}")
    if len(request.descriptors) >= 64:
        raise channel.broken("status chunks for more than 64 contexts")
    if not descriptors[:, 0].all():
        raise channel.broken("a status descriptor of no length")
    # all but the last lie inside the request; the last may reach beyond it
    if int(descriptors[:-1, 0].sum(dtype=np.int64)) >= request.length:
        raise channel.broken("status descriptors beyond the request")
    request.descriptors[context] = descriptors


def _error(channel: Channel, request: Request, kind: int, length: int) -> None:
    if not wire.ERROR_HEAD.size <= length <= wire.ERROR_HEAD.size + wire.NAME_BYTES_MAX + 8:
        raise channel.broken(f"an error chunk of {length} bytes")
    body = channel.receive(length)
    error, message_length = wire.ERROR_HEAD.unpack_from(body)
    rest = length - wire.ERROR_HEAD.size - message_length
    if error == 0 or rest < 0 or (kind == wire.CHUNK_ERROR_OFFSET and rest != 8):
        raise channel.broken(f"an error chunk of {length} bytes with a message of {message_length}")
    if not request.error:  # the first one counts: later ones may be its consequence
        request.error = wire.ERRORS.get(error, errno.EINVAL)
        text = body[wire.ERROR_HEAD.size : wire.ERROR_HEAD.size + message_length]
        request.message = text.decode(errors="replace")
