"""Adopting existing copies, as the control API and ``--json`` say it."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

import msgspec

from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import DiskId, MachineId

ImageFormat = Literal["raw", "qcow2"]
# Who a request to the control API comes from, where it is not a person at this machine: a header.
ASKED_BY, SERVER = "x-secondsite-asked-by", "server"


class AdoptionState(enum.Enum):
    """Where an adoption stands."""

    OFFERED = "Offered"  # until the machine is protected at its site
    SEALING = "Sealing"  # the image is taken into the store
    READY = "Ready"  # the source compares, and sends what differs
    COMMITTING = "Committing"
    ADOPTED = "Adopted"  # the first point stands on it
    FAILED = "Failed"
    REFUSED = "Refused"  # it does not fit the machine's disks
    CANCELLED = "Cancelled"
    UNUSED = "Unused"  # the first point came another way


ENDED = frozenset(
    {
        AdoptionState.ADOPTED,
        AdoptionState.FAILED,
        AdoptionState.REFUSED,
        AdoptionState.CANCELLED,
        AdoptionState.UNUSED,
    }
)


class AdoptImage(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a copy of one disk lies at this site."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    format: ImageFormat


class AdoptRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Begin a machine's first copy with what is there already."""

    images: dict[DiskId, AdoptImage]


class AdoptedImage(Wire, frozen=True, kw_only=True):
    """One disk of an adoption."""

    disk: DiskId
    path: str
    format: ImageFormat
    size_bytes: int


class AdoptionStatus(Wire, frozen=True, kw_only=True):
    """An adoption at its target; done and total bytes are the disks', stored ones the store's."""

    machine: MachineId
    name: str
    state: AdoptionState
    images: tuple[AdoptedImage, ...]
    begun_at: str
    done_bytes: int = 0
    total_bytes: int = 0
    stored_bytes: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    point: int | None = None  # the first one, which stands on it
    sent_bytes: int | None = None  # what travelled for that point
    note: str = ""  # what it waits for
    error: dict[str, str] | None = None  # as errors travel
