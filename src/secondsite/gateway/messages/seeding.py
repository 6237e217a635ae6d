"""What the control API says of offline seeding: the first copy on media, written here and imported there."""

from __future__ import annotations

import enum

import msgspec

from secondsite.gateway.messages.wire import PathText, Wire
from secondsite.model.ids import MachineId


class SeedExportRequest(Wire, frozen=True, kw_only=True):
    """Write the first copy to media instead of sending it."""

    directory: PathText
    anywhere: bool = False  # also on the file system of the machine's disks or of our cache


class SeedExportState(enum.Enum):
    """Where a seed stands at its source."""

    NONE = "None"
    COPYING = "Copying"
    EXPORTED = "Exported"  # on media, waiting to be imported at the target


class SeedExportStatus(Wire, frozen=True, kw_only=True):
    """A seed at its source; bytes are the disks' but `stored_bytes`, which are on the media."""

    machine: MachineId
    name: str
    state: SeedExportState
    directory: str = ""
    exported_at: str | None = None
    stored_bytes: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None


class SeedImportRequest(Wire, frozen=True, kw_only=True):
    """Take what is on media into the store."""

    directory: PathText


class SeedImportState(enum.Enum):
    """Where an import stands."""

    NONE = "None"
    CHECKING = "Checking"
    IMPORTING = "Importing"
    IMPORTED = "Imported"
    FAILED = "Failed"


class SeedImportStatus(Wire, frozen=True, kw_only=True):
    """The import that runs at a target, or the last one; every byte counts twice: checked, and put."""

    state: SeedImportState
    directory: str = ""
    machine: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    points: dict[str, int] = msgspec.field(default_factory=dict)  # what the seeds became, by machine
    error: dict[str, str] | None = None  # as errors travel
