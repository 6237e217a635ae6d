"""A receiving gateway in a process of its own: ingest listener, receiver, store in a directory.

    python -m support.target_gateway DIRECTORY PORT

DIRECTORY holds ``tls/`` (certificate, key, authority, revoked) and gets ``store/``. Prints its port, then
one line per event.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.store_local import LocalStore
from secondsite.model.events import Severity
from secondsite.transfer.ingest import IngestServer
from secondsite.transfer.tls import TlsFiles

NAME = "gateway-b"
PEER = "gateway-a"


class PrintedEvents:
    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        print(f"event {code}: {text}", flush=True)


def main() -> None:
    directory, port = Path(sys.argv[1]), int(sys.argv[2])
    tls = directory / "tls"
    files = TlsFiles(
        tls / "leaves" / f"{NAME}.crt",
        tls / "leaves" / f"{NAME}.key",
        tls / "authority" / "authority.crt",
        tls / "authority" / "revoked.pem",
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    events, clock = PrintedEvents(), SystemClock()
    receiver = GatewayReceiver(
        LocalStore(directory / "store"), vault=None, peers={PEER: PeerRule()}, clock=clock, events=events
    )
    server = IngestServer(receiver, files, ("127.0.0.1", port), name=NAME, clock=clock, events=events)
    print(server.start()[1], flush=True)
    stop.wait()
    server.close()


if __name__ == "__main__":
    main()
