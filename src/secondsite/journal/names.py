"""Where things lie in a store: one function for each kind of object."""

from __future__ import annotations

from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId

MACHINES = "machines/"


def machine_prefix(machine: MachineId) -> str:
    """Everything of one machine."""
    return f"{MACHINES}{machine}/"


def log_prefix(machine: MachineId) -> str:
    """Points and claims."""
    return f"{MACHINES}{machine}/log/"


def log_name(machine: MachineId, number: int) -> str:
    """The record with this number: a point or a claim."""
    return f"{MACHINES}{machine}/log/{number:016d}"


def state_prefix(machine: MachineId) -> str:
    """Generations of the machine's state."""
    return f"{MACHINES}{machine}/state/"


def state_name(machine: MachineId, generation: int) -> str:
    """One generation of the machine's state: floor, pins, bases."""
    return f"{MACHINES}{machine}/state/{generation:016d}"


def segments_prefix(machine: MachineId) -> str:
    """Segments of all epochs and disks."""
    return f"{MACHINES}{machine}/segments/"


def segment_name(machine: MachineId, epoch: int, disk: DiskId, segment: SegmentId) -> str:
    """One segment."""
    return f"{MACHINES}{machine}/segments/{epoch:08d}/{disk}/{segment}"


def parse_segment_name(name: str) -> tuple[int, DiskId, SegmentId] | None:
    """Epoch, disk and id of a segment's name; None when it is not one."""
    parts = name.split("/")
    if len(parts) != 6 or parts[2] != "segments" or not parts[3].isdigit():
        return None
    return int(parts[3]), DiskId(parts[4]), SegmentId(parts[5])


def wrapped_key_name(machine: MachineId, key: KeyId) -> str:
    """A disk's wrapped key."""
    return f"{MACHINES}{machine}/keys/{key}"


def base_sums_prefix(machine: MachineId, disk: DiskId) -> str:
    """The sums promotion keeps of a disk's base."""
    return f"{MACHINES}{machine}/bases/{disk}/"
