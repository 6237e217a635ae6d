"""Opening a store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.journal.store import ObjectStore
from secondsite.journal.store_local import LocalStore
from secondsite.journal.store_object_settings import SCHEMES, Credentials, parse_place


def open_store(
    url: str,
    *,
    create: bool = True,
    staging: Path | None = None,
    credentials: Path | None = None,
    lock_days: int = 0,
    clock: Clock | None = None,
) -> ObjectStore:
    """Open ``file:///directory``, an absolute path, ``s3://bucket/prefix`` or ``az://container/prefix``.

    create: make the directory when it is not there; False for readers, who would only hide a typing error.
        Buckets and containers are never made.
    staging: where uploads to an object store wait until they are whole; readers need none.
    credentials: a file of the object store's variables; without it those of the environment.

    lock_days: how long objects of points are locked, in an S3 bucket with object lock.

    Raises:
        InvalidInput: no backend knows the URL, or its settings are wrong.
        StoreUnavailable: the directory cannot be used.
    """
    directory = local_directory(url)
    if directory is not None:
        return LocalStore(directory, create=create)
    if url.partition("://")[0] in SCHEMES:
        # loads the client library, which a store in a directory does without
        from secondsite.journal.store_obstore import ObstoreStore  # noqa: PLC0415

        return ObstoreStore(
            parse_place(url),
            credentials=Credentials(credentials),
            staging=staging,
            lock_days=lock_days,
            clock=clock,
        )
    why = "it is none of file:///directory, s3://bucket/prefix and az://container/prefix"
    raise InvalidInput(what=f"store URL {url[:200]!r}", why=why)


def local_directory(url: str) -> Path | None:
    """The directory of a local store's URL; None for any other."""
    if url.startswith("/"):
        return Path(url)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    return None
