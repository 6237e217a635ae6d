"""What object stores answer when they fail, in the words of the store, and when to ask again.

Answers are judged by their HTTP status and error code. The texts of the client library hold the request's
URL, which with Azure may hold a signature: nothing of them but status, code and message is passed on.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from obstore import exceptions

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.journal.store import ObjectExists, ObjectMissing, StoreFull, StoreLocked, StoreUnavailable

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_BATCH_STATUS = re.compile(r"\(code: (\w+)\)|code: \"(\w+)\"")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.-]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]{1,300})")
_KIND = re.compile(r"kind: (Connect|Timeout|Request|Interrupted|Decode)\b")

NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "InvalidBucketName"}
NO_RIGHT = {
    "AccessDenied",
    "AccountIsDisabled",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
FULL = {
    "QuotaExceeded",
    "EntityTooLarge",
    "XMinioStorageFull",
    "InsufficientStorage",
    "AccountCapacityExceeded",
}
LOCKED = {"BlobImmutableDueToPolicy", "ObjectLocked", "BlobImmutableDueToLegalHold"}
# obstore takes every 409 for 'exists'; AWS answers it to writers that raced, who shall ask again
EXISTS = {"BlobAlreadyExists", "ObjectAlreadyExists", "PreconditionFailed", "ConditionNotMet"}
# Refusals that may pass: too busy, a race, a connection read too slowly, a clock that will be set right.
PASSES = {
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "ServerBusy",
    "SlowDown",
}


class StoreRefused(SecondsiteError):
    """The backend says no to who we are, or to what we ask of it."""

    code = "store.refused"
    outcome = Outcome.REFUSED
    happened = "The store {store} refused {key}: {why}."
    cause = (
        "Wrong or expired credentials, a missing permission, or a bucket or container that does not exist."
    )
    action = "Run `secondsite store check {store}`, correct what it names, and start again; nothing was lost."


@dataclass(frozen=True)
class Answer:
    """The parts of a failure that decide what it means."""

    status: int  # HTTP; 0: there was none
    code: str
    why: str


class RequestFailed(Exception):
    """A failed request of a client other than obstore; `translate` makes an error of the store of it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.why)
        self.answer = answer


def read_answer(error: Exception) -> Answer:
    """Status, code and a sentence without addresses, from an error of the client library."""
    if isinstance(error, RequestFailed):
        return error.answer
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text)
    number = int(status[1]) if status else 0
    batch = _BATCH_STATUS.search(text)
    word = code[1] if code else next((part for part in batch.groups() if part), "") if batch else ""
    if not number and word.isdigit():
        number, word = int(word), ""
    message = _MESSAGE.search(text)
    kind = _KIND.search(text)
    if message:
        why = f"{word or number}: {message[1].strip().rstrip('.')}"
    elif word or number:
        why = f"it answered {number or ''} {word}".rstrip()
    elif kind:
        why = {"Connect": "nobody answers there", "Timeout": "it did not answer in time"}.get(
            kind[1], "the connection broke"
        )
    else:
        why = type(error).__name__ if isinstance(error, exceptions.BaseError) else str(error)[:200]
    return Answer(number, word, why)


def translate(error: Exception, *, key: str, store: str) -> SecondsiteError:
    """The error of the store for one of the client library."""
    answer = read_answer(error)
    if answer.code in NO_BUCKET:
        return StoreRefused(key=key, store=store, why=answer.why)
    if isinstance(error, FileNotFoundError) or answer.status == 404:
        return ObjectMissing(key=key, store=store)
    if answer.code in LOCKED:
        return StoreLocked(key=key, store=store, until="its policy allows it")
    if answer.code in EXISTS or (isinstance(error, exceptions.AlreadyExistsError) and answer.status != 409):
        return ObjectExists(key=key, store=store)
    if answer.code in FULL or answer.status == 507:
        return StoreFull(key=key, store=store)
    if answer.code in PASSES:
        return StoreUnavailable(key=key, store=store, why=answer.why)
    denied = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    if answer.code in NO_RIGHT or isinstance(error, denied) or answer.status in {400, 401, 403, 405, 501}:
        return StoreRefused(key=key, store=store, why=answer.why)
    return StoreUnavailable(key=key, store=store, why=answer.why)


@dataclass(frozen=True)
class Retries:
    """How often a request is made: a hiccup passes within seconds, for longer ones the caller waits.

    The client library's own retries are off: it would answer 'exists' to a create whose first try had
    landed before its connection broke, and nobody would know that the object is ours.
    """

    attempts_max: int = 4
    first_seconds: float = 0.1
    seconds_max: float = 2.0

    def call(
        self,
        request: Callable[[], T],
        *,
        key: str,
        store: str,
        clock: Clock,
        stop: threading.Event,
        on_failed: Callable[[], None] | None = None,
    ) -> T:
        """Make the request, again while it fails in a way that may pass; waits are cut at random.

        on_failed: told before each further try; the try before may have taken effect.
        """
        failures = 0
        while True:
            try:
                return request()
            except (exceptions.BaseError, RequestFailed, OSError) as error:
                failures += 1
                self.pause_or_raise(error, failures, key=key, store=store, clock=clock, stop=stop)
                if on_failed is not None:
                    on_failed()

    def pause_or_raise(
        self, error: Exception, failures: int, *, key: str, store: str, clock: Clock, stop: threading.Event
    ) -> None:
        """Wait before the next try; raise what `error` means when there is none (`failures` so far)."""
        failure = translate(error, key=key, store=store)
        whole = min(self.seconds_max, self.first_seconds * 2.0 ** (failures - 1))
        if (
            not isinstance(failure, StoreUnavailable)
            or failures >= self.attempts_max
            or clock.wait(stop, whole * random.random())  # noqa: S311 - spreads retries, guards nothing
        ):
            raise failure from None
