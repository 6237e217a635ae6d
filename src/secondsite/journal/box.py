"""A sealed box: a small secret (a data key, a machine's definition) under the vault key.

Each box has a key of its own, derived from the vault key and the salt in its header; the header is bound as
associated data.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secondsite.journal.errors import WrongKey, damaged
from secondsite.journal.format import (
    BOX_FLAG_LATER_KEY,
    BOX_HEADER,
    BOX_MAGIC,
    BOX_PLAIN_BYTES_MAX,
    BOX_WRAPPED_KEY,
    TAG_BYTES,
    VERSION,
    check_version,
    checksum,
)
from secondsite.model.ids import KeyId

KEY_BYTES = 32
_NONCE = bytes(12)  # one message a key


def derive(secret: bytes, salt: bytes, purpose: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=b"secondsite 1 " + purpose).derive(secret)


def _box_key(secret: bytes, salt: bytes, kind: int) -> AESGCM:
    return AESGCM(derive(secret, salt, b"box " + str(kind).encode()))


def seal_box(
    kind: int,
    vault_id: KeyId,
    secret: bytes,
    plain: bytes,
    *,
    required: int = 0,
    randomness: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """Seal `plain` (at most 8 MiB) under the vault key. required: flags a reader must know."""
    assert len(plain) <= BOX_PLAIN_BYTES_MAX
    salt = randomness(32)
    head = BOX_HEADER.pack(
        BOX_MAGIC, VERSION, kind, required, 0, len(plain), bytes.fromhex(vault_id), salt, 0
    )[:-8]
    head += checksum(head).to_bytes(8, "little")
    return head + _box_key(secret, salt, kind).encrypt(_NONCE, plain, head)


def box_key_id(data: bytes) -> str:
    """The id of the vault key a box names, unchecked; empty when it is too short to name one."""
    if len(data) < BOX_HEADER.size:
        return ""
    identity: bytes = BOX_HEADER.unpack_from(data)[6]
    return identity.hex()


def open_box(kind: int, vault_id: KeyId, secret: bytes, data: bytes, *, what: str) -> bytes:
    """Open a box.

    Raises:
        WrongKey: it names another vault key. ObjectDamaged, FormatUnknown: as their names say.
    """
    if len(data) < BOX_HEADER.size + TAG_BYTES:
        raise damaged(what, f"it has only {len(data)} bytes")
    head = data[: BOX_HEADER.size]
    magic, version, found, required, _, length, identity, salt, head_sum = BOX_HEADER.unpack(head)
    known = BOX_FLAG_LATER_KEY if found == BOX_WRAPPED_KEY else 0
    check_version(what, magic, BOX_MAGIC, version, required & ~known)
    if checksum(head[:-8]) != head_sum:
        raise damaged(what, "the checksum of its header does not fit")
    if found != kind:
        raise damaged(what, f"it is of kind {found} instead of {kind}")
    if length != len(data) - BOX_HEADER.size - TAG_BYTES:
        raise damaged(what, "its length does not fit its header")
    if identity.hex() != vault_id:
        raise WrongKey(what=what, needed=identity.hex(), given=vault_id)
    try:
        return _box_key(secret, salt, kind).decrypt(_NONCE, data[BOX_HEADER.size :], head)
    except InvalidTag:
        raise damaged(what, "its seal does not fit its content") from None
