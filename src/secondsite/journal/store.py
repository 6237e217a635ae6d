"""The object store protocol: immutable objects, created once, and the errors every backend shares.

Contract (tests/contract/test_stores.py runs it on every backend):

* An object appears whole or not at all, is durable when the call returns, and never changes.
* Creating a name that exists raises `ObjectExists`, also under races: exactly one creator wins.
* `list` gives names in ascending order of their bytes; an object created before the call is in it.
* Names are slash-separated parts of ``[a-z0-9._-]``; backends refuse others (`InvalidInput`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError

# The longest key of the journal has 160 characters; S3 allows 1,024 bytes, ext4 and XFS 255 a part.
KEY_LENGTH_MAX = 512
_KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,127}(?:/[a-z0-9_-][a-z0-9._-]{0,127})*\Z")


def check_key(key: str) -> str:
    """Return `key` when it is a valid object name; no part may be empty or start with a dot.

    Raises:
        InvalidInput: it is not.
    """
    if len(key) > KEY_LENGTH_MAX or not _KEY.match(key):
        raise InvalidInput(what=f"object name {key[:80]!r}", why="it has parts an object cannot have")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` when it is empty or whole parts ending in a slash. Raises InvalidInput."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidInput(what=f"object prefix {prefix[:80]!r}", why="it does not end in a slash")
        check_key(prefix[:-1])
    return prefix


class ObjectMissing(SecondsiteError):
    """No object has this name."""

    code = "store.object-missing"
    outcome = Outcome.DAMAGED
    happened = "The object {key} is not in the store {store}."
    cause = "It was deleted outside secondsite, or the store was restored from an older copy."
    action = "`secondsite verify` names the points that need it. See RUNBOOK.md, damaged object."


class ObjectExists(SecondsiteError):
    """The name is taken; for records that is how a race is lost."""

    code = "store.object-exists"
    outcome = Outcome.REFUSED
    happened = "The object {key} is in the store {store} already."
    cause = "Another writer was first, or the same call was made twice."
    action = "None: the caller reads what is there and goes on from it."


class StoreFull(SecondsiteError):
    """No room."""

    code = "store.full"
    outcome = Outcome.UNAVAILABLE
    happened = "The store {store} has no room for {key}."
    cause = "The volume is full, or its quota is reached."
    action = "Add room; replication waits and goes on by itself. See RUNBOOK.md, store full."


class StoreLocked(SecondsiteError):
    """The object may not be removed yet."""

    code = "store.locked"
    outcome = Outcome.UNAVAILABLE
    happened = "The object {key} of the store {store} is locked until {until}."
    cause = (
        "Its retention time has not passed; neither we nor anybody else with our credentials can remove it."
    )
    action = "None: it is removed once its lock has ended."


class StoreUnavailable(SecondsiteError):
    """The backend failed in a way that may pass."""

    code = "store.unavailable"
    outcome = Outcome.UNAVAILABLE
    happened = "The store {store} failed at {key}: {why}."
    cause = "A disk or network error beneath the store."
    action = "Check the volume or the network; replication waits and goes on by itself."


class StagedElsewhere(SecondsiteError):
    """Another writer has taken over the staged object."""

    code = "store.staged-elsewhere"
    outcome = Outcome.UNAVAILABLE
    happened = "Another writer is sending {key} to the store {store}."
    cause = "The same upload was started again, over another connection or by another process."
    action = "None: the newer upload goes on; this one asks for the offset and tries again."


class StagedObject(Protocol):
    """An object being written; not visible before `publish`. Its bytes so far survive a restart."""

    @property
    def offset(self) -> int:
        """Bytes staged so far; the next `append` continues there."""

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. Raises StoreFull, StoreUnavailable, StagedElsewhere."""

    def read_back(self, start: int, length: int) -> bytes:
        """Bytes staged so far, to go on hashing after a resume; short at the end."""

    def publish(self) -> None:
        """Make it durable and visible, at once. Raises ObjectExists (the staged bytes are dropped then).

        Staged bytes are not synced before; after a power cut they may be damaged, so whoever resumes
        checks the whole object's hash (`read_back`) before publishing it.
        """

    def discard(self) -> None:
        """Drop the staged bytes."""

    def close(self) -> None:
        """Let go of it for now; `stage` with the same key resumes."""


class ObjectStore(Protocol):
    """Where journals live."""

    @property
    def url(self) -> str:
        """How to open it again, without secrets, e.g. ``file:///srv/replicas``."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object. Raises ObjectExists, StoreFull, StoreUnavailable."""

    def stage(self, key: str) -> StagedObject:
        """Begin an object, or resume one staged earlier under the same key.

        A stager of the same process that still holds the key loses it (StagedElsewhere at its next call).
        Raises ObjectExists when the object is there already, StagedElsewhere when another process holds it.
        """

    def get(self, key: str, *, size_bytes_max: int) -> bytes:
        """A whole object. Raises ObjectMissing, FileTooLarge."""

    def read(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; raises ObjectMissing, or EOFError past the end."""

    def size(self, key: str) -> int:
        """An object's size in bytes. Raises ObjectMissing."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Names that start with `prefix` (a whole part, ending in ``/``) and sort after `after`."""

    def delete(self, key: str) -> None:
        """Remove an object, durable; absent is fine."""

    def close(self) -> None:
        """Let go of files or connections held open; the store can still be used."""
