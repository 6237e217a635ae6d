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


def merged_prefix(machine: MachineId) -> str:
    """Segments that merging wrote, by span."""
    return f"{MACHINES}{machine}/merged/"


def merged_name(machine: MachineId, span: str, disk: DiskId, segment: SegmentId) -> str:
    """One segment that merging wrote."""
    return f"{MACHINES}{machine}/merged/{span}/{disk}/{segment}"


def parse_merged_name(name: str) -> str | None:
    """The span of a merged segment's name; None when it is not one."""
    parts = name.split("/")
    return parts[3] if len(parts) == 6 and parts[2] == "merged" else None


def log_pages_prefix(machine: MachineId) -> str:
    """Pages of the log."""
    return f"{MACHINES}{machine}/logpages/"


def log_page_name(machine: MachineId, first: int) -> str:
    """The log page from record `first` on."""
    return f"{MACHINES}{machine}/logpages/{first:016d}"


def pages_prefix(machine: MachineId, disk: DiskId | None = None) -> str:
    """Pages of one disk, or of all."""
    return f"{MACHINES}{machine}/pages/{disk}/" if disk is not None else f"{MACHINES}{machine}/pages/"


def page_name(machine: MachineId, disk: DiskId, size: int, first: int, points: int) -> str:
    """The page of `size` records from number `first` on, `points` of them points with the disk."""
    return f"{MACHINES}{machine}/pages/{disk}/{size:06d}/{first:016d}-{points:06d}"


def parse_page_name(name: str) -> tuple[int, int, int] | None:
    """(size, first record, points) of a page's name; None when it is not one."""
    parts = name.split("/")
    first, _, points = parts[-1].partition("-")
    if len(parts) != 6 or parts[2] != "pages" or not (parts[4].isdigit() and (first + points).isdigit()):
        return None
    return int(parts[4]), int(first), int(points or 0)


def span_id(first: int, last: int, chance: str) -> str:
    """``0000000000000002-0000000000000130-1f2e3d4c``: the records it replaces, 8 random digits."""
    return f"{first:016d}-{last:016d}-{chance}"


def spans_prefix(machine: MachineId) -> str:
    """Spans."""
    return f"{MACHINES}{machine}/spans/"


def span_name(machine: MachineId, span: str) -> str:
    """One span."""
    return f"{MACHINES}{machine}/spans/{span}"


def reserve_share(name: str) -> float:
    """How much of the room a store keeps free an object must leave: points come last, what frees room first.

    All of it for segments that arrive; a quarter for what merging writes; none for records, states, keys:
    so a full store can still commit what is there, merge, promote and delete.
    """
    parts = name.split("/")
    kind = parts[2] if len(parts) > 3 and parts[0] + "/" == MACHINES else ""
    return {"segments": 1.0, "merged": 0.25, "pages": 0.5, "logpages": 0.5}.get(kind, 0.0)


def parse_segment_name(name: str) -> tuple[int, DiskId, SegmentId] | None:
    """Epoch, disk and id of a segment's name; None when it is not one."""
    parts = name.split("/")
    if len(parts) != 6 or parts[2] != "segments" or not parts[3].isdigit():
        return None
    return int(parts[3]), DiskId(parts[4]), SegmentId(parts[5])


def wrapped_key_name(machine: MachineId, key: KeyId) -> str:
    """A disk's key wrapped with the first vault key."""
    return f"{MACHINES}{machine}/keys/{key}"


def wrapped_keys_prefix(machine: MachineId) -> str:
    """All wrapped keys of a machine."""
    return f"{MACHINES}{machine}/keys/"


def rewrapped_key_name(machine: MachineId, key: KeyId, vault_id: KeyId) -> str:
    """A disk's key wrapped with a later vault key than the first: one object for each of the two keys."""
    return f"{MACHINES}{machine}/keys/{key}.{vault_id}"


def base_sums_prefix(machine: MachineId, disk: DiskId) -> str:
    """The sums promotion keeps of a disk's base."""
    return f"{MACHINES}{machine}/bases/{disk}/"


def is_of_points(name: str) -> bool:
    """Whether an object is part of points for as long as they are kept, and so may be locked for years."""
    parts = name.split("/")
    return (
        len(parts) > 3
        and parts[0] + "/" == MACHINES
        and parts[2] in {"keys", "log", "merged", "segments", "spans"}
    )
