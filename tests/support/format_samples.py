"""Small objects with every byte fixed: fixed keys, salts and ids instead of chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import blake3
import msgspec

from secondsite.journal.format import RECORD_HEADER
from secondsite.journal.key_file import KeyFile, encode_key_file
from secondsite.journal.keys import DiskKey, VaultKey, encode_wrapped, sealed_with
from secondsite.journal.manifest import encode_record, seal_definition
from secondsite.journal.segment import SegmentHead, SegmentWriter
from secondsite.journal.state import BaseState, Dropped, Keyed, State, encode_state
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.machines import Definition
from secondsite.model.points import ZERO_HASH, Claim, Consistency, DiskState, Point, SegmentRef

MACHINE = MachineId("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
DISK = DiskId("vda")
DISK_BYTES = 1 << 20
VAULT = VaultKey.of(bytes(range(32)))
LOG_KEY = VAULT.log_key(MACHINE)
KEY = DiskKey(KeyId("0123456789abcdef" * 2), bytes(range(32, 64)))
SEGMENT = SegmentId("fedcba9876543210" * 2)


AT = "2026-01-01T00:00:00+00:00"


def fixed(byte: int) -> Callable[[int], bytes]:
    """Randomness that is not."""
    return lambda length: bytes([byte]) * length


LATER = KEY.renew(fixed(0x13))
RENEWED = VAULT.renew(AT, fixed(0x11)).renew(AT, fixed(0x12))


def guest_blocks() -> list[tuple[int, bytes]]:
    """Stored, compressed, zero, half-zero and odd-sized content."""
    chance = random.Random(7)
    return [
        (0, chance.randbytes(4096)),
        (64 << 10, b"a line of a log file\n" * 3000 + bytes(65536 - 63000)),
        (256 << 10, bytes(128 << 10)),
        (512 << 10, chance.randbytes(8192) + bytes(8192) + chance.randbytes(4096)),
        (640 << 10, chance.randbytes(100 << 10)),
    ]


def sample_head(**changes: object) -> SegmentHead:
    fields: dict[str, object] = {
        "machine": MACHINE,
        "disk": DISK,
        "epoch": 3,
        "id": SEGMENT,
        "key_id": KEY.id,
        "disk_size_bytes": DISK_BYTES,
    }
    return SegmentHead(**{**fields, **changes})  # type: ignore[arg-type]


def sample_segment(head: SegmentHead | None = None) -> tuple[bytes, SegmentRef]:
    writer = SegmentWriter(head or sample_head(), KEY, randomness=fixed(0x5A))
    for offset, data in guest_blocks():
        writer.add(offset, memoryview(data))
    writer.add_zeros(960 << 10, 64 << 10)
    made, ref = writer.finish()
    return bytes(made), ref


def sample_claim() -> Claim:
    return Claim(
        machine=MACHINE,
        machine_name="shop ü 店",
        number=1,
        previous_hash=ZERO_HASH,
        epoch=1,
        claimant="gateway-a.site-a",
        reason="first copy",
        nonce="00112233445566778899aabbccddeeff",
        claimed_at="2026-01-01T00:00:00.000000+00:00",
    )


def sample_point() -> Point:
    _, ref = sample_segment()
    return Point(
        machine=MACHINE,
        machine_name="shop ü 店",
        epoch=3,
        nonce="ffeeddccbbaa99887766554433221100",
        checkpoint="secondsite-7",
        parent_checkpoint="secondsite-6",
        asked_at="2026-01-01T00:00:05.000000+00:00",
        given_at="2026-01-01T00:00:05.100000+00:00",
        consistency=Consistency.APPLICATION,
        disks=(DiskState(id=DISK, size_bytes=DISK_BYTES, key_id=KEY.id, fingerprint="0" * 31 + "1"),),
        segments=(ref,),
        definition=sample_definition(),
        changed_bytes=655360,
        frozen_seconds=0.25,
        number=8,
        previous_hash="ab" * 32,
        committed_at="2026-01-01T00:00:06.000000+00:00",
    )


def sample_definition() -> bytes:
    definition = Definition(format="memory", text="<domain/>", firmware_variables=b"\x00\x01")
    return seal_definition(definition, VAULT, MACHINE, randomness=fixed(0x33))


def mended_record(data: bytes) -> bytes:
    """Length, hash and seal made right again, so that what is tested is the rule behind them."""
    if len(data) < RECORD_HEADER.size:
        return data
    body = data[RECORD_HEADER.size :]
    head = data[:20] + len(body).to_bytes(4, "little") + data[24:32]
    head += blake3.blake3(head).update(body).digest()
    head += sealed_with(LOG_KEY)
    return head + LOG_KEY.seal(head, body) + body


def sample_key_file() -> bytes:
    """A key that took the place of two others."""
    key = KeyFile(RENEWED.id, RENEWED.secret, RENEWED.generation, RENEWED.retired)
    return encode_key_file(key, fixed(0x46))


def sample_boundary() -> Claim:
    """What a rotation adds to a log."""
    return msgspec.structs.replace(sample_claim(), number=7, reason="key rotation", epoch=3)


def sample_later_point() -> Point:
    """Its segment is sealed with another data key than the disk's first."""
    [ref] = sample_point().segments
    return msgspec.structs.replace(sample_point(), segments=(msgspec.structs.replace(ref, key_id=LATER.id),))


def sample_state() -> State:
    """After a rotation."""
    keyed = Keyed(key=RENEWED.id, generation=3, number=7)
    return State(machine=MACHINE, generation=5, nonce="ab" * 16, floor=2, floor_hash="cd" * 32, keyed=keyed)


def sample_dropped_state() -> State:
    """After a commit deleted all points; one base's image is still to be removed."""
    base = BaseState(disk=DISK, locator="/srv/bases/vda.raw", identity="12" * 16, size_bytes=DISK_BYTES)
    dropped = Dropped(number=9, hash="ef" * 32, epoch=4, at=AT, bases=(base,))
    return State(machine=MACHINE, generation=6, nonce="ab" * 16, dropped=dropped)


def golden_objects() -> dict[str, bytes]:
    """Every kind of object, by the name of its golden file."""
    return {
        "segment-1.bin": sample_segment()[0],
        "claim-1.bin": encode_record(sample_claim(), LOG_KEY),
        "point-1.bin": encode_record(sample_point(), LOG_KEY),
        "wrapped-key-1.bin": encode_wrapped(VAULT, MACHINE, DISK, KEY, randomness=fixed(0x44)),
        "definition-1.bin": sample_definition(),
        "vault-2.key": sample_key_file(),
        "boundary-2.bin": encode_record(sample_boundary(), RENEWED.log_key(MACHINE)),
        "wrapped-key-2.bin": encode_wrapped(RENEWED, MACHINE, DISK, KEY, randomness=fixed(0x45)),
        "wrapped-key-later-2.bin": encode_wrapped(RENEWED, MACHINE, DISK, LATER, randomness=fixed(0x47)),
        "point-later-2.bin": encode_record(sample_later_point(), RENEWED.log_key(MACHINE)),
        "state-2.bin": encode_state(sample_state(), RENEWED.log_key(MACHINE)),
        "state-3.bin": encode_state(sample_dropped_state(), LOG_KEY),
    }
