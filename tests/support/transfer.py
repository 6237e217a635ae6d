"""What tests of the transfer share: an authority, certificates, recorded events, segments of random bytes."""

from __future__ import annotations

import random
import threading
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import blake3

from secondsite.base.clock import Clock, FakeClock, SystemClock
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.points import Consistency, DiskState, PointProposal, SegmentRef
from secondsite.transfer.pki import Authority
from secondsite.transfer.protocols import ClaimRequest, Link
from secondsite.transfer.tls import TlsFiles
from support.segments import sealed_segment

MACHINE = MachineId("6f1f7c9e-52c7-4f0e-9a53-0c4a3a1f0001")
OTHER_MACHINE = MachineId("6f1f7c9e-52c7-4f0e-9a53-0c4a3a1f0002")
DISK = DiskId("vda")
KEY = KeyId("00112233445566778899aabbccddeeff")
DISK_BYTES = 64 * 1024 * 1024


@dataclass
class Events:
    """An EventSink that keeps what it got."""

    seen: list[tuple[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        with self.changed:
            self.seen.append((code, text))
            self.changed.notify_all()

    def codes(self) -> list[str]:
        return [code for code, _ in self.seen]

    def wait_for(self, code: str, seconds: float = 20.0) -> str:
        """The text of the first event with this code."""
        with self.changed:
            assert self.changed.wait_for(lambda: code in self.codes(), seconds), (code, self.seen)
            return next(text for found, text in self.seen if found == code)


class Certificates:
    """An authority in a directory, and certificates of it."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory
        self.authority = Authority.create(directory / "authority", clock=clock or SystemClock())

    def of(self, name: str, *, days: float = 30) -> TlsFiles:
        certificate, key = self.authority.issue(name, days=days).save(self.directory / "leaves", name)
        return TlsFiles(certificate, key, self.authority.certificate_path, self.authority.revoked_path)

    def expired(self, name: str) -> TlsFiles:
        """A certificate of the same authority that ended yesterday."""
        clock = SystemClock()
        earlier = FakeClock(clock.utc() - timedelta(days=2))
        issuer = Authority.load(self.directory / "authority", clock=earlier)
        certificate, key = issuer.issue(name, days=1).save(self.directory / "expired", name)
        return TlsFiles(certificate, key, self.authority.certificate_path, self.authority.revoked_path)


@dataclass
class Made:
    """A segment: bytes that look like one to whoever has no key, and their reference."""

    ref: SegmentRef
    data: bytes


class Maker:
    """Makes segments, claims and proposals of one machine; all chance from one seed."""

    def __init__(self, seed: int = 1, machine: MachineId = MACHINE) -> None:
        self.chance = random.Random(seed)
        self.machine = machine
        self.instant = 0
        self.parent: str | None = None

    def hex32(self) -> str:
        return self.chance.randbytes(16).hex()

    def segment(self, size_bytes: int = 300_000, epoch: int = 1, disk: DiskId = DISK) -> Made:
        data, ref = sealed_segment(
            self.machine, disk, epoch, SegmentId(self.hex32()), size_bytes=size_bytes, chance=self.chance
        )
        assert blake3.blake3(data).hexdigest() == ref.hash
        return Made(ref, data)

    def claim(self, link: Link, reason: str = "first copy") -> int:
        head = link.head(self.machine)
        claim = link.claim(
            ClaimRequest(
                machine=self.machine,
                machine_name="web-1",
                reason=reason,
                nonce=self.hex32(),
                expected_number=head.number,
                expected_hash=head.hash,
            )
        )
        return claim.epoch

    def proposal(self, *segments: Made, epoch: int = 1) -> PointProposal:
        self.instant += 1
        return PointProposal(
            machine=self.machine,
            machine_name="web-1",
            epoch=epoch,
            nonce=self.hex32(),
            checkpoint=f"ss-{self.instant}-{self.hex32()[:6]}",
            parent_checkpoint=self.parent,
            asked_at="2026-01-01T00:00:00+00:00",
            given_at="2026-01-01T00:00:01+00:00",
            consistency=Consistency.CRASH,
            disks=(DiskState(id=DISK, size_bytes=DISK_BYTES, key_id=KEY),),
            segments=tuple(made.ref for made in segments),
            definition=b"sealed",
        )


def new_machine() -> MachineId:
    return MachineId(str(uuid.uuid4()))
