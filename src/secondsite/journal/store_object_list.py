"""Names in the order of their bytes, from servers that have an order of their own.

AWS and Azure list in byte order. Servers that keep objects in directories (SeaweedFS) list ``a/…`` before
``a-b``, though a dash sorts before a slash. The two orders differ only where one name of a directory begins
another that goes on with a dash or a dot, so they are told apart by what comes, not by a setting:

* a page that is out of order makes its prefix one whose listings are collected whole and sorted here;
* ``after`` is given to the server only up to the first dash or dot at which the orders could differ, and a
  little less than that (SeaweedFS leaves out ``a/…`` when told to begin after ``a``); what comes too early is
  dropped here. Machines' and spans' ids hold dashes, but none is the beginning of another.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError

from secondsite.base.clock import Clock
from secondsite.journal.store import StoreUnavailable
from secondsite.journal.store_object_errors import Retries

if TYPE_CHECKING:
    from obstore.store import AzureStore, S3Store

# S3's own page, one request; Azure's pages of 5,000 are handed on in five parts.
PAGE_NAMES = 1000

_CHARACTERS = "-.0123456789_abcdefghijklmnopqrstuvwxyz"  # of names, in the order of their bytes
_NAME_HEAD = re.compile(r"[a-z0-9_-][a-z0-9._-]*(?:/[a-z0-9_-][a-z0-9._-]*)*")
_FIXED_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]{16}-[0-9]{16}-[0-9a-f]{8}")


def offset_for(prefix: str, after: str) -> str | None:
    """The name a server may be told to list from: in neither order after anything that follows `after`."""
    # ids of fixed length as underscores, so that what is searched for is not found in them
    masked = _FIXED_ID.sub(lambda found: "_" * len(found[0]), after)
    start = len(prefix) if after.startswith(prefix) else 0
    differs = min((at for mark in "-." if (at := masked.find(mark, start)) >= 0), default=len(after))
    head = _NAME_HEAD.match(after[:differs])
    if head is None:
        return None
    before = _CHARACTERS.find(head[0][-1]) - 1
    return f"{head[0][:-1]}{_CHARACTERS[before]}zzz" if before >= 0 else None


class Lister:
    """Listings of one store. Thread-safe."""

    def __init__(
        self,
        client: S3Store | AzureStore,
        *,
        store: str,
        retries: Retries,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        """store: its URL, for errors; stop: ends waits between tries."""
        self._client = client
        self._store = store
        self._retries = retries
        self._clock = clock
        self._stop = stop
        self._unordered: set[str] = set()  # prefixes whose listings came out of order

    def names(self, prefix: str, after: str) -> Iterator[str]:
        """See `ObjectStore.list`."""
        if prefix in self._unordered:
            yield from self._collect(prefix, after)
            return
        last = ""
        for page in self._pages(prefix, after):
            if page != sorted(page) or (page and page[0] <= last):
                self._unordered.add(prefix)
                if last:
                    why = "it does not list in order; it is listed whole and sorted from now on"
                    raise StoreUnavailable(store=self._store, key=prefix, why=why)
                yield from self._collect(prefix, after)
                return
            if page:
                last = page[-1]
            yield from page

    def _collect(self, prefix: str, after: str) -> Iterator[str]:
        yield from sorted({name for page in self._pages(prefix, after) for name in page})

    def _pages(self, prefix: str, after: str) -> Iterator[list[str]]:
        """Names after `after` in the server's order; a page that fails is asked for again."""
        offset, failures = offset_for(prefix, after), 0
        while True:
            try:
                for page in obstore.list(
                    self._client, prefix=prefix or None, offset=offset, chunk_size=PAGE_NAMES
                ):
                    failures = 0
                    if page:
                        offset = page[-1]["path"]
                    yield [meta["path"] for meta in page if meta["path"] > after]
            except (BaseError, OSError) as error:
                failures += 1
                self._retries.pause_or_raise(
                    error, failures, key=prefix, store=self._store, clock=self._clock, stop=self._stop
                )
            else:
                return
