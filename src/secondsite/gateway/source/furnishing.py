"""What the replication of one machine needs besides its source and its link: keys, tables, a bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.files import remove_file
from secondsite.fabrics.base import Source
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.keys.sourcekeys import SourceKeys
from secondsite.gateway.source.cycle import Bench, Fence, Furnished, Rekeyed
from secondsite.gateway.source.subblocks import SubBlockTable
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.transfer.shipping import Shipper


@dataclass(frozen=True)
class Furnisher:
    """Makes it for any machine of one gateway."""

    keys: SourceKeys
    cache_dir: Path
    vault: VaultKey
    clock: Clock
    events: EventSink
    fence: Fence | None = None  # who isolates machines that were taken over elsewhere

    def bench(
        self, protection: Protection, source: Source, shipper: Shipper
    ) -> tuple[Bench, dict[KeyId, bytes]]:
        """The bench, and the wrapped keys as they travel. Raises WrongKey, ObjectDamaged, OSError."""
        machine = protection.machine
        # those named, also ones it does not have now: it may get them again
        disks = protection.disks or tuple(disk.id for disk in source.machine.disks)
        chosen = [disk for disk in disks if disk not in protection.left_out]
        furnished = {disk: self.furnish(machine, disk) for disk in chosen}
        bench = Bench(
            machine=machine,
            name=protection.name,
            source=source,
            shipper=shipper,
            vault=self.vault,
            keys={disk: made.key for disk, made in furnished.items()},
            tables={disk: made.table for disk, made in furnished.items()},
            clock=self.clock,
            events=self.events,
            furnish=lambda disk: self.furnish(machine, disk),
            rekey=lambda disk, data: self.rekey(machine, disk, data),
            level=protection.policy.compression_level,
            mapping=protection.mapping,
            fence=self.fence,
        )
        return bench, {key: data for made in furnished.values() for key, data in made.wrapped.items()}

    def furnish(self, machine: MachineId, disk: DiskId) -> Furnished:
        """The disk's data key, made at its first start, and its table; the key lies here only wrapped."""
        keys = self.keys.of(machine, disk)
        return Furnished(key=keys.newest, wrapped=keys.wrapped, table=self._table(machine, disk))

    def rekey(self, machine: MachineId, disk: DiskId, data: bytes) -> Rekeyed:
        """Keep the wrapped key `data` for a disk. Raises WrongKey, ObjectDamaged."""
        keys = self.keys.take_back(machine, disk, data)
        return Rekeyed(key=keys.newest, wrapped=keys.wrapped)

    def remove_tables(self, machine: MachineId) -> None:
        """Those of a machine that is no longer protected."""
        for path in sorted(self._tables_of(machine).glob("*")):
            remove_file(path)

    def _tables_of(self, machine: MachineId) -> Path:
        return self.cache_dir / "subblocks" / machine

    def _table(self, machine: MachineId, disk: DiskId) -> SubBlockTable:
        return SubBlockTable(
            self._tables_of(machine) / f"{disk}.table", machine, disk, on_void=self._teller(machine, disk)
        )

    def _teller(self, machine: MachineId, disk: DiskId) -> Callable[[str], None]:
        def tell(why: str) -> None:
            text = f"what the target holds of disk {disk} is not known, nothing is dropped: {why}"
            self.events.emit("capture.table-void", Severity.WARNING, text, machine=machine)

        return tell
