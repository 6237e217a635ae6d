"""A store with a machine in it: a base of mixed data and a journal of many cycles over it."""

from __future__ import annotations

import random
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.clock import SystemClock
from secondsite.base.units import BLOCK_BYTES_MAX, SUB_BLOCK_BYTES
from secondsite.journal.bases import RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.segment import SegmentHead, SegmentWriter
from secondsite.journal.state import BaseState
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.model.points import Consistency, DiskState, PointProposal, SegmentRef

MACHINE = MachineId("00000000-0000-4000-8000-00000000be9c")
DISK = DiskId("vda")


@dataclass(frozen=True)
class Made:
    """Where things are."""

    store: Path
    key_file: Path
    base: Path
    newest: int  # the newest point's number
    journal_bytes: int  # guest bytes the journal describes


def make(directory: Path, base_content: Path, *, cycles: int, bytes_per_cycle: int, seed: int = 1) -> Made:
    """A base with the content of `base_content`, then `cycles` points of `bytes_per_cycle` each.

    Half of a cycle's bytes are single 4 KiB blocks at random places, half runs of 64 KiB; half of both are
    random data, half text. Cycles do not avoid each other's places, as guests do not.
    """
    store = LocalStore(directory / "store")
    vault = VaultKey.create()
    vault.save(directory / "vault.key")
    key = DiskKey.create()
    store.put(wrapped_key_name(MACHINE, key.id), encode_wrapped(vault, MACHINE, DISK, key))
    journal = Journal(store, MACHINE, vault)
    size_bytes = base_content.stat().st_size
    base_path = directory / "vda.raw"
    shutil.copyfile(base_content, base_path)
    base = RawBase.create(base_path, size_bytes)
    known = BaseState(disk=DISK, locator=base.locator, identity=base.identity, size_bytes=size_bytes)
    base.close()
    journal.update_state(lambda state: msgspec.structs.replace(state, bases=(known,)))
    clock = SystemClock()
    claim = journal.claim(
        name="bench", claimant="bench", reason="first copy", clock=clock, expected=journal.head()
    )
    chance = random.Random(seed)
    definition = chance.randbytes(3000)  # as long as a sealed libvirt definition, the same in every point
    parent, total, number = None, 0, 0
    for cycle in range(cycles):
        refs = _segments(
            journal, key, claim.epoch, size_bytes=size_bytes, wanted=bytes_per_cycle, chance=chance
        )
        total += sum(ref.data_bytes for ref in refs)
        proposal = PointProposal(
            machine=MACHINE,
            machine_name="bench",
            epoch=claim.epoch,
            nonce=secrets.token_hex(16),
            checkpoint=f"cycle-{cycle}",
            parent_checkpoint=parent,
            asked_at="2026-01-01T00:00:00.000000Z",
            given_at="2026-01-01T00:00:00.000000Z",
            consistency=Consistency.CRASH,
            disks=(DiskState(id=DISK, size_bytes=size_bytes, key_id=key.id),),
            segments=tuple(refs),
            definition=definition,
        )
        number = journal.commit(proposal, clock=clock).number
        parent = proposal.checkpoint
    return Made(directory / "store", directory / "vault.key", base_path, number, total)


def _segments(
    journal: Journal, key: DiskKey, epoch: int, *, size_bytes: int, wanted: int, chance: random.Random
) -> list[SegmentRef]:
    """One cycle's segments, put into the store."""
    places: dict[int, int] = {}
    for length in (SUB_BLOCK_BYTES, BLOCK_BYTES_MAX):
        for _ in range(wanted // 2 // length):
            places[chance.randrange(size_bytes // length) * length] = length
    refs: list[SegmentRef] = []
    writer = None
    for offset in sorted(places):
        length = places[offset]
        if writer is None or not writer.has_room(length):
            refs += _put(journal, writer)
            head = SegmentHead(
                machine=MACHINE,
                disk=DISK,
                epoch=epoch,
                id=SegmentId(secrets.token_hex(16)),
                key_id=key.id,
                disk_size_bytes=size_bytes,
            )
            writer = SegmentWriter(head, key)
        content = chance.randbytes(length) if chance.random() < 0.5 else _text(chance, length)
        writer.add(offset, memoryview(content))
    return refs + _put(journal, writer)


def _put(journal: Journal, writer: SegmentWriter | None) -> list[SegmentRef]:
    if writer is None:
        return []
    data, ref = writer.finish()
    journal.store.put(journal.segment_name(ref), data)
    return [ref]


_WORDS = [f"word-{number} " for number in range(997)]


def _text(chance: random.Random, length: int) -> bytes:
    text = "".join(chance.choices(_WORDS, k=length // 6 + 1))
    return text.encode()[:length]
