"""The client's side of the fixed newstyle handshake: from a fresh connection to the transmission.

Options in order: STRUCTURED_REPLY, SET_META_CONTEXT, GO (asking for block sizes). No STARTTLS: we read
exports over unix sockets of the host we run on; what leaves the host goes through transfer/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from secondsite.base.units import KIB
from secondsite.nbd import wire
from secondsite.nbd.channel import Channel
from secondsite.nbd.errors import NbdNotOffered

_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")


@dataclass(frozen=True)
class BlockSizes:
    """What requests have to look like, in bytes."""

    minimum: int = 1  # offsets and lengths are multiples of it
    preferred: int = 4 * KIB
    maximum: int = wire.PAYLOAD_BYTES_MAX  # of one read or write


@dataclass(frozen=True)
class Negotiated:
    """What the handshake ended with."""

    size_bytes: int
    flags: int  # transmission flags
    structured: bool
    contexts: dict[str, int]  # name -> id in block status replies
    block_sizes: BlockSizes = field(default_factory=BlockSizes)


def negotiate(channel: Channel, export_name: str, contexts: Sequence[str]) -> Negotiated:
    """Open an export on a fresh connection.

    Raises:
        NbdNotOffered: no such export, or the server lacks one of `contexts`.
        NbdPeerBroken, NbdConnectionLost: see errors.py.
    """
    _greet(channel)
    structured = _ask_structured(channel)
    name = _name_bytes(export_name)
    granted = _ask_contexts(channel, name, export_name, contexts, structured) if contexts else {}
    data = _U32.pack(len(name)) + name + _U16.pack(1) + _U16.pack(wire.INFO_BLOCK_SIZE)
    size_bytes = flags = -1
    sizes = BlockSizes()
    for kind, body in _ask(channel, wire.OPT_GO, data, f"the export {export_name!r}"):
        if kind != wire.REP_INFO or len(body) < _U16.size:
            raise channel.broken(f"it answered GO with reply type {kind:#x} of {len(body)} bytes")
        (info,) = _U16.unpack_from(body)
        if info == wire.INFO_EXPORT:
            _, size_bytes, flags = _unpack(channel, wire.INFO_EXPORT_REPLY, body)
        elif info == wire.INFO_BLOCK_SIZE:
            sizes = _block_sizes(channel, body)
    if not 0 <= size_bytes <= wire.EXPORT_BYTES_MAX or not flags & wire.HAS_FLAGS:
        raise channel.broken(f"it offers a disk of {size_bytes} bytes with flags {flags:#x}")
    return Negotiated(size_bytes, flags, structured, granted, sizes)


def list_exports(channel: Channel) -> list[str]:
    """Names of all exports of a server, on a fresh connection that is of no other use afterwards."""
    _greet(channel)
    names = []
    for kind, body in _ask(channel, wire.OPT_LIST, b"", "a list of its exports"):
        if kind != wire.REP_SERVER or len(body) < _U32.size:
            raise channel.broken(f"it answered LIST with reply type {kind:#x} of {len(body)} bytes")
        (length,) = _U32.unpack_from(body)
        if length > min(len(body) - _U32.size, wire.NAME_BYTES_MAX):
            raise channel.broken(f"it lists a name of {length} bytes in a reply of {len(body)}")
        names.append(bytes(body[_U32.size : _U32.size + length]).decode(errors="replace"))
    channel.send(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_ABORT, 0))
    return names


def _greet(channel: Channel) -> None:
    magic, version, flags = wire.GREETING.unpack(channel.receive(wire.GREETING.size))
    if magic != wire.NBD_MAGIC or version != wire.OPTION_MAGIC:
        raise channel.broken("its greeting is not that of a newstyle NBD server")
    if not flags & wire.FLAG_FIXED_NEWSTYLE:
        raise channel.broken("it speaks only the newstyle of before 2011, which cannot refuse an option")
    channel.send(wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE | (flags & wire.FLAG_NO_ZEROES)))


def _ask_structured(channel: Channel) -> bool:
    try:
        for kind, _ in _ask(channel, wire.OPT_STRUCTURED_REPLY, b"", "structured replies"):
            raise channel.broken(f"it answered STRUCTURED_REPLY with reply type {kind:#x}")
    except NbdNotOffered:
        return False
    return True


def _ask_contexts(
    channel: Channel, name: bytes, export_name: str, contexts: Sequence[str], structured: bool
) -> dict[str, int]:
    wanted = set(contexts)
    granted: dict[str, int] = {}
    if structured:
        data = _U32.pack(len(name)) + name + _U32.pack(len(contexts))
        for context in contexts:
            query = _name_bytes(context)
            data += _U32.pack(len(query)) + query
        what = f"{', '.join(contexts)} of export {export_name!r}"
        for kind, body in _ask(channel, wire.OPT_SET_META_CONTEXT, data, what):
            if kind != wire.REP_META_CONTEXT or len(body) < _U32.size:
                raise channel.broken(f"it answered SET_META_CONTEXT with reply type {kind:#x}")
            context = bytes(body[_U32.size :]).decode(errors="replace")
            # nothing but what was asked for by its full name may come; a second id for a name neither
            if context not in wanted or context in granted:
                raise channel.broken(f"it granted the context {context[:80]!r}, which nobody asked for")
            (granted[context],) = _U32.unpack_from(body)
        if len(set(granted.values())) != len(granted):
            raise channel.broken("it gave one id to two contexts")
    missing = [context for context in contexts if context not in granted]
    if missing:
        channel.close()
        raise NbdNotOffered(
            address=channel.address,
            what=f"{', '.join(missing)} of export {export_name!r}",
            why="it has no such metadata context" if structured else "it has no structured replies",
        )
    return granted


def _ask(channel: Channel, option: int, data: bytes, what: str) -> Iterator[tuple[int, bytearray]]:
    """Send one option; yield its replies until the acknowledgement.

    The connection goes on after a refused STRUCTURED_REPLY; after any other refusal it is closed.
    """
    channel.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
    for _ in range(wire.OPTION_REPLIES_MAX):
        magic, of, kind, length = wire.OPTION_REPLY.unpack(channel.receive(wire.OPTION_REPLY.size))
        if magic != wire.OPTION_REPLY_MAGIC or of != option:
            raise channel.broken(f"it answered option {option} with one for {of} (magic {magic:#x})")
        if length > wire.OPTION_BYTES_MAX:
            raise channel.broken(f"an option reply of {length} bytes")
        body = channel.receive(length)
        if kind == wire.REP_ACK:
            return
        if kind & wire.REP_ERROR:
            if option != wire.OPT_STRUCTURED_REPLY:
                channel.close()
            why = wire.REP_ERROR_NAMES.get(kind, f"error {kind & ~wire.REP_ERROR}")
            text = body[: wire.NAME_BYTES_MAX].decode(errors="replace")
            raise NbdNotOffered(address=channel.address, what=what, why=f"{why} ({text})" if text else why)
        yield kind, body
    raise channel.broken(f"more than {wire.OPTION_REPLIES_MAX} replies to option {option}")


def _block_sizes(channel: Channel, body: bytearray) -> BlockSizes:
    _, minimum, preferred, maximum = _unpack(channel, wire.INFO_BLOCK_SIZE_REPLY, body)
    power_of_two = minimum & (minimum - 1) == 0
    if not power_of_two or not 1 <= minimum <= 64 * KIB or preferred < minimum or maximum < minimum:
        raise channel.broken(f"it offers block sizes {minimum}, {preferred} and {maximum}")
    # the protocol's "no limit" is 2^32-1; ours is lower
    return BlockSizes(minimum, preferred, min(maximum, wire.PAYLOAD_BYTES_MAX) // minimum * minimum)


def _unpack(channel: Channel, structure: struct.Struct, body: bytearray) -> tuple[int, ...]:
    if len(body) != structure.size:
        raise channel.broken(f"an information reply of {len(body)} bytes where {structure.size} belong")
    return structure.unpack(body)


def _name_bytes(name: str) -> bytes:
    encoded = name.encode()
    assert len(encoded) <= wire.NAME_BYTES_MAX, "names are checked where they are read"
    return encoded
