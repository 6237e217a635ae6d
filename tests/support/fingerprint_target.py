"""A target that keeps fingerprints, with a source beside it, in a process that can be killed.

    python -m support.fingerprint_target DIRECTORY COUNT

Goes on from whatever an earlier run left until the journal has COUNT points.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.chain import Journal
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Peer
from support.replica import ReplicaSource
from support.transfer import DISK, MACHINE, Events

PEER = Peer(name="gateway-a")
VAULT = VaultKey.of(b"v" * 32)
SIZE_BYTES = 2 * MIB


def content(journal: Journal, number: int) -> bytearray:
    """What the disk reads as at a point."""
    with open_view(journal, number, KeyRing(journal.store, MACHINE, VAULT), bases=lambda disk: None) as view:
        return bytearray(view.disks[DISK].read(0, SIZE_BYTES))


def fingerprint_of(data: bytearray, seed: int) -> str:
    """From scratch."""
    return fingerprint_text(combine(digest_sub_blocks(memoryview(data), 0, seed)))


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    events, clock = Events(), SystemClock()
    fingerprints = Fingerprints(
        directory / "tables",
        vault=VAULT,
        bases_of=lambda journal: lambda disk: None,
        clock=clock,
        events=events,
    )
    receiver = GatewayReceiver(
        LocalStore(directory / "store"),
        vault=None,
        peers={PEER.name: PeerRule()},
        clock=clock,
        events=events,
        fingerprints=fingerprints.of,
        on_commit=fingerprints.committed,
    )
    link = MemoryLink(receiver, PEER)
    source = ReplicaSource(link, VAULT, size_bytes=SIZE_BYTES, seed=secrets.randbits(64))
    source.begin()
    journal = receiver.journal(MACHINE)
    head = journal.head().point
    if head is not None:
        source.model = content(journal, head.number)
    while len(journal.points()) < count:
        source.point(40)
    fingerprints.close()
    assert "fingerprint.unknown" not in events.codes(), events.seen


if __name__ == "__main__":
    main()
