"""Journals in S3 and Azure Blob, through obstore: a conditional PUT for every object, no multipart uploads.

What the protocol promises and where it comes from:

* whole or not at all, durable when the call returns: the provider's promise for a PUT that was answered;
* created once: ``If-None-Match: *``, which some servers silently ignore: `journal.probe` finds out;
* listed in byte order: see `store_object_list`;
* an acknowledgement that was lost: a create that is refused after a try of the same call had failed reads
  what is there; bytes equal to ours are ours (records hold a nonce, segments a random salt).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import FileTooLarge
from secondsite.base.uploads import Uploads
from secondsite.journal.store import (
    ObjectExists,
    ObjectMissing,
    StagedObject,
    check_key,
    check_prefix,
)
from secondsite.journal.store_object_clients import open_client
from secondsite.journal.store_object_errors import Retries
from secondsite.journal.store_object_list import Lister
from secondsite.journal.store_object_lock import S3Versions
from secondsite.journal.store_object_settings import S3, Credentials, ObjectPlace
from secondsite.journal.store_object_staging import StagingDirectory

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import AzureStore, S3Store

T = TypeVar("T")


class ObstoreStore:
    """Objects of a bucket or container below a prefix. Thread-safe; several processes may use one."""

    def __init__(
        self,
        place: ObjectPlace,
        *,
        credentials: Credentials | None = None,
        staging: Path | None = None,
        clock: Clock | None = None,
        retries: Retries | None = None,
        lock_days: int = 0,
    ) -> None:
        """staging: where staged objects wait, on a disk of this host; None: `stage` is refused (readers).

        lock_days: how long objects of points are locked from their creation on, where a bucket can.

        Raises:
            InvalidInput: the settings in the environment or the file contradict themselves.
        """
        self._place = place
        self._clock = clock or SystemClock()
        self._retries = retries or Retries()
        credentials = credentials or Credentials()
        self._client: S3Store | AzureStore = open_client(place, credentials)
        self._versions = (
            S3Versions(place, credentials, lock_days=lock_days, clock=self._clock)
            if place.scheme == S3
            else None
        )
        self._keeps_versions: bool | None = None  # not known before the first answer that says it
        self._closing = threading.Event()
        self.uploads = Uploads()
        self._lister = Lister(
            self._client, store=place.url, retries=self._retries, clock=self._clock, stop=self._closing
        )
        self._staging = StagingDirectory(staging, place.url, self._publish) if staging is not None else None

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``, ``az://container/prefix``."""
        return self._place.url

    @property
    def place(self) -> ObjectPlace:
        """The URL's parts."""
        return self._place

    @property
    def versions(self) -> S3Versions | None:
        """Versions and locks, where the backend is one of S3."""
        return self._versions

    def tag(self, key: str) -> str:
        """What a conditional update of the object as it is now has to name. For the probe."""
        return self._call(key, lambda: obstore.head(self._client, key))["e_tag"] or ""

    def update(self, key: str, data: bytes, *, tag: str) -> None:
        """Replace the object if its tag still is `tag`. For the probe alone: journals never do this.

        Raises:
            ObjectExists: it is another by now.
        """
        mode: UpdateVersion = {"e_tag": tag}
        self._call(key, lambda: obstore.put(self._client, key, data, mode=mode, use_multipart=False))

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object; see the protocol."""
        self._create(check_key(key), memoryview(data).cast("B"))

    def stage(self, key: str) -> StagedObject:
        """Begin or resume an object in the staging directory; see the protocol."""
        check_key(key)
        if self._staging is None:
            raise InvalidInput(
                what=f"an upload to {self.url}", why="this process has no directory to stage in"
            )
        return self._staging.stage(key, lambda: self._exists(key))

    def get(self, key: str, *, size_bytes_max: int) -> bytes:
        """A whole object; see the protocol. A larger one is not read beyond its first answer."""

        def request() -> bytes:
            found = obstore.get(self._client, key)
            size_bytes = found.meta["size"]
            if size_bytes > size_bytes_max:
                raise FileTooLarge(path=key, size_bytes=size_bytes, size_bytes_max=size_bytes_max)
            return bytes(found.bytes())

        check_key(key)
        return self._call(key, request)

    def read(self, key: str, start: int, length: int) -> bytes:
        """Part of an object; see the protocol."""
        check_key(key)
        if not length:
            if self.size(key) < start:
                raise EOFError(f"{key} ends before {start}")
            return b""
        return self._call(key, lambda: self._read(key, start, length))

    def _read(self, key: str, start: int, length: int) -> bytes:
        try:
            data = bytes(obstore.get_range(self._client, key, start=start, length=length))
        except obstore.exceptions.GenericError as error:
            if "status code: 416" in str(error):
                raise EOFError(f"{key} ends before {start + length}") from None
            raise
        if len(data) < length:
            raise EOFError(f"{key} ends before {start + length}")
        return data

    def size(self, key: str) -> int:
        """An object's size in bytes; see the protocol."""
        check_key(key)
        return int(self._call(key, lambda: obstore.head(self._client, key))["size"])

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Names in byte order; see the protocol."""
        yield from self._lister.names(check_prefix(prefix), after)

    def delete(self, key: str) -> None:
        """Remove an object; see the protocol. Raises StoreLocked while its retention lasts."""
        check_key(key)
        try:
            if self._versions is not None and self._has_versions(key):
                self._call(key, lambda: self._delete_version(key))
            else:
                self._call(key, lambda: obstore.delete(self._client, key))
        except ObjectMissing:
            return  # Azure says so, S3 does not

    def _has_versions(self, key: str) -> bool:
        """Whether the bucket keeps versions. Raises ObjectMissing when `key`, which tells, is not there."""
        if self._keeps_versions is None:
            meta = self._call(key, lambda: obstore.head(self._client, key))
            self._keeps_versions = meta["version"] not in {None, "null"}
        return self._keeps_versions

    def _delete_version(self, key: str) -> None:
        assert self._versions is not None
        self._versions.delete(key)

    def close(self) -> None:
        """Let go of what is staged; the store can still be used."""
        if self._staging is not None:
            self._staging.close()

    def _exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def _publish(self, key: str, data: memoryview) -> None:
        self._create(key, data)

    def _create(self, key: str, data: memoryview) -> None:
        failed: list[bool] = []  # tries of this very call whose outcome is unknown

        def request() -> None:
            self.uploads.tried(again=bool(failed))
            if self._versions is not None and self._versions.locks(key):
                self._versions.put(key, data)
                self._keeps_versions = True
            else:
                made = obstore.put(self._client, key, data, mode="create", use_multipart=False)
                self._keeps_versions = made["version"] not in {None, "null"}

        def on_failed() -> None:
            failed.append(True)
            self.uploads.failed()

        try:
            self._call(key, request, on_failed=on_failed)
        except ObjectExists:
            if not failed or not self._holds(key, data):
                raise
        except BaseException:
            self.uploads.failed()
            raise
        self.uploads.arrived(len(data))

    def _holds(self, key: str, data: memoryview) -> bool:
        """Whether the object has these very bytes."""
        try:
            return self.get(key, size_bytes_max=len(data)) == data
        except (ObjectMissing, FileTooLarge):
            return False

    def _call(self, key: str, request: Callable[[], T], *, on_failed: Callable[[], None] | None = None) -> T:
        return self._retries.call(
            request, key=key, store=self.url, clock=self._clock, stop=self._closing, on_failed=on_failed
        )
