"""Errors are sentences for the operator: what happened, the likely cause, what to do.

Every error that leaves a function of secondsite is a subclass of `SecondsiteError` with a stable code, the
three sentences as format strings over its fields, and an outcome that fixes the exit code of a command and
whether trying again can help. ``tests/tidy`` checks that codes are unique and sentences complete.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar


class Outcome(enum.IntEnum):
    """How an operation ended; the value is the exit code of the command that ran it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4  # a rule says no; nothing was changed
    UNAVAILABLE = 5  # the same call may succeed later
    DAMAGED = 6  # stored bytes are not what was written
    CANCELLED = 130  # as a shell reports Ctrl-C


class SecondsiteError(Exception):
    """Base of all errors. Subclasses set the class variables; the constructor takes the fields by name."""

    code: ClassVar[str] = ""
    outcome: ClassVar[Outcome] = Outcome.FAILED
    happened: ClassVar[str] = ""
    cause: ClassVar[str] = ""
    action: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[SecondsiteError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.code:
            return  # an intermediate class, never raised itself
        other = SecondsiteError.registry.setdefault(cls.code, cls)
        assert other.__qualname__ == cls.__qualname__, f"{cls.code} is the code of {other} already"

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        super().__init__(self.happened.format(**fields))

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later with nothing changed by a person."""
        return self.outcome is Outcome.UNAVAILABLE

    def sentences(self) -> tuple[str, str, str]:
        """What happened, the likely cause and what to do, with the fields filled in."""
        return (
            self.happened.format(**self.fields),
            self.cause.format(**self.fields),
            self.action.format(**self.fields),
        )

    def as_dict(self) -> dict[str, object]:
        """The error as it travels in JSON (`code`, `happened`, `cause`, `action`, `outcome`)."""
        happened, cause, action = self.sentences()
        return {
            "code": self.code,
            "outcome": self.outcome.name.lower(),
            "happened": happened,
            "cause": cause,
            "action": action,
        }


class RemoteError(SecondsiteError):
    """An error another process reported, carried on with its own code, sentences and outcome."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        super().__init__()
        self.args = (str(body.get("happened", "")),)

    def sentences(self) -> tuple[str, str, str]:
        """The sentences as the other process wrote them."""
        return tuple(str(self.body.get(k, "")) for k in ("happened", "cause", "action"))  # type: ignore[return-value]

    def as_dict(self) -> dict[str, object]:
        """The body as received."""
        return dict(self.body)

    @property
    def retryable(self) -> bool:
        """As the other process meant it."""
        return self.remote_outcome is Outcome.UNAVAILABLE

    @property
    def remote_outcome(self) -> Outcome:
        """The outcome the other process named, or FAILED when it named none we know."""
        name = str(self.body.get("outcome", "")).upper()
        return Outcome[name] if name in Outcome.__members__ else Outcome.FAILED


_HTTP_STATUS = {
    Outcome.OK: 200,
    Outcome.FAILED: 500,
    Outcome.USAGE: 400,
    Outcome.NOT_FOUND: 404,
    Outcome.REFUSED: 409,
    Outcome.UNAVAILABLE: 503,
    Outcome.DAMAGED: 500,
    Outcome.CANCELLED: 503,
}


def http_status(error: SecondsiteError) -> int:
    """The HTTP status that says an error's outcome, also of one another process reported."""
    return _HTTP_STATUS[error.remote_outcome if isinstance(error, RemoteError) else error.outcome]


class InvalidInput(SecondsiteError):
    """Something given by a person or a peer that does not parse."""

    code = "input.invalid"
    outcome = Outcome.USAGE
    happened = "{what} is not valid: {why}"
    cause = "A mistyped value, or a file edited by hand."
    action = "Correct {what} and run the command again; nothing was changed."
