"""What simulated processes stand on: a store, base images, a network, each with its faults.

Which faults they may show, so that a failing seed means a bug and not noise:

* Store: an operation may fail before or after it took effect; the power may be cut around any; then of
  staged bytes any beginning is left. What was acknowledged is never lost.
* Bases: after a power cut each sector-sized piece of an unsynced write is there or not, each for itself.
* Network: requests and answers may be delayed, lost, cut short and delivered twice; never altered (TLS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.base.units import KIB
from secondsite.journal.bases_memory import MemoryBase
from secondsite.journal.store import StoreFull, StoreUnavailable
from secondsite.journal.store_memory import MemoryStagedObject, MemoryStore
from secondsite.model.extents import Extents
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.points import Claim, PointProposal, SegmentRef
from secondsite.transfer.errors import LinkDown
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
from support.sim_kernel import Process, SimEvent, World

SECTOR = 512
RPC_SECONDS_MAX = 20.0


class SimStore:
    """An `ObjectStore` every process of the target site opens; `inner` is what is durable."""

    url = "memory://"

    def __init__(self, world: World) -> None:
        self.world = world
        self.inner = MemoryStore()
        self.on_put: Callable[[str, bytes], None] = lambda key, data: None
        self.trouble = 0.0  # the share of changing operations that fail
        self.full = False

    def power_cut(self) -> None:
        """What a cut leaves."""
        self.inner = self.inner.restarted(staged_bytes_kept=self.world.chance.choice([0, 100, 3000, 1 << 30]))

    def change(self, what: str, key: str, effect: Callable[[], Any]) -> Any:
        """One operation that changes something."""
        world = self.world
        if world.current is None:
            return effect()
        if self.full and what != "delete":
            world.pause()
            raise StoreFull(key=key, store=self.url)
        if self.trouble and world.chance.random() < self.trouble:
            world.pause()
            if world.chance.random() < 0.5:
                effect()
            raise StoreUnavailable(store=self.url, key=key, why="simulated")
        return world.operation(f"{what} {key}", effect)

    def look(self) -> None:
        """Before an operation that only reads: others may run."""
        if self.world.current is not None and self.world.chance.random() < 0.1:
            self.world.pause()

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        def effect() -> None:
            self.inner.put(key, data)
            self.on_put(key, bytes(data))

        self.change("put", key, effect)

    def stage(self, key: str) -> SimStaged:
        self.look()
        return SimStaged(self, key, self.inner.stage(key))

    def get(self, key: str, *, size_bytes_max: int) -> bytes:
        self.look()
        return self.inner.get(key, size_bytes_max=size_bytes_max)

    def read(self, key: str, start: int, length: int) -> bytes:
        self.look()
        return self.inner.read(key, start, length)

    def size(self, key: str) -> int:
        self.look()
        return self.inner.size(key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        self.look()
        return self.inner.list(prefix, after=after)

    def delete(self, key: str) -> None:
        self.change("delete", key, lambda: self.inner.delete(key))

    def close(self) -> None:
        pass


class SimStaged:
    """A `StagedObject` of a `SimStore`."""

    def __init__(self, store: SimStore, key: str, inner: MemoryStagedObject) -> None:
        self._store, self._key, self._inner = store, key, inner

    @property
    def offset(self) -> int:
        return self._inner.offset

    def append(self, data: bytes | bytearray | memoryview) -> None:
        self._store.change("append", self._key, lambda: self._inner.append(data))

    def read_back(self, start: int, length: int) -> bytes:
        return self._inner.read_back(start, length)

    def publish(self) -> None:
        self._store.change("publish", self._key, self._inner.publish)

    def discard(self) -> None:
        self._inner.discard()

    def close(self) -> None:
        self._inner.close()


class SimBase:
    """A `BaseImage` as one process has it open."""

    def __init__(self, world: World, inner: MemoryBase, on_write: Callable[[], None] = lambda: None) -> None:
        self._world, self._inner, self._on_write = world, inner, on_write

    format = property(lambda self: self._inner.format)
    locator = property(lambda self: self._inner.locator)
    identity = property(lambda self: self._inner.identity)
    size_bytes = property(lambda self: self._inner.size_bytes)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._inner.read_into(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        cut = self._world.chance.randrange(0, len(data), SECTOR)
        pieces = [(0, cut), (cut, len(data))] if 0 < cut < len(data) else [(0, len(data))]

        def effect() -> None:
            for start, end in pieces:
                self._inner.write(offset + start, bytes(memoryview(data)[start:end]))

        self._world.operation("base-write", effect)
        self._on_write()

    def zero(self, offset: int, length: int) -> None:
        self._world.operation("base-zero", lambda: self._inner.zero(offset, length))

    def resize(self, size_bytes: int) -> None:
        self._world.operation("base-resize", lambda: self._inner.resize(size_bytes))

    def sync(self) -> None:
        self._world.operation("base-sync", self._inner.sync)

    def data_extents(self, offset: int, length: int) -> Extents:
        return self._inner.data_extents(offset, length)

    def close(self) -> None:
        pass


class Network:
    """The line between the sites."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.up = True
        self.delay = 0.01  # seconds, one way
        self.lost = 0.0  # the share of requests, and of answers, that get lost
        self.twice = 0.0  # the share of requests that are delivered twice
        self.before_commit: Callable[[PointProposal], None] = lambda proposal: None
        self.server: Process | None = None
        self.receiver: Receiver | None = None

    def heal(self) -> None:
        """No faults any more."""
        self.up, self.delay, self.lost, self.twice = True, 0.01, 0.0, 0.0

    def call(self, peer: str, what: str, work: Callable[[Receiver], Any]) -> Any:
        """Ask the target; in a task of the peer. Raises LinkDown when no answer came."""
        world, chance = self._world, self._world.chance
        answered = SimEvent(world)
        answers: list[tuple[bool, Any]] = []

        def answer(ok: bool, value: object) -> None:
            def arrive() -> None:
                if self.up and not (self.lost and chance.random() < self.lost):
                    answers.append((ok, value))
                    answered.set()

            world.at(self.delay * (0.5 + chance.random()), arrive)

        def serve(receiver: Receiver) -> None:
            try:
                value = work(receiver)
            except SecondsiteError as error:
                answer(False, error.as_dict())
                return
            answer(True, value)

        def deliver() -> None:
            server, receiver = self.server, self.receiver
            if not self.up or server is None or receiver is None or not server.alive:
                return
            if self.lost and chance.random() < self.lost:
                return
            server.spawn(lambda: serve(receiver), f"serve {what}")

        world.at(self.delay * (0.5 + chance.random()), deliver)
        if self.twice and chance.random() < self.twice:
            world.at(self.delay + chance.random() * 3 * RPC_SECONDS_MAX, deliver)
        answered.wait(RPC_SECONDS_MAX if self.up else chance.choice([0.1, RPC_SECONDS_MAX]))
        if not answers:
            raise LinkDown(peer="gateway-b", why="no answer")
        ok, value = answers[0]
        if not ok:
            raise RemoteError(value)
        return value


class SimLink:
    """A `Link` over the network."""

    def __init__(self, network: Network, peer: str, on_commit: Callable[[CommittedPoint], None]) -> None:
        self._network = network
        self._on_commit = on_commit
        self._peer = Peer(name=peer)

    def _call(self, what: str, work: Callable[[Receiver], Any]) -> Any:
        return self._network.call(self._peer.name, what, work)

    def head(self, machine: MachineId) -> TargetHead:
        found: TargetHead = self._call("head", lambda receiver: receiver.head(self._peer, machine))
        return found

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: Any = None
    ) -> None:
        data = payload.read_bytes() if isinstance(payload, Path) else bytes(payload)
        name = SegmentName.of(machine, ref)
        self._call("segment", lambda receiver: self._receive(receiver, name, ref, data))

    def _receive(self, receiver: Receiver, name: SegmentName, ref: SegmentRef, data: bytes) -> None:
        upload = receiver.open_segment(self._peer, name, size_bytes=ref.stored_bytes, digest=ref.hash)
        if upload is None:
            return
        chance = self._network._world.chance
        try:
            start = upload.offset
            while start < len(data):
                block = memoryview(data)[start : start + chance.choice([1, 4, 16]) * KIB]
                if not self._network.up or (self._network.lost and chance.random() < self._network.lost):
                    raise LinkDown(peer=self._peer.name, why="cut in the middle")
                upload.append(block)
                start += len(block)
            upload.finish()
        finally:
            upload.suspend()

    def put_key(self, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        self._call("key", lambda receiver: receiver.put_key(self._peer, machine, key, wrapped))

    def get_key(self, machine: MachineId, key: KeyId) -> bytes:
        data: bytes = self._call("key", lambda receiver: receiver.get_key(self._peer, machine, key))
        return data

    def claim(self, request: ClaimRequest) -> Claim:
        claim: Claim = self._call("claim", lambda receiver: receiver.claim(self._peer, request))
        return claim

    def commit(self, proposal: PointProposal) -> CommittedPoint:
        def work(receiver: Receiver) -> CommittedPoint:
            self._network.before_commit(proposal)
            return receiver.commit(self._peer, proposal)

        point: CommittedPoint = self._call("commit", work)
        self._on_commit(point)
        return point

    def digests(self, query: DigestQuery) -> DigestAnswer:
        answer: DigestAnswer = self._call("digests", lambda receiver: receiver.digests(self._peer, query))
        return answer

    def adopt(self, terms: AdoptionTerms) -> Adoption:
        answer: Adoption = self._call("adopt", lambda receiver: receiver.adopt(self._peer, terms))
        return answer

    def note_stop(self, note: StopNote) -> None:
        self._call("note_stop", lambda receiver: receiver.note_stop(self._peer, note))

    def close(self) -> None:
        pass
