"""The server's side of the fixed newstyle handshake: from a fresh connection to an opened export.

Every length a client names is checked before memory is taken for it; the number of options and the time
for the whole handshake are limited (`ServerLimits`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.base.units import KIB
from secondsite.nbd import wire
from secondsite.nbd.channel import Channel
from secondsite.nbd.exports import Export

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
CONTEXT_ALLOCATION_ID = 1
_QUERIES_MAX = 64  # we have one context; whoever asks for more than this many means something else


@dataclass(frozen=True)
class Offer:
    """An export as a server offers it."""

    export: Export
    flags: int  # transmission flags


@dataclass(frozen=True)
class Opened:
    """How the handshake ended."""

    name: str
    offer: Offer
    structured: bool
    allocation: bool  # base:allocation was agreed on


class Greeting:
    """One client's handshake."""

    def __init__(
        self,
        channel: Channel,
        offers: Mapping[str, Offer],
        *,
        seconds_max: float,
        options_max: int,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._offers = offers
        self._clock = clock
        self._ends_at = clock.monotonic() + seconds_max
        self._options_max = options_max
        self._no_zeroes = False
        self._structured = False
        # the context agreed on holds for one export; GO for another one forgets it (protocol)
        self._allocation_of: str | None = None

    def run(self) -> Opened | None:
        """Answer options until one opens an export; None when the client says goodbye.

        Raises:
            NbdPeerBroken, NbdConnectionLost: it is not worth talking to.
        """
        channel = self._channel
        channel.send(
            wire.GREETING.pack(
                wire.NBD_MAGIC, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
            )
        )
        (flags,) = wire.CLIENT_FLAGS.unpack(channel.receive(wire.CLIENT_FLAGS.size))
        if flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES) or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise channel.broken(f"client flags {flags:#x}")
        self._no_zeroes = bool(flags & wire.FLAG_NO_ZEROES)
        for _ in range(self._options_max):
            if self._clock.monotonic() > self._ends_at:
                raise channel.broken("a handshake without an end")
            magic, option, length = wire.OPTION.unpack(channel.receive(wire.OPTION.size))
            if magic != wire.OPTION_MAGIC or length > wire.OPTION_BYTES_MAX:
                raise channel.broken(f"an option of {length} bytes with magic {magic:#x}")
            data = bytes(channel.receive(length))
            if option == wire.OPT_ABORT:
                self._reply(option, wire.REP_ACK)
                return None
            opened = self._answer(option, data)
            if opened is not None:
                return opened
        raise channel.broken(f"more than {self._options_max} options")

    def _answer(self, option: int, data: bytes) -> Opened | None:
        if option == wire.OPT_EXPORT_NAME:
            return self._export_name(data)
        if option == wire.OPT_LIST:
            self._list(data)
        elif option in {wire.OPT_INFO, wire.OPT_GO}:
            return self._info(option, data)
        elif option == wire.OPT_STRUCTURED_REPLY:
            self._structured = self._structured or not data
            self._reply(option, wire.REP_ERR_INVALID if data else wire.REP_ACK)
        elif option in {wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT}:
            self._meta_context(option, data)
        else:
            self._reply(option, wire.REP_ERR_UNSUP)
        return None

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._channel.send(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _opened(self, name: str) -> Opened:
        return Opened(name, self._offers[name], self._structured, self._allocation_of == name)

    def _export_name(self, data: bytes) -> Opened:
        """The old way to open: there is no way to refuse but to hang up."""
        name = data.decode(errors="replace")
        if name not in self._offers:
            raise self._channel.broken(f"there is no export {name[:80]!r}")
        offer = self._offers[name]
        reply = wire.EXPORT_NAME_REPLY.pack(offer.export.size_bytes, offer.flags)
        self._channel.send(reply if self._no_zeroes else reply + bytes(124))
        return self._opened(name)

    def _list(self, data: bytes) -> None:
        if data:
            self._reply(wire.OPT_LIST, wire.REP_ERR_INVALID)
            return
        for name in self._offers:
            encoded = name.encode()
            self._reply(wire.OPT_LIST, wire.REP_SERVER, _U32.pack(len(encoded)) + encoded)
        self._reply(wire.OPT_LIST, wire.REP_ACK)

    def _info(self, option: int, data: bytes) -> Opened | None:
        named = _take_name(data)
        requests = named[1] if named else b""
        if named is None or len(requests) < 2 or len(requests) != 2 + 2 * _U16.unpack_from(requests)[0]:
            self._reply(option, wire.REP_ERR_INVALID)
            return None
        name = named[0]
        offer = self._offers.get(name)
        if offer is None:
            self._reply(option, wire.REP_ERR_UNKNOWN)
            return None
        size = offer.export.size_bytes
        self._reply(option, wire.REP_INFO, wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, size, offer.flags))
        asked = {kind for (kind,) in _U16.iter_unpack(requests[2:])}
        if wire.INFO_NAME in asked:
            self._reply(option, wire.REP_INFO, _U16.pack(wire.INFO_NAME) + name.encode())
        if wire.INFO_BLOCK_SIZE in asked:
            sizes = wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, 1, 4 * KIB, wire.PAYLOAD_BYTES_MAX)
            self._reply(option, wire.REP_INFO, sizes)
        self._reply(option, wire.REP_ACK)
        return self._opened(name) if option == wire.OPT_GO else None

    def _meta_context(self, option: int, data: bytes) -> None:
        self._allocation_of = None if option == wire.OPT_SET_META_CONTEXT else self._allocation_of
        parsed = _take_queries(data) if self._structured else None
        if parsed is None:
            self._reply(option, wire.REP_ERR_INVALID)
            return
        name, queries = parsed
        if name not in self._offers:
            self._reply(option, wire.REP_ERR_UNKNOWN)
            return
        listing = option == wire.OPT_LIST_META_CONTEXT
        wanted = wire.BASE_ALLOCATION in queries or (listing and (not queries or "base:" in queries))
        if wanted:
            if not listing:
                self._allocation_of = name
            body = _U32.pack(CONTEXT_ALLOCATION_ID) + wire.BASE_ALLOCATION.encode()
            self._reply(option, wire.REP_META_CONTEXT, body)
        self._reply(option, wire.REP_ACK)


def _take_name(data: bytes) -> tuple[str, bytes] | None:
    """A string with its length before it, and what follows; None when it does not fit."""
    if len(data) < _U32.size:
        return None
    (length,) = _U32.unpack_from(data)
    if length > min(wire.NAME_BYTES_MAX, len(data) - _U32.size):
        return None
    end = _U32.size + length
    return data[_U32.size : end].decode(errors="replace"), data[end:]


def _take_queries(data: bytes) -> tuple[str, list[str]] | None:
    named = _take_name(data)
    if named is None or len(named[1]) < _U32.size:
        return None
    name, rest = named
    (count,) = _U32.unpack_from(rest)
    rest = rest[_U32.size :]
    queries: list[str] = []
    while rest and len(queries) < _QUERIES_MAX:
        query = _take_name(rest)
        if query is None:
            return None
        queries.append(query[0])
        rest = query[1]
    return (name, queries) if len(queries) == count and not rest else None
