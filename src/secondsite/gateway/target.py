"""A gateway's receiving side as one thing: store, receiver, fingerprints, promotion, ingest listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.gateway.fingerprints import Fingerprints
from secondsite.gateway.receive import GatewayReceiver, PeerRule
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Point
from secondsite.transfer.ingest import IngestLimits, IngestServer
from secondsite.transfer.tls import TlsFiles


class Target:
    """Receives what other gateways send. `start` once, `close` at the end.

    peers: who may write what, by certificate name. on_commit: called after each commit, must not block.
    """

    def __init__(
        self,
        *,
        name: str,
        store: ObjectStore,
        files: TlsFiles,
        address: tuple[str, int],
        peers: Mapping[str, PeerRule],
        vault: VaultKey,
        cache_dir: Path,
        clock: Clock,
        events: EventSink,
        on_commit: Callable[[Journal, Point], None] | None = None,
        limits: IngestLimits | None = None,
    ) -> None:
        self._fingerprints = Fingerprints(
            cache_dir / "digests", vault=vault, bases_of=known_bases, clock=clock, events=events
        )
        self._on_commit = on_commit
        self._receiver = GatewayReceiver(
            store,
            peers=peers,
            clock=clock,
            events=events,
            fingerprints=self._fingerprints.of,
            on_commit=self._committed,
        )
        self._ingest = IngestServer(
            self._receiver, files, address, name=name, clock=clock, events=events, limits=limits
        )

    @property
    def receiver(self) -> GatewayReceiver:
        """Its rules, for `set_peers`."""
        return self._receiver

    def journal(self, machine: MachineId) -> Journal:
        """The one `Journal` of a machine in this process: share it, its cache is what makes it cheap."""
        return self._receiver.journal(machine)

    def start(self) -> tuple[str, int]:
        """Listen; returns the address bound. Raises OSError when it is taken."""
        return self._ingest.start()

    def reload(self) -> None:
        """Take renewed certificates, for connections from now on."""
        self._ingest.reload()

    def close(self) -> None:
        """Stop: what was received in part stays staged, tables are synced."""
        self._ingest.close()
        self._fingerprints.close()

    def _committed(self, journal: Journal, point: Point) -> None:
        self._fingerprints.committed(journal, point)
        if self._on_commit is not None:
            self._on_commit(journal, point)


def known_bases(journal: Journal) -> Callable[[DiskId], BaseImage | None]:
    """Opens a machine's bases, read-only, where the store knows them to be."""

    def base_of(disk: DiskId) -> BaseImage | None:
        known = journal.state().base(disk)
        return RawBase(Path(known.locator), read_only=True) if known else None

    return base_of
