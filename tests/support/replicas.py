"""Replicas for tests: a real store with points of known content, made with the journal itself."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secondsite.base.clock import FakeClock
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped
from secondsite.journal.manifest import seal_definition
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.segment import SegmentWriter
from secondsite.journal.segment_head import SegmentHead
from secondsite.journal.store import ObjectStore
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import DiskId, SegmentId
from secondsite.model.machines import Definition, Mapping
from secondsite.model.points import Consistency, DiskState, PointProposal, SegmentRef
from support.machines import SHOP

KIB = 1024
MIB = 1024 * KIB
START = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
SIZES = {DiskId("vda"): 2 * MIB, DiskId("vdb"): 1 * MIB}


@dataclass
class Replica:
    """A replica and what each of its points holds, by number and disk."""

    root: Path
    vault: VaultKey
    journal: Journal
    keys: dict[DiskId, DiskKey]
    contents: dict[int, dict[DiskId, bytes]] = field(default_factory=dict)
    given_at: dict[int, str] = field(default_factory=dict)

    @property
    def store_path(self) -> Path:
        return self.root / "store"

    @property
    def key_file(self) -> Path:
        return self.root / "vault.key"

    @property
    def newest(self) -> int:
        return max(self.contents)


def make_replica(
    root: Path,
    *,
    points: int = 3,
    seed: int = 1,
    application_consistent: int = 1,
    store: ObjectStore | None = None,
    claimant: str = "a",
) -> Replica:
    """A machine with `points` points, five seconds apart; one of them is labelled, by its index.

    store: instead of a directory below `root`.
    """
    chance = random.Random(seed)
    vault = VaultKey.create()
    vault.save(root / "vault.key")
    store = store or LocalStore(root / "store")
    journal = Journal(store, SHOP, vault)
    keys = {disk: DiskKey.create() for disk in SIZES}
    for disk, key in keys.items():
        store.put(wrapped_key_name(SHOP, key.id), encode_wrapped(vault, SHOP, disk, key))
    replica = Replica(root, vault, journal, keys)
    clock = FakeClock(START)
    journal.claim(name="shop", claimant=claimant, reason="first copy", clock=clock, expected=journal.head())
    for index in range(points):
        extend_replica(replica, chance, application=index == application_consistent)
    return replica


def extend_replica(
    replica: Replica,
    chance: random.Random | None = None,
    *,
    application: bool = False,
    also: dict[DiskId, list[tuple[int, int]]] | None = None,
) -> None:
    """One more point, five seconds after the last one. also: (offset, length) that it writes as well."""
    journal, index = replica.journal, len(replica.contents)
    chance = chance or random.Random(index)
    last = replica.contents[replica.newest] if index else {d: bytes(size) for d, size in SIZES.items()}
    disks = {disk: bytearray(data) for disk, data in last.items()}
    epoch = 1  # of the one claim
    refs = [
        _write(replica, disk, data, chance, epoch, also=(also or {}).get(disk, ()))
        for disk, data in disks.items()
    ]
    given_at = START + timedelta(seconds=5 * index)
    consistency = Consistency.APPLICATION if application else Consistency.CRASH
    point = journal.commit(
        _proposal(replica, refs, index, epoch, given_at=given_at, consistency=consistency),
        clock=FakeClock(given_at + timedelta(seconds=5)),
    )
    replica.contents[point.number] = {disk: bytes(data) for disk, data in disks.items()}
    replica.given_at[point.number] = point.given_at


def _write(
    replica: Replica,
    disk: DiskId,
    data: bytearray,
    chance: random.Random,
    epoch: int,
    *,
    also: Sequence[tuple[int, int]] = (),
) -> SegmentRef:
    """Change three places of the disk, and make the segment that says so."""
    key = replica.keys[disk]
    head = SegmentHead(
        machine=SHOP,
        disk=disk,
        epoch=epoch,
        id=SegmentId(secrets.token_hex(16)),
        key_id=key.id,
        disk_size_bytes=len(data),
    )
    writer = SegmentWriter(head, key)

    def write(offset: int, length: int) -> None:
        data[offset : offset + length] = chance.randbytes(length)
        writer.add(offset, memoryview(bytes(data[offset : offset + length])))

    for _ in range(3):
        length = chance.choice([4, 8, 64]) * KIB
        write(chance.randrange(0, len(data) - length, 4 * KIB), length)
    for offset, length in also:
        write(offset, length)
    body, ref = writer.finish()
    replica.journal.store.put(replica.journal.segment_name(ref), body)
    return ref


def _proposal(
    replica: Replica,
    refs: list[SegmentRef],
    index: int,
    epoch: int,
    *,
    given_at: datetime,
    consistency: Consistency,
) -> PointProposal:
    mapping = Mapping(networks={"lan": "lan-b"}, default_pool="memory")
    text = '{"name": "shop", "nics": [{"mac": "52:54:00:00:00:01", "network": "default"}]}'
    definition = Definition(format="memory", text=text, mapping=mapping)
    return PointProposal(
        machine=SHOP,
        machine_name="shop",
        epoch=epoch,
        nonce=secrets.token_hex(16),
        checkpoint=f"cp{index}",
        parent_checkpoint=f"cp{index - 1}" if index else None,
        asked_at=(given_at - timedelta(milliseconds=100)).isoformat(timespec="microseconds"),
        given_at=given_at.isoformat(timespec="microseconds"),
        consistency=consistency,
        disks=tuple(
            DiskState(id=disk, size_bytes=size, key_id=replica.keys[disk].id) for disk, size in SIZES.items()
        ),
        segments=tuple(refs),
        definition=seal_definition(definition, replica.vault, SHOP),
        changed_bytes=sum(ref.data_bytes for ref in refs),
    )
