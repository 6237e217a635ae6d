"""Opening a store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from secondsite.base.errors import InvalidInput
from secondsite.journal.store import ObjectStore
from secondsite.journal.store_local import LocalStore


def open_store(url: str, *, create: bool = True) -> ObjectStore:
    """Open ``file:///directory`` or an absolute path.

    create: make the directory when it is not there; False for readers, who would only hide a typing error.

    Raises:
        InvalidInput: no backend knows the URL.
        StoreUnavailable: the directory cannot be used.
    """
    if url.startswith("/"):
        return LocalStore(Path(url), create=create)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return LocalStore(Path(unquote(parts.path)), create=create)
    raise InvalidInput(what=f"store URL {url[:200]!r}", why="only file:///directory is known so far")
