"""What the control API says of the vault key and its rotation."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from secondsite.gateway.messages.gateway import FileIdentity
from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import DiskId, KeyId, MachineId


class KeyPhase(enum.StrEnum):
    """Where the rotation of a gateway's vault key stands."""

    NEVER = "Never"  # the gateway has the first key of its vault
    NO_STORE = "NoStore"  # it has no store: its part is done when its sources run with the new key
    SEALING = "Sealing"
    PROOF = "WaitingForProof"  # everything is sealed with the new key; the recovery key is to be proved
    DELETING = "Deleting"
    FINISHED = "Finished"


class RetiredKeyStatus(Wire, frozen=True, kw_only=True):
    """A key another one took the place of, and what still needs it."""

    key_id: str
    generation: int
    retired_at: str
    points: int = 0
    wrapped_keys: int = 0
    copies: int = 0  # of small objects, there once more under the newest key
    machines: tuple[str, ...] = ()  # that need it


class KeyStatus(Wire, frozen=True, kw_only=True):
    """A gateway's vault key."""

    key_id: str
    generation: int
    phase: KeyPhase
    retired: tuple[RetiredKeyStatus, ...] = ()  # the newest first
    machines_done: int = 0
    machines_total: int = 0
    machine: str | None = None  # being worked on
    waits: tuple[str, ...] = ()  # what must happen before it can be finished, in sentences
    error: str | None = None  # why the last pass ended early; it is repeated
    proved_at: str | None = None


_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2,512}$")]


class FinishRotation(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proof that the new recovery key exists outside the gateway."""

    nonce: _Hex
    proof: _Hex
    key_file: FileIdentity


class RenewDataKeys(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seal what is captured from now on with new data keys."""

    disks: tuple[DiskId, ...] | None = None  # None: all


class DataKeysRenewed(Wire, frozen=True, kw_only=True):
    """The new keys' ids, by disk."""

    machine: MachineId
    name: str
    keys: dict[DiskId, KeyId]
