"""Registration keys: what a person carries from a vault to a new gateway, once.

A key says where the server is and how to know it (the fingerprint of its authority's certificate), so that a
gateway trusts nobody on first contact but the server the key came from. Its secret is the seed of an Ed25519
key pair: the server keeps the public half only, and a gateway signs its request with the other. (With a code
of the HMAC kind, what the server must keep to check it would be enough to enrol with.)

    ssrk1_<base64url, no padding, of:>

    offset  size  field
    0       4     magic SSRK
    4       1     version, 1
    5       1     flags: 1 = the server's own certificate is of an authority the system trusts
    6       2     length n of the server's URL
    8       8     end, seconds since 1970; for people: the server's own clock decides
    16      16    the key's id
    32      32    the secret
    64      32    SHA-256 of the authority's certificate (DER)
    96      n     the server's URL, UTF-8
    96+n    4     the first bytes of the SHA-256 of all before: a mistyped key is told from a wrong one
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secondsite.base.errors import InvalidInput

PREFIX = "ssrk1_"
MAGIC = b"SSRK"
VERSION = 1
FLAG_SYSTEM_TRUST = 1
HEADER = struct.Struct("<4sBBHQ16s32s32s")
CHECK_BYTES = 4
SECRET_BYTES = 32
URL_BYTES_MAX = 512
TEXT_BYTES_MAX = 2048

_HIDDEN = re.compile(r"ssrk1_[0-9A-Za-z_=-]*")


@dataclass(frozen=True)
class RegistrationKey:
    """One key. The secret is never printed: `text` is the only way to it."""

    id: str  # 32 hexadecimal digits
    url: str  # https://host[:port]
    ends_at: datetime
    authority: bytes  # SHA-256 of its certificate
    secret: bytes = field(repr=False)
    system_trust: bool = False

    def text(self) -> str:
        """The key as it is handed over: a secret."""
        url = self.url.encode()
        flags = FLAG_SYSTEM_TRUST if self.system_trust else 0
        ends = int(self.ends_at.timestamp())
        head = HEADER.pack(
            MAGIC, VERSION, flags, len(url), ends, bytes.fromhex(self.id), self.secret, self.authority
        )
        body = head + url
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")

    def public(self) -> bytes:
        """What the server keeps: 32 bytes, of which the secret cannot be made."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The proof that its holder made `message`: 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)


def proves(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of the key with this public half signed `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def parse_key(text: str) -> RegistrationKey:
    """Read a key as a person hands it over, line breaks and spaces ignored.

    Raises InvalidInput, whose text never holds any of the key.
    """
    joined = "".join(text.split())
    if len(joined) > TEXT_BYTES_MAX or not joined.startswith(PREFIX):
        raise _invalid(f"a registration key begins with {PREFIX}")
    encoded = joined.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("it has characters a registration key cannot have, or was cut short") from None
    if len(raw) < HEADER.size + CHECK_BYTES or _check(raw[:-CHECK_BYTES]) != raw[-CHECK_BYTES:]:
        raise _invalid("it was mistyped or cut short: its checksum does not fit")
    magic, version, flags, length, ends, key, secret, authority = HEADER.unpack_from(raw)
    if magic != MAGIC or version != VERSION or flags & ~FLAG_SYSTEM_TRUST:
        raise _invalid("it is of a newer version of secondsite")
    if length > URL_BYTES_MAX or HEADER.size + length + CHECK_BYTES != len(raw):
        raise _invalid("its lengths do not fit")
    try:
        url = server_url(raw[HEADER.size : HEADER.size + length].decode())
        ends_at = datetime.fromtimestamp(ends, UTC)
    except (UnicodeDecodeError, OverflowError, ValueError, OSError):
        raise _invalid("its address or its end does not parse") from None
    return RegistrationKey(
        id=key.hex(),
        url=url,
        ends_at=ends_at,
        authority=authority,
        secret=secret,
        system_trust=bool(flags & FLAG_SYSTEM_TRUST),
    )


def server_url(text: str) -> str:
    """Parse a server's address: ``https://host[:port]`` and nothing after. Raises InvalidInput."""
    what = f"the server's address {text[:100]!r}"
    try:
        parts = urlsplit(text.strip().rstrip("/"))
        port = parts.port
    except ValueError as error:
        raise InvalidInput(what=what, why=str(error)) from None
    if parts.scheme != "https" or not parts.hostname:
        raise InvalidInput(what=what, why="it is not https://HOST or https://HOST:PORT")
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise InvalidInput(what=what, why="there is more in it than a host and a port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    url = f"https://{host}" + (f":{port}" if port is not None else "")
    if len(url.encode()) > URL_BYTES_MAX:
        raise InvalidInput(what=what, why=f"it is longer than {URL_BYTES_MAX} bytes")
    return url


def hide_keys(text: str) -> str:
    """The text with every registration key in it taken out: for logs and errors."""
    return _HIDDEN.sub(f"{PREFIX}…", text)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECK_BYTES]


def _invalid(why: str) -> InvalidInput:
    return InvalidInput(what="the registration key", why=why)
