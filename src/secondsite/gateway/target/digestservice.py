"""The target's answers to hash compare: from the digest tables, or read again from what is stored.

A table follows from what segments say of themselves; it is quick, and enough to send less. A verification
wants to know what a recovery would read: its ranges are read through a view of the point, base and journal,
which decrypts and checks every block on the way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta

from secondsite.base.clock import Clock
from secondsite.gateway.source.compare import disk_at, reread
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.journal import alive
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.view import BaseOf, open_view
from secondsite.transfer.protocols import DigestAnswer, DigestQuery

# Longer than any answer takes; a gateway that is killed leaves the pin, which ends by itself.
PIN = timedelta(hours=1)
# At most 64 ranges are read for one answer, each once: caching more than a block helps nobody.
CACHE_BYTES = 1024 * 1024


class DigestService:
    """Answers for all machines of a store; fits `receive.GatewayReceiver`. Thread-safe."""

    def __init__(
        self,
        fingerprints: Fingerprints,
        *,
        vault: VaultKey,
        bases_of: Callable[[Journal], BaseOf],
        clock: Clock,
    ) -> None:
        self._fingerprints = fingerprints
        self._vault = vault
        self._bases_of = bases_of
        self._clock = clock

    def __call__(self, journal: Journal, query: DigestQuery) -> DigestAnswer:
        """Answer. Raises DigestsNotReady, DigestsRefused, PointUnknown, and what damaged objects raise."""
        if not query.reread:
            return self._fingerprints.digests(journal, query)
        disk = disk_at(query, journal.point(query.point))
        keys = KeyRing(journal.store, journal.machine, self._vault)
        holder = f"digests-{secrets.token_hex(8)}"
        until = (self._clock.utc() + PIN).isoformat(timespec="microseconds")
        with alive.reader(journal.machine, holder):
            journal.pin(query.point, holder, "compared with the source", until)
            try:
                bases = self._bases_of(journal)
                with open_view(journal, query.point, keys, bases=bases, cache_bytes=CACHE_BYTES) as view:
                    return reread(view.disks[disk.id], query, keys.get(disk.key_id).digest_seed())
            finally:
                journal.unpin(holder)
