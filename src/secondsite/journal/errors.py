"""What reading a stored object can find wrong, and what keys can be wrong about."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class FormatUnknown(SecondsiteError):
    """Written by a version that this one does not know."""

    code = "format.unknown"
    outcome = Outcome.REFUSED
    happened = "{what} cannot be read: {why}."
    cause = "It was written by a newer secondsite, or it is not a file of secondsite."
    action = "Read it with the version that wrote it, or a newer one; it was not changed."


class ObjectDamaged(SecondsiteError):
    """Stored bytes are not the bytes that were written."""

    code = "format.damaged"
    outcome = Outcome.DAMAGED
    happened = "{what} is damaged: {why}."
    cause = "The storage beneath the store changed or lost bytes, or somebody altered them."
    action = (
        "Restore the object from a copy of the store; `secondsite verify` says what it costs. "
        "See RUNBOOK.md, damaged object."
    )


class RecordTooLarge(SecondsiteError):
    """More than one record can name; refused before anything is written."""

    code = "record.too-large"
    outcome = Outcome.REFUSED
    happened = "{what} cannot be kept: it would take {size} bytes in one record, where {limit} fit."
    cause = "A first copy names all its segments at once, and so many of them hold some 4 TiB of data."
    action = (
        "Protect fewer of the machine's disks (`secondsite protect --disk`), or let the guest discard what "
        "it does not use. Nothing was changed."
    )


class WrongKey(SecondsiteError):
    """A key that is not the one."""

    code = "key.wrong"
    outcome = Outcome.REFUSED
    happened = "{what} is sealed with the key {needed}, but the key given is {given}."
    cause = "The key file of another vault was given, or one from before this vault's key was rotated."
    action = (
        "Give the key file that opens {needed}: `secondsite key show FILE` prints every id a file opens. "
        "See docs/keys.md for where to look."
    )


class KeyRetired(ObjectDamaged):
    """Sealed with an old key after a newer one took its place: by a thief of the old key, or a straggler."""

    code = "key.retired"
    outcome = Outcome.DAMAGED
    happened = "{what} is sealed with the key {key}, which may not seal any more {since}; {needed} may."
    cause = "A gateway still runs with the old key file, or somebody who got hold of the old key wrote it."
    action = (
        "Give every gateway the new key file. If all have it, take the object away and ask who holds the "
        "old key. See RUNBOOK.md, rotate the recovery key."
    )


class TooManyRetired(SecondsiteError):
    """A key file holds a limited number of keys."""

    code = "key.too-many-retired"
    outcome = Outcome.REFUSED
    happened = "The key was not renewed: its file holds {count} retired keys already."
    cause = "The key was rotated more often than anybody needs, faster than points leave by the retention."
    action = "Make a new vault, or wait: see docs/keys.md, when an old key is not needed any more."


class KeyFileInvalid(SecondsiteError):
    """A key file that does not parse."""

    code = "key.file-invalid"
    outcome = Outcome.REFUSED
    happened = "{path} is not a usable vault key file: {why}."
    cause = "It was cut off, retyped with an error, or is another file."
    action = "Use an intact copy of the key file; its checksum line tells a damaged one from a good one."


class KeyMissing(SecondsiteError):
    """The store has no such wrapped key."""

    code = "key.missing"
    outcome = Outcome.DAMAGED
    happened = "The wrapped data key {key} of machine {machine} is not in the store."
    cause = "The object was deleted, or the store was copied without its keys."
    action = "Restore machines/{machine}/keys/{key} from a copy of the store. See RUNBOOK.md, damaged object."


def damaged(what: str, why: str) -> ObjectDamaged:
    """Shorthand used by the decoders."""
    return ObjectDamaged(what=what, why=why)
