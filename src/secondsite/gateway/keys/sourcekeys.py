"""The data keys of a source's disks: made here, kept here only wrapped, sent to the target's store.

``state/keys/MACHINE/DISK.key`` holds the first key of a disk, ``DISK.key.2`` and so on those that took its
place; the newest seals. A disk's name may end in a number, but never in ``.key`` and one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.crash import crash_point, mark
from secondsite.base.files import create_file, read_limited, remove_file, replace_file
from secondsite.journal.box import box_key_id
from secondsite.journal.errors import damaged
from secondsite.journal.keys import WRAPPED_KEY_BYTES_MAX, DiskKey, VaultKey, decode_wrapped, encode_wrapped
from secondsite.model.ids import DiskId, KeyId, MachineId

AFTER_REWRAP = mark("key.after-source")
AFTER_RENEWED = mark("key.after-renewed")


@dataclass(frozen=True)
class DiskKeys:
    """A disk's keys."""

    newest: DiskKey  # seals from now on
    wrapped: Mapping[KeyId, bytes]  # all of them, as they travel


class SourceKeys:
    """Reads and makes the files. The caller sees to it that one thread at a time works on a machine."""

    def __init__(self, directory: Path, vault: VaultKey) -> None:
        self._directory = directory
        self._vault = vault

    def of(self, machine: MachineId, disk: DiskId) -> DiskKeys:
        """The keys of a disk, the first one made where there is none; wrapped with the present vault key.

        Raises WrongKey, ObjectDamaged.
        """
        paths = self._paths(machine, disk)
        if not paths:
            first = self._place(machine) / f"{disk}.key"
            create_file(first, encode_wrapped(self._vault, machine, disk, DiskKey.create()))
            paths = [first]
        wrapped: dict[KeyId, bytes] = {}
        for path in paths:
            key, data = self._read(path, machine, disk)
            wrapped[key.id] = data
        return DiskKeys(key, wrapped)

    def renew(self, machine: MachineId, disk: DiskId) -> KeyId:
        """Make the key that seals from the next start of the replication on; returns its id.

        Raises WrongKey, ObjectDamaged.
        """
        newest = self.of(machine, disk).newest
        made = newest.renew()
        number = len(self._paths(machine, disk)) + 1
        path = self._place(machine) / f"{disk}.key.{number}"
        create_file(path, encode_wrapped(self._vault, machine, disk, made))
        crash_point(AFTER_RENEWED)
        return made.id

    def take_back(self, machine: MachineId, disk: DiskId, data: bytes) -> DiskKeys:
        """Keep the first key of a disk as the target has it, instead of one made anew here.

        Later keys the target may know are not to be had; so one is made that seals from now on: never again
        with a key that had been replaced. Raises WrongKey, ObjectDamaged.
        """
        owner, of, key = decode_wrapped(self._vault, data)
        if (owner, of) != (machine, disk):
            raise damaged(f"key {key.id}", f"it is of disk {of} of machine {owner}")
        for path in reversed(self._paths(machine, disk)[1:]):
            remove_file(path)  # they stand on what is replaced
        replace_file(self._place(machine) / f"{disk}.key", encode_wrapped(self._vault, machine, disk, key))
        self.renew(machine, disk)
        return self.of(machine, disk)

    def _place(self, machine: MachineId) -> Path:
        place = self._directory / machine
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    def _paths(self, machine: MachineId, disk: DiskId) -> list[Path]:
        """In the order they were made."""
        first = self._place(machine) / f"{disk}.key"
        found = [first] if first.exists() else []
        while (following := first.with_name(f"{disk}.key.{len(found) + 1}")).exists():
            found.append(following)
        return found

    def _read(self, path: Path, machine: MachineId, disk: DiskId) -> tuple[DiskKey, bytes]:
        data = read_limited(path, size_bytes_max=WRAPPED_KEY_BYTES_MAX)
        owner, of, key = decode_wrapped(self._vault, data)
        if (owner, of) != (machine, disk):
            raise damaged(str(path), f"it holds the key of disk {of} of machine {owner}")
        if box_key_id(data) != self._vault.id:  # the vault key was rotated
            data = encode_wrapped(self._vault, machine, disk, key)
            replace_file(path, data)
            crash_point(AFTER_REWRAP)
        return key, data
