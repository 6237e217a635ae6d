"""A store made from a guest's disks without any gateway: what is left on the day the first site is gone."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secondsite.base.clock import SystemClock
from secondsite.fabrics.libvirt import definition, inventory
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped
from secondsite.journal.manifest import seal_definition
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.segment import SegmentWriter
from secondsite.journal.segment_head import SegmentHead
from secondsite.journal.store_local import LocalStore
from secondsite.lab.machine import Guest
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId, disk_id, machine_id
from secondsite.model.machines import Definition
from secondsite.model.points import Consistency, DiskState, PointProposal, SegmentRef

BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Left:
    """A store, its key, and what it is of."""

    store: Path
    key_file: Path
    journal: Journal
    point: int


def read_definition(guest: Guest) -> tuple[MachineId, Definition]:
    """What would travel with a point of the guest."""
    with contextlib.closing(guest.site.connect()) as connection:
        domain = connection.lookupByName(guest.name)
        found = inventory.look(connection, domain)
        return machine_id(domain.UUIDString()), definition.read(found, inventory.pools(connection))


def leave_store(guest: Guest, place: Path) -> Left:
    """One point with everything of the shut-off guest's disks, in a store below `place`."""
    place.mkdir()
    machine, defined = read_definition(guest)
    vault = VaultKey.create()
    vault.save(place / "vault.key")
    store = LocalStore(place / "store")
    journal = Journal(store, machine, vault)
    clock = SystemClock()
    claim = journal.claim(
        name=guest.name, claimant="a", reason="first copy", clock=clock, expected=journal.head()
    )
    states, refs = [], []
    for target, image in guest.disk_paths.items():
        disk, key = disk_id(target), DiskKey.create()
        store.put(wrapped_key_name(machine, key.id), encode_wrapped(vault, machine, disk, key))
        raw = place / f"{target}.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
        refs += _copy(journal, disk, key, raw, claim.epoch)
        states.append(DiskState(id=disk, size_bytes=raw.stat().st_size, key_id=KeyId(key.id)))
        raw.unlink()
    now = clock.utc().isoformat(timespec="microseconds")
    proposal = PointProposal(
        machine=machine,
        machine_name=guest.name,
        epoch=claim.epoch,
        nonce=secrets.token_hex(16),
        checkpoint="cp1",
        parent_checkpoint=None,
        asked_at=now,
        given_at=now,
        consistency=Consistency.CRASH,
        disks=tuple(states),
        segments=tuple(refs),
        definition=seal_definition(defined, vault, machine),
    )
    point = journal.commit(proposal, clock=clock)
    return Left(place / "store", place / "vault.key", journal, point.number)


def _copy(journal: Journal, disk: DiskId, key: DiskKey, raw: Path, epoch: int) -> list[SegmentRef]:
    content = np.memmap(raw, dtype=np.uint8, mode="r")
    refs: list[SegmentRef] = []
    writer: SegmentWriter | None = None

    def finish() -> None:
        if writer is not None:
            body, ref = writer.finish()
            journal.store.put(journal.segment_name(ref), body)
            refs.append(ref)

    for offset in range(0, len(content), BLOCK_BYTES):
        block = content[offset : offset + BLOCK_BYTES]
        if not block.any():
            continue
        if writer is None or not writer.has_room(len(block)):
            finish()
            identity = SegmentId(secrets.token_hex(16))
            writer = SegmentWriter(
                SegmentHead(journal.machine, disk, epoch, identity, key.id, len(content)), key
            )
        writer.add(offset, memoryview(block.tobytes()))
    finish()
    return refs
