"""The server's transmission phase of one connection, on a thread of its own.

Requests are taken from the socket as many as have come, answered in order, and the answers of a batch
leave in one send: a client that keeps 16 small reads in flight costs two system calls for all of them.
Memory per connection is fixed: one buffer for requests, one for answers; a peer that does not read its
answers blocks this thread and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import GIB, KIB, MIB
from secondsite.nbd import wire
from secondsite.nbd.channel import Channel
from secondsite.nbd.exports import Export, WritableExport
from secondsite.nbd.greeting import CONTEXT_ALLOCATION_ID, Opened

_REQUESTS_BYTES = 64 * KIB  # 2,340 requests; also the first part of a write's data
_CHUNK_DATA_BYTES = 256 * KIB  # of one data chunk; longer reads are answered in several
_ANSWERS_BYTES = _CHUNK_DATA_BYTES + 4 * KIB
_WRITE_BYTES = MIB  # a longer write is applied in pieces of this
# An answer that is ready waits no longer than this for those behind it
_HELD_SECONDS_MAX = 0.0005
# How far one status request looks: a fragmented view is asked about no more at a time
_STATUS_SPAN_BYTES = GIB
_STATUS_DESCRIPTORS_MAX = 16 * 1024

_CHUNK_HEAD = wire.CHUNK.size + wire.DATA_OFFSET.size
_STATES = {False: 0, True: wire.STATE_HOLE | wire.STATE_ZERO}


class Session:
    """One opened export on one connection."""

    def __init__(self, channel: Channel, opened: Opened, clock: Clock) -> None:
        self._channel = channel
        self._opened = opened
        self._clock = clock
        self._export: Export = opened.offer.export
        self._size_bytes = self._export.size_bytes
        self._in = bytearray(_REQUESTS_BYTES)
        self._in_view = memoryview(self._in)
        self._in_start = self._in_end = 0
        self._out = bytearray(_ANSWERS_BYTES)
        self._out_view = memoryview(self._out)
        self._out_end = 0
        self._held_since = 0.0
        self._writes: dict[int, Callable[[int, int, int, int], None]] = {
            wire.CMD_WRITE: self._write,
            wire.CMD_WRITE_ZEROES: self._zero,
            wire.CMD_TRIM: self._zero,
        }

    def run(self) -> None:
        """Answer requests until the client disconnects.

        Raises:
            NbdConnectionLost, NbdPeerBroken: the connection is closed.
        """
        size = wire.REQUEST.size
        while True:
            while self._in_end - self._in_start >= size:
                magic, flags, command, cookie, offset, length = wire.REQUEST.unpack_from(
                    self._in, self._in_start
                )
                self._in_start += size
                if magic != wire.REQUEST_MAGIC:
                    raise self._channel.broken(f"a request begins with {magic:#x}")
                if command == wire.CMD_READ:
                    self._read(flags, cookie, offset, length)
                elif command == wire.CMD_DISC:
                    self._send_held()
                    return
                else:
                    self._other(command, flags, cookie, offset, length)
                if self._out_end and self._clock.monotonic() - self._held_since > _HELD_SECONDS_MAX:
                    self._send_held()
            self._send_held()
            if not self._more():
                return

    # --- bytes in and out ---

    def _more(self) -> bool:
        """Receive what has come, at least one byte; False at the end of the stream between requests."""
        rest = self._in_end - self._in_start
        if rest:
            self._in[:rest] = self._in[self._in_start : self._in_end]
        self._in_start, self._in_end = 0, rest
        count = self._channel.receive_some(self._in_view[rest:])
        self._in_end += count
        if not count and rest:
            raise self._channel.broken("the connection ended inside a request")
        self._held_since = self._clock.monotonic()
        return count > 0

    def _send_held(self) -> None:
        if self._out_end:
            self._channel.send(self._out_view[: self._out_end])
            self._out_end = 0
            self._held_since = self._clock.monotonic()

    def _room(self, length: int) -> int:
        """Where in the answers' buffer `length` bytes may go; sends what is held when there is no room."""
        if self._out_end + length > _ANSWERS_BYTES:
            self._send_held()
        return self._out_end

    def _answer(self, cookie: int, error: int = 0) -> None:
        """Success without data, or an error."""
        if error and self._opened.structured:
            body = wire.ERROR_HEAD.pack(error, 0)
            self._put(
                wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_FLAG_DONE, wire.CHUNK_ERROR, cookie, len(body))
                + body
            )
        else:
            self._put(wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, error, cookie))

    def _put(self, data: bytes) -> None:
        start = self._room(len(data))
        self._out_view[start : start + len(data)] = data
        self._out_end = start + len(data)

    # --- commands ---

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        error = self._refusal(flags, wire.CMD_FLAG_DF, offset, length)
        if not error and length > wire.PAYLOAD_BYTES_MAX:
            error = errno.EINVAL
        if not error and flags & wire.CMD_FLAG_DF and length > _CHUNK_DATA_BYTES:
            error = errno.EOVERFLOW  # the protocol's answer to a read too long for one chunk
        if error or not length:
            self._answer(cookie, error or errno.EINVAL)
        elif self._opened.structured:
            self._read_chunks(cookie, offset, length)
        else:
            self._read_simple(cookie, offset, length)

    def _read_chunks(self, cookie: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            count = min(_CHUNK_DATA_BYTES, end - offset)
            start = self._room(_CHUNK_HEAD + count)
            error = self._fill(offset, start + _CHUNK_HEAD, count)
            if error:
                self._answer(cookie, error)
                return
            flags = wire.CHUNK_FLAG_DONE if offset + count == end else 0
            wire.CHUNK.pack_into(
                self._out,
                start,
                wire.CHUNK_MAGIC,
                flags,
                wire.CHUNK_OFFSET_DATA,
                cookie,
                wire.DATA_OFFSET.size + count,
            )
            wire.DATA_OFFSET.pack_into(self._out, start + wire.CHUNK.size, offset)
            self._out_end = start + _CHUNK_HEAD + count
            offset += count

    def _read_simple(self, cookie: int, offset: int, length: int) -> None:
        """The head promises success, so an error after it can only end the connection (protocol)."""
        head = wire.SIMPLE_REPLY.size
        first = min(_CHUNK_DATA_BYTES, length)
        start = self._room(head + first)
        error = self._fill(offset, start + head, first)
        if error:
            self._answer(cookie, error)
            return
        wire.SIMPLE_REPLY.pack_into(self._out, start, wire.SIMPLE_MAGIC, 0, cookie)
        self._out_end = start + head + first
        for at in range(offset + first, offset + length, _CHUNK_DATA_BYTES):
            count = min(_CHUNK_DATA_BYTES, offset + length - at)
            start = self._room(count)
            if self._fill(at, start, count):
                raise self._channel.broken("a read failed after its answer had begun")
            self._out_end = start + count

    def _fill(self, offset: int, start: int, count: int) -> int:
        """Read into the answers' buffer; returns the protocol's error number, 0 for none."""
        try:
            self._export.read_into(offset, self._out_view[start : start + count])
        except (OSError, SecondsiteError) as error:
            return error_number(error)
        return 0

    def _refusal(self, flags: int, flags_allowed: int, offset: int, length: int) -> int:
        if flags & ~(flags_allowed | wire.CMD_FLAG_FUA) or offset + length > self._size_bytes:
            return errno.EINVAL
        return 0

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command in self._writes:
            self._writes[command](flags, cookie, offset, length)
        elif command == wire.CMD_FLUSH:
            self._flush(flags, cookie, offset, length)
        elif command == wire.CMD_BLOCK_STATUS and self._opened.allocation:
            self._status(flags, cookie, offset, length)
        else:
            self._answer(cookie, errno.EINVAL)

    def _status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        error = self._refusal(flags, wire.CMD_FLAG_REQ_ONE, offset, length)
        if error or not length:
            self._answer(cookie, error or errno.EINVAL)
            return
        try:
            found = self._export.extents(offset, min(length, _STATUS_SPAN_BYTES))
        except (OSError, SecondsiteError) as failure:
            self._answer(cookie, error_number(failure))
            return
        limit = 1 if flags & wire.CMD_FLAG_REQ_ONE else _STATUS_DESCRIPTORS_MAX
        body = bytearray(wire.CONTEXT_ID.pack(CONTEXT_ALLOCATION_ID))
        for start, end, is_zero in _whole(found, offset, min(length, _STATUS_SPAN_BYTES))[:limit]:
            body += wire.DESCRIPTOR.pack(end - start, _STATES[is_zero])
        self._put(
            wire.CHUNK.pack(
                wire.CHUNK_MAGIC, wire.CHUNK_FLAG_DONE, wire.CHUNK_BLOCK_STATUS, cookie, len(body)
            )
            + body
        )

    def _write(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if length > wire.PAYLOAD_BYTES_MAX:
            raise self._channel.broken(f"a write of {length} bytes")
        self._send_held()  # what comes next may take long
        error = self._refusal(flags, 0, offset, length)
        export = self._writable()
        error = error or (0 if export else errno.EPERM)
        buffer = memoryview(bytearray(min(length, _WRITE_BYTES)))
        at = 0
        while at < length:  # also after an error: the data is on its way
            piece = buffer[: min(_WRITE_BYTES, length - at)]
            self._take(piece)
            if export and not error:
                error = attempt(lambda: export.write(offset + at, piece))  # noqa: B023 - called at once
            at += len(piece)
        if export and not error and flags & wire.CMD_FLAG_FUA:
            error = attempt(export.flush)
        self._answer(cookie, error)

    def _take(self, piece: memoryview) -> None:
        """Fill `piece` from what has been received and what is to come."""
        have = min(len(piece), self._in_end - self._in_start)
        piece[:have] = self._in_view[self._in_start : self._in_start + have]
        self._in_start += have
        if have < len(piece):
            self._channel.receive_into(piece[have:])

    def _zero(self, flags: int, cookie: int, offset: int, length: int) -> None:
        error = self._refusal(flags, wire.CMD_FLAG_NO_HOLE, offset, length)
        export = self._writable()
        error = error or (0 if export else errno.EPERM)
        if export and not error and length:
            may_punch = not flags & wire.CMD_FLAG_NO_HOLE
            error = attempt(lambda: export.zero(offset, length, may_punch))
        if export and not error and flags & wire.CMD_FLAG_FUA:
            error = attempt(export.flush)
        self._answer(cookie, error)

    def _flush(self, flags: int, cookie: int, offset: int, length: int) -> None:
        export = self._writable()
        error = errno.EINVAL if flags or offset or length else 0
        self._answer(cookie, attempt(export.flush) if export and not error else error)

    def _writable(self) -> WritableExport | None:
        if self._opened.offer.flags & wire.READ_ONLY:
            return None
        assert isinstance(self._export, WritableExport), "the server offers it as writable"
        return self._export


def attempt(call: Callable[[], None]) -> int:
    """Carry out; returns the protocol's error number, 0 for none."""
    try:
        call()
    except (OSError, SecondsiteError) as error:
        return error_number(error)
    return 0


def error_number(error: OSError | SecondsiteError) -> int:
    """What the protocol calls this error; what it has no number for is an I/O error."""
    number = error.errno if isinstance(error, OSError) else None
    return wire.ERROR_OF_ERRNO.get(number or 0, 5)


def _whole(found: Sequence[tuple[int, int, bool]], offset: int, length: int) -> list[tuple[int, int, bool]]:
    """Extents that cover the range exactly: gaps filled as data, equal neighbours joined."""
    whole: list[tuple[int, int, bool]] = []
    at, end = offset, offset + length

    def add(until: int, is_zero: bool) -> None:
        nonlocal at
        if until > at:
            if whole and whole[-1][2] == is_zero:
                whole[-1] = (whole[-1][0], until, is_zero)
            else:
                whole.append((at, until, is_zero))
            at = until

    for start, stop, is_zero in found:
        add(min(start, end), is_zero=False)
        add(min(stop, end), is_zero=bool(is_zero))
    add(end, is_zero=False)
    return whole
