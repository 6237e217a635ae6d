"""A source with a real key and a model disk: real segments in, and what the disk should read as."""

from __future__ import annotations

import random

import numpy as np

from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped
from secondsite.journal.segment import SegmentWriter
from secondsite.journal.segment_head import SegmentHead
from secondsite.model.ids import KeyId, SegmentId
from secondsite.model.points import Consistency, DiskState, PointProposal
from secondsite.transfer.protocols import CommittedPoint, Link
from support.transfer import DISK, MACHINE, Made, Maker


class ReplicaSource:
    """Writes random sub-blocks into a model disk and replicates each batch of writes as one point."""

    def __init__(
        self, link: Link, vault: VaultKey, *, size_bytes: int, seed: int = 1, secret: bytes = b"k" * 32
    ):
        self.link = link
        self.vault = vault
        self.chance = random.Random(seed)
        self.maker = Maker(seed)
        self.model = bytearray(size_bytes)
        self.key = DiskKey(id=KeyId("ab" * 16), secret=b"k" * 32)
        self.instant = 0

    def begin(self) -> None:
        """Claim the machine where that is still to be done, and store the key."""
        if self.link.head(MACHINE).epoch == 0:
            self.maker.claim(self.link)
        self.link.put_key(MACHINE, self.key.id, encode_wrapped(self.vault, MACHINE, DISK, self.key, _zeros))

    def fingerprint(self) -> str:
        """Of the model disk, from scratch."""
        return fingerprint_text(combine(digest_sub_blocks(memoryview(self.model), 0, self.key.digest_seed())))

    def writes(self, count: int) -> list[tuple[int, bytes]]:
        """Random writes, some of zeros, some over each other; applied to the model."""
        made = []
        blocks = len(self.model) // SUB_BLOCK_BYTES
        for _ in range(count):
            length = self.chance.choice([1, 1, 2, 5, 16])
            first = self.chance.randrange(max(1, blocks - length))
            data = self.chance.randbytes(length * SUB_BLOCK_BYTES)
            if self.chance.random() < 0.25:
                data = bytes(len(data))
            made.append((first * SUB_BLOCK_BYTES, data[: len(self.model) - first * SUB_BLOCK_BYTES]))
        for offset, data in made:
            self.model[offset : offset + len(data)] = data
        return made

    def segments(self, writes: list[tuple[int, bytes]], per_segment: int = 10) -> list[Made]:
        """The writes as sealed segments, in order."""
        made = []
        for start in range(0, len(writes), per_segment):
            head = SegmentHead(
                machine=MACHINE,
                disk=DISK,
                epoch=1,
                id=SegmentId(self.maker.hex32()),
                key_id=self.key.id,
                disk_size_bytes=len(self.model),
            )
            writer = SegmentWriter(head, self.key)
            for offset, data in writes[start : start + per_segment]:
                writer.add(offset, memoryview(data))
            data_view, ref = writer.finish()
            made.append(Made(ref, bytes(data_view)))
        return made

    def proposal(self, made: list[Made]) -> PointProposal:
        """The next instant."""
        parent = self.link.head(MACHINE).point
        self.instant += 1
        return PointProposal(
            machine=MACHINE,
            machine_name="web-1",
            epoch=1,
            nonce=self.maker.hex32(),
            checkpoint=f"ss-{self.maker.hex32()}",
            parent_checkpoint=parent.checkpoint if parent else None,
            asked_at="2026-01-01T00:00:00+00:00",
            given_at="2026-01-01T00:00:01+00:00",
            consistency=Consistency.CRASH,
            disks=(DiskState(id=DISK, size_bytes=len(self.model), key_id=self.key.id),),
            segments=tuple(one.ref for one in made),
            definition=b"sealed",
        )

    def point(self, count: int = 25) -> CommittedPoint:
        """Write, send, commit."""
        made = self.segments(self.writes(count))
        for one in made:
            self.link.send_segment(MACHINE, one.ref, one.data)
        return self.link.commit(self.proposal(made))


def _zeros(count: int) -> bytes:
    """No chance: the same key is wrapped to the same bytes, also by a restarted source."""
    return bytes(np.zeros(count, dtype=np.uint8))
