"""What the control API takes about standing protections."""

from __future__ import annotations

from typing import Annotated

import msgspec

from secondsite.gateway.messages.gateway import FileIdentity
from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import MachineId

By = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class ByWhom(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who pauses or resumes a protection."""

    by: By


class ResyncRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Compare everything. A number that was done, or is asked for already, changes nothing."""

    by: By
    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None  # None: once more than ever


_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2,512}$")]


class KeyProofRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proof that the recovery key exists outside the gateway: HMAC of its nonce under the key."""

    nonce: _Hex
    proof: _Hex
    key_file: FileIdentity
    by: By = "somebody through the server"


class KeyState(Wire, frozen=True, kw_only=True):
    """Whether the recovery key of what this gateway seals was proved to be kept elsewhere."""

    key_id: str
    proved: bool
    proved_at: str | None = None
    proved_by: str = ""


class Deletion(Wire, frozen=True, kw_only=True):
    """The deletion of a replica that is under way."""

    machine: MachineId
    name: str
    by: str
    asked_at: str
    deleted: int = 0  # objects so far
    error: str = ""  # why it is not through; it is tried again
