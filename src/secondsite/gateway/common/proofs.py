"""That the recovery key of a gateway was proved: once for each key, durable, before a server is obeyed.

    STATE/recovery-key.json
    {"version": 1, "key": "<id>", "provedAt": "<RFC 3339>", "by": "…", "file": "<path at the prover's>"}

Whoever sits at the gateway proves the key with each protection. A server cannot: it has no key. So what it
wants protected is taken once somebody proved to this gateway that its key is kept elsewhere, directly or
through the server, and a key that took another's place (a rotation) has to be proved anew. A record that
cannot be read proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS

RECORD = "recovery-key.json"
RECORD_BYTES_MAX = 64 * 1024
VERSION = 1
MACHINE_ID = Path("/etc/machine-id")
# machine-id(5): "should be considered confidential … hash it with a cryptographic, keyed hash function"
_APPLICATION = b"secondsite recovery key proof"


class RecoveryKeyNeeded(SecondsiteError):
    """Nobody proved that the key exists elsewhere."""

    code = "recovery-key.needed"
    outcome = Outcome.REFUSED
    happened = "Nobody has proved to gateway {gateway} that its recovery key {key} is kept elsewhere."
    cause = "A server cannot prove it, and what is sealed with a key of one copy is lost with that copy."
    action = (
        "Run `secondsite key prove COPY --gateway SOCKET` at the gateway, or prove it through the server; "
        "what the server wants is taken then."
    )


class KeyProof(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The record."""

    version: int
    key: str
    proved_at: str
    by: str
    file: str


class KeyProofs:
    """The record of one gateway. Thread-safe."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._known = self._read()

    def of(self, key: str) -> KeyProof | None:
        """The proof of a key; None: there is none of this one."""
        with self._lock:
            found = self._known
        return found if found is not None and found.key == key else None

    def keep(self, key: str, *, by: str, file: str) -> KeyProof:
        """Somebody proved a key now; durable when this returns. The first proof of a key stays."""
        with self._lock:
            if self._known is not None and self._known.key == key:
                return self._known
            at = self._clock.utc().isoformat(timespec="seconds")
            made = KeyProof(version=VERSION, key=key, proved_at=at, by=by, file=file)
            replace_file(self._path, msgspec.json.encode(made))
            self._known = made
            return made

    def _read(self) -> KeyProof | None:
        try:
            found = msgspec.json.decode(
                read_limited(self._path, size_bytes_max=RECORD_BYTES_MAX), type=KeyProof
            )
        except (FileNotFoundError, *JSON_ERRORS):
            return None
        return found if found.version == VERSION else None


def host_id(path: Path = MACHINE_ID) -> str:
    """Tells machines apart without saying which they are; empty where the machine has no id."""
    try:
        known = path.read_bytes().strip()
    except OSError:
        return ""
    return hmac.new(known, _APPLICATION, hashlib.sha256).hexdigest()[:32] if known else ""
