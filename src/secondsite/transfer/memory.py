"""A link inside one process: calls a `Receiver` directly."""

from __future__ import annotations

import threading
from pathlib import Path

from secondsite.base.units import MIB
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.points import Claim, PointProposal, SegmentRef
from secondsite.transfer import wire
from secondsite.transfer.errors import LinkDown, TransferCancelled
from secondsite.transfer.protocols import (
    Adoption,
    AdoptionTerms,
    ClaimRequest,
    CommittedPoint,
    DigestAnswer,
    DigestQuery,
    Payload,
    Peer,
    Receiver,
    SegmentName,
    StopNote,
    TargetHead,
)

BLOCK_BYTES = 1 * MIB


class MemoryLink:
    """Calls `receiver` as `peer`; `cut()` makes every call fail as a cut network would."""

    def __init__(self, receiver: Receiver, peer: Peer) -> None:
        self._receiver = receiver
        self._peer = peer
        self._down = threading.Event()
        self._bytes_until_cut: int | None = None

    def cut(self, *, after_bytes: int = 0) -> None:
        """Fail from now on, or once `after_bytes` more segment bytes have arrived."""
        self._bytes_until_cut = after_bytes
        if after_bytes == 0:
            self._down.set()

    def heal(self) -> None:
        """The network is back."""
        self._bytes_until_cut = None
        self._down.clear()

    def head(self, machine: MachineId) -> TargetHead:
        """See `Link`."""
        self._up()
        return self._receiver.head(self._peer, machine)

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: threading.Event | None = None
    ) -> None:
        """See `Link`."""
        self._up()
        upload = self._receiver.open_segment(
            self._peer, SegmentName.of(machine, ref), size_bytes=ref.stored_bytes, digest=ref.hash
        )
        if upload is None:
            return
        try:
            view = memoryview(payload.read_bytes() if isinstance(payload, Path) else payload).cast("B")
            for start in range(upload.offset, len(view), BLOCK_BYTES):
                if cancel is not None and cancel.is_set():
                    raise TransferCancelled(what=f"segment {ref.id}")
                block = view[start : start + BLOCK_BYTES]
                self._pass(len(block))
                upload.append(block)
            upload.finish()
        finally:
            upload.suspend()

    def put_key(self, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        """See `Link`."""
        self._up()
        self._receiver.put_key(self._peer, machine, key, wrapped)

    def get_key(self, machine: MachineId, key: KeyId) -> bytes:
        """See `Link`."""
        self._up()
        return self._receiver.get_key(self._peer, machine, key)

    def claim(self, request: ClaimRequest) -> Claim:
        """See `Link`."""
        self._up()
        wire.check_claim(request, request.machine, peer=self._peer.name)
        return self._receiver.claim(self._peer, request)

    def commit(self, proposal: PointProposal) -> CommittedPoint:
        """See `Link`."""
        self._up()
        wire.check_proposal(proposal, proposal.machine, peer=self._peer.name)
        return self._receiver.commit(self._peer, proposal)

    def digests(self, query: DigestQuery) -> DigestAnswer:
        """See `Link`."""
        self._up()
        wire.check_digests(query, query.machine, peer=self._peer.name)
        return self._receiver.digests(self._peer, query)

    def adopt(self, terms: AdoptionTerms) -> Adoption:
        """See `Link`."""
        self._up()
        wire.check_terms(terms, terms.machine, peer=self._peer.name)
        return self._receiver.adopt(self._peer, terms)

    def note_stop(self, note: StopNote) -> None:
        """See `Link`."""
        self._up()
        wire.check_stop(note, note.machine, peer=self._peer.name)
        self._receiver.note_stop(self._peer, note)

    def close(self) -> None:
        """See `Link`."""
        self._down.set()

    def _up(self) -> None:
        if self._down.is_set():
            raise LinkDown(peer=self._peer.name, why="cut")

    def _pass(self, count: int) -> None:
        if self._bytes_until_cut is not None:
            self._bytes_until_cut -= count
            if self._bytes_until_cut < 0:
                self._down.set()
        self._up()
