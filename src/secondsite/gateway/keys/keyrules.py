"""Which vault key may seal what arrives: while a key is rotated two gateways hold different ones.

The target takes what any key of its file opens until the rotation is finished, then the newest alone. Both
refusals can be retried: the source waits, captures on, and nothing is lost.
"""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.journal.box import box_key_id
from secondsite.journal.errors import FormatUnknown, ObjectDamaged, WrongKey
from secondsite.journal.keys import KeyRing, VaultKey, decode_wrapped, wrapped_name
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.store import ObjectStore
from secondsite.model.ids import KeyId, MachineId


class KeyNotHeld(SecondsiteError):
    """The sender is ahead."""

    code = "key.not-held"
    outcome = Outcome.UNAVAILABLE
    happened = "{what} is sealed with the vault key {needed}; the receiving gateway has {given} and not that."
    cause = "The key is rotated and the source got the new file first, or the two are of different vaults."
    action = (
        "Give the receiving gateway the same key file and restart it; replication goes on by itself. "
        "See RUNBOOK.md, rotate the recovery key."
    )


class KeyOutdated(SecondsiteError):
    """The sender is behind."""

    code = "key.outdated"
    outcome = Outcome.UNAVAILABLE
    happened = "{what} is sealed with the vault key {found}, which was retired; {needed} took its place."
    cause = "The source still has the key file of before the rotation, which is finished at the target."
    action = (
        "Put the new key file in its place at the source and restart the gateway there; replication goes on "
        "by itself. See RUNBOOK.md, rotate the recovery key."
    )


def check_sealer(vault: VaultKey | None, what: str, box: bytes) -> None:
    """Refuse a box this gateway could not open later. Raises KeyNotHeld, KeyOutdated."""
    found = box_key_id(box)
    if vault is None or not found or found == vault.id:
        return
    if not vault.opens(found):
        raise KeyNotHeld(what=what, needed=found, given=vault.id)
    if vault.strictness.finished:
        raise KeyOutdated(what=what, found=found, needed=vault.id)


def name_of_wrapped(vault: VaultKey | None, machine: MachineId, key: KeyId, wrapped: bytes) -> str:
    """Where a wrapped key that arrived belongs. Raises KeyNotHeld, KeyOutdated."""
    check_sealer(vault, f"the data key {key} of machine {machine}", wrapped)
    if vault is None or not box_key_id(wrapped):
        return wrapped_key_name(machine, key)
    return wrapped_name(vault.as_of(box_key_id(wrapped)) or vault, machine, key)


def name_of_kept(store: ObjectStore, vault: VaultKey | None, machine: MachineId, key: KeyId) -> str:
    """Where the store has a wrapped key; where it would have it when it has not."""
    if vault is None:
        return wrapped_key_name(machine, key)
    return KeyRing(store, machine, vault).name(key)


def is_same_key(vault: VaultKey | None, one: bytes, other: bytes) -> bool:
    """Whether two wrappings hold the same data key: each side wraps it again for itself."""
    if one == other:
        return True
    if vault is None:
        return False
    try:
        return decode_wrapped(vault, one) == decode_wrapped(vault, other)
    except (WrongKey, ObjectDamaged, FormatUnknown):
        return False
