"""A source in a process of its own: makes points through the cache into a store in a directory.

    python -m support.source_gateway DIRECTORY COUNT

Goes on from whatever an earlier run left until the journal has COUNT points.
"""

from __future__ import annotations

import random
import secrets
import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.store_local import LocalStore
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Peer
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool
from support.transfer import MACHINE, Events, Maker

PEER = Peer(name="gateway-a")


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    events, clock = Events(), SystemClock()
    receiver = GatewayReceiver(
        LocalStore(directory / "store"), vault=None, peers={PEER.name: PeerRule()}, clock=clock, events=events
    )
    link = MemoryLink(receiver, PEER)
    maker = Maker(secrets.randbits(64))  # each run makes other names
    if link.head(MACHINE).epoch == 0:
        maker.claim(link)
    spool = Spool(directory / "cache", limit_bytes=16 * MIB, identity=directory / "known", events=events)
    assert not spool.lost
    shipper = LinkShipper(
        link,
        spool,
        clock=clock,
        chance=random.Random(1),
        events=events,
        memory_bytes_max=1,  # one segment at a time: the others go through the cache
        spill_seconds=0,
    )
    for shipment in shipper.shipments(MACHINE):
        if shipment.proposal is None:
            shipment.discard()
        else:
            shipment.commit()
    while len(receiver.journal(MACHINE).points()) < count:
        point = link.head(MACHINE).point
        maker.parent = point.checkpoint if point else None
        segments = [maker.segment(400_000) for _ in range(6)]
        shipment = shipper.begin(MACHINE, 1)
        for made in segments:
            shipment.add(made.ref, made.data, wait=True)
        shipment.seal(maker.proposal(*segments))
        shipment.commit()
    shipper.close()


if __name__ == "__main__":
    main()
