"""Which life of a server counts, as the stores know it: claims, put before a standby acts.

    server/{server}/claims/{number:010}      JSON, at most 8 KiB, put if absent, never changed
      version      1
      server       the server's id, 32 hexadecimal digits
      number       of the claim: 1, 2, 3 ... without a gap
      incarnation  the life that is claimed; above every one claimed or backed up before
      proof        its signature, as `transfer.incarnation` shows it with every answer
      url          where that life is reached
      by           32 hexadecimal digits the claimant chose and wrote down before: it knows its claim again
      at           when, RFC 3339
      copy         the backup or copy whose state it goes on with
      signature    base64url, ECDSA by the server's authority over all of the above

Of two standbys that take over by one store both put the same number, and one of them is told that it exists.
A gateway reads the claims of its own store: the highest incarnation that an authority it trusts has signed is
the one it obeys from then on, whether or not that server can be reached yet.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB
from secondsite.journal.store import ObjectStore
from secondsite.transfer.backups import STORE_PREFIX
from secondsite.transfer.incarnation import ShownIncarnation, incarnation_message
from secondsite.transfer.registration import server_url

VERSION = 1
CLAIM_BYTES_MAX = 8 * KIB
# A takeover is a person's decision on a bad day: more than some hundreds is no history of takeovers.
CLAIMS_MAX = 10_000
_DIGITS = 10


class ClaimDamaged(SecondsiteError):
    """Not what a standby wrote."""

    code = "server-claim.damaged"
    outcome = Outcome.DAMAGED
    happened = "The claim {key} in the store {store} cannot be read: {why}."
    cause = "The object was changed outside secondsite, or a newer version wrote it."
    action = "Compare `secondsite --version` at both sites; nothing was claimed over it."


class ServerClaim(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One claim; see the module."""

    version: int
    server: str
    number: int
    incarnation: int
    proof: str
    url: str
    by: str
    at: str
    copy: str
    signature: str = ""

    @property
    def shown(self) -> ShownIncarnation:
        """As its answers will show it."""
        return ShownIncarnation(self.incarnation, self.proof)

    def message(self) -> bytes:
        """What is signed."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, signature=""), order="sorted")
        return b"secondsite server claim 1\n" + plain

    def signed_by_one(self, authorities: Iterable[x509.Certificate]) -> bool:
        """Whether one of the authorities signed the claim and the incarnation in it."""
        claim = decoded(self.signature)
        life = self.shown.signed()
        for authority in authorities:
            public = authority.public_key()
            if not isinstance(public, ec.EllipticCurvePublicKey):
                continue
            with contextlib.suppress(InvalidSignature):
                public.verify(claim, self.message(), ec.ECDSA(hashes.SHA256()))
                public.verify(life, incarnation_message(self.incarnation), ec.ECDSA(hashes.SHA256()))
                return True
        return False


def encoded(signature: bytes) -> str:
    """A signature as text."""
    return base64.urlsafe_b64encode(signature).decode().rstrip("=")


def decoded(text: str) -> bytes:
    """Its bytes; empty, which proves nothing, when the text is none."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return b""


def claims_prefix(server: str) -> str:
    """Where a server's claims lie in a store."""
    return f"{STORE_PREFIX}{server}/claims/"


def put_claim(store: ObjectStore, claim: ServerClaim) -> None:
    """Make the claim, durable when this returns. Raises ObjectExists when its number is taken."""
    store.put(f"{claims_prefix(claim.server)}{claim.number:0{_DIGITS}}", msgspec.json.encode(claim))


def read_claims(store: ObjectStore, server: str) -> list[ServerClaim]:
    """Every claim of one server, oldest first. Raises ClaimDamaged, and what the store raises."""
    return [read_claim(store, key) for key in _keys(store, claims_prefix(server))]


def newest_claims(store: ObjectStore) -> Sequence[ServerClaim]:
    """The newest claim of each server in a store; what does not parse is left out."""
    newest: dict[str, str] = {}
    for server in servers_of(store):
        for key in _keys(store, claims_prefix(server)):
            newest[server] = key
    found = []
    for key in newest.values():
        with contextlib.suppress(ClaimDamaged):
            found.append(read_claim(store, key))
    return found


def servers_of(store: ObjectStore) -> list[str]:
    """The servers a store has something of."""
    found: list[str] = []
    after = ""
    while True:
        key = next(iter(store.list(STORE_PREFIX, after=after)), None)
        if key is None:
            return found
        server = key.removeprefix(STORE_PREFIX).partition("/")[0]
        found.append(server)
        after = f"{STORE_PREFIX}{server}0"  # "0" follows "/": behind everything of this server


def read_claim(store: ObjectStore, key: str) -> ServerClaim:
    """One by its name. Raises ClaimDamaged."""
    data = store.get(key, size_bytes_max=CLAIM_BYTES_MAX)
    try:
        found = msgspec.json.decode(data, type=ServerClaim)
        server_url(found.url)
    except (*JSON_ERRORS, SecondsiteError) as error:
        raise ClaimDamaged(key=key, store=store.url, why=str(error)) from None
    if found.version != VERSION or not key.endswith(f"{found.server}/claims/{found.number:0{_DIGITS}}"):
        raise ClaimDamaged(
            key=key, store=store.url, why="it is of another version, or lies under another name"
        )
    return found


def _keys(store: ObjectStore, prefix: str) -> list[str]:
    found = []
    for key in store.list(prefix):
        found.append(key)
        if len(found) > CLAIMS_MAX:
            raise ClaimDamaged(key=prefix, store=store.url, why=f"there are more than {CLAIMS_MAX}")
    return found
