"""Buckets that keep versions: creating with a retention time, and deleting so that room is given back.

In a bucket with versions a plain delete only hides an object: its bytes stay, and cost, until somebody
removes the version. Object lock (which brings versions) refuses even that until a version's retention has
passed, to everybody, in COMPLIANCE mode. obstore knows neither versions nor retention, so these requests go
through botocore; it is loaded when the first of them is made.

Only what points are made of is locked: their records, segments, spans and keys. States, pins and caches are
replaced all the time and can be made again from those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from secondsite.base.clock import Clock
from secondsite.journal.names import is_of_points
from secondsite.journal.store import StoreLocked
from secondsite.journal.store_object_clients import CREDENTIALS_SECONDS, S3_ENDPOINTS, s3_region
from secondsite.journal.store_object_errors import Answer, RequestFailed
from secondsite.journal.store_object_settings import Credentials, ObjectPlace, check_endpoint

T = TypeVar("T")

COMPLIANCE = "COMPLIANCE"
CONNECT_SECONDS = 5
READ_SECONDS = 30


class S3Versions:
    """The requests of one bucket that name versions or retention. Thread-safe.

    Raises everywhere: RequestFailed, which `Retries` translates, and StoreLocked.
    """

    def __init__(self, place: ObjectPlace, credentials: Credentials, *, lock_days: int, clock: Clock) -> None:
        """lock_days: how long objects of points are locked from their creation on; 0: not at all."""
        self._place = place
        self._credentials = credentials
        self._lock_days = lock_days
        self._clock = clock
        self._lock = threading.Lock()
        self._client: Any = None
        self._made_of: dict[str, str] = {}
        self._read_at = 0.0

    def locks(self, key: str) -> bool:
        """Whether this object is put with a retention time."""
        return self._lock_days > 0 and is_of_points(key)

    def put(self, key: str, data: memoryview) -> None:
        """Create it, locked for the policy's days."""
        self.put_until(key, data, self._clock.utc() + timedelta(days=self._lock_days))

    def put_until(self, key: str, data: memoryview, until: datetime) -> None:
        """Create it, locked until a time."""
        self._request(
            lambda client: client.put_object(
                **self._object(key),
                Body=bytes(data),
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
                ObjectLockMode=COMPLIANCE,
                ObjectLockRetainUntilDate=until,
            )
        )

    def shorten(self, key: str, until: datetime) -> None:
        """Ask for an earlier end of a lock; a bucket that does what it says refuses. For the probe."""
        self._request(
            lambda client: client.put_object_retention(
                **self._object(key), Retention={"Mode": COMPLIANCE, "RetainUntilDate": until}
            )
        )

    def offers_locks(self) -> bool:
        """Whether the bucket was made with object lock."""
        try:
            found = self._request(lambda c: c.get_object_lock_configuration(Bucket=self._place.bucket))
        except RequestFailed as error:
            if error.answer.code in {
                "ObjectLockConfigurationNotFoundError",
                "NotImplemented",
                "MethodNotAllowed",
            }:
                return False
            if error.answer.status in {400, 404, 501}:
                return False
            raise
        return bool(found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def delete(self, key: str) -> None:
        """Remove the newest version for good, and what comes to light beneath it, until the name is gone.

        Raises:
            StoreLocked: its retention has not passed, or it is on legal hold.
        """
        while True:
            try:
                head = self._request(lambda client: client.head_object(**self._object(key)))
            except RequestFailed as error:
                if error.answer.status == 404:
                    return
                raise
            version = head.get("VersionId")
            try:
                self._delete(key, {"VersionId": version} if version else {})
            except RequestFailed as error:
                until = self._locked_until(head, error.answer)
                if until is None:
                    raise
                raise StoreLocked(key=key, store=self._place.url, until=until) from None

    def _delete(self, key: str, version: dict[str, str]) -> None:
        self._request(lambda client: client.delete_object(**self._object(key), **version))

    def _locked_until(self, head: dict[str, Any], answer: Answer) -> str | None:
        """Until when the lock lasts that a refused deletion met; None when it met something else."""
        until = head.get("ObjectLockRetainUntilDate")
        if answer.status not in {400, 403, 409}:
            return None
        if isinstance(until, datetime) and until > self._clock.utc():
            return until.strftime("%Y-%m-%dT%H:%M:%SZ")
        if head.get("ObjectLockLegalHoldStatus") == "ON":
            return "its legal hold is taken off"
        # who may not read retentions still learns it from the message (AWS)
        return "an unknown time" if "object lock" in answer.why.lower() else None

    def _object(self, key: str) -> dict[str, str]:
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        return {"Bucket": self._place.bucket, "Key": prefix + key}

    def _request(self, make: Callable[[Any], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - loaded when needed

        try:
            return make(self._open())
        except ClientError as error:
            found = error.response.get("Error", {})
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code, message = str(found.get("Code", "")), str(found.get("Message", "")).rstrip(".")
            raise RequestFailed(Answer(status, code, f"{code or status}: {message}"[:300])) from None
        except BotoCoreError as error:
            raise RequestFailed(Answer(0, "", type(error).__name__)) from None

    def _open(self) -> Any:
        """The client; a new one after the credentials' file changed."""
        import botocore.session  # noqa: PLC0415 - loaded when needed
        from botocore.config import Config  # noqa: PLC0415

        with self._lock:
            now = self._clock.monotonic()
            if self._client is not None and now - self._read_at < CREDENTIALS_SECONDS:
                return self._client
            variables = self._credentials.read()
            self._read_at = now
            if self._client is not None and variables == self._made_of:
                return self._client
            endpoint = check_endpoint(variables, S3_ENDPOINTS, "AWS_ALLOW_HTTP")
            virtual = variables.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
            self._client = botocore.session.get_session().create_client(
                "s3",
                endpoint_url=endpoint,
                region_name=s3_region(variables),
                aws_access_key_id=variables.get("AWS_ACCESS_KEY_ID"),
                aws_secret_access_key=variables.get("AWS_SECRET_ACCESS_KEY"),
                aws_session_token=variables.get("AWS_SESSION_TOKEN"),
                verify=variables.get("AWS_CA_BUNDLE"),
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    # ours above: see `store_object_errors.Retries`
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    s3={"addressing_style": "virtual" if virtual else "path"},
                ),
            )
            self._made_of = variables
            return self._client
