"""What the server answers, as types. A test holds them against the API's own description.

A newer server may say more than is known here: unknown fields are ignored.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all answers."""


class Health(Answer, frozen=True, kw_only=True):
    """The server answers."""

    status: str
    version: str
    warnings: list[str] = []


class RoleHeld(Answer, frozen=True, kw_only=True):
    """A role on a vault (its id), or on everything (`*`)."""

    vault: str
    role: str

    def text(self) -> str:
        """``owner``, or ``operator on VAULT``."""
        return self.role if self.vault == "*" else f"{self.role} on {self.vault}"


class User(Answer, frozen=True, kw_only=True):
    """A person, or a program that has a token."""

    id: str
    name: str
    display_name: str
    has_password: bool
    disabled: bool
    created_at: str
    roles: list[RoleHeld]


class Token(Answer, frozen=True, kw_only=True):
    """An API token, without its secret."""

    id: str
    name: str
    vault: str | None = None
    role: str | None = None
    created_at: str
    expires_at: str
    used_at: str | None = None


class NewToken(Token, frozen=True, kw_only=True):
    """A token with its text, which is in this answer only."""

    text: str

    def __repr__(self) -> str:
        return f"NewToken({self.id})"


class Me(Answer, frozen=True, kw_only=True):
    """Who the caller is, and what the token in use allows at most."""

    id: str
    name: str
    via: str
    roles: list[RoleHeld]
    vault_limit: str | None = None
    role_limit: str | None = None


class AuditEntry(Answer, frozen=True, kw_only=True):
    """One row of the audit log."""

    number: int
    at: str
    actor: str
    via: str
    address: str
    request: str
    operation: str
    vault: str
    target: str
    outcome: str
    detail: dict[str, str | int | bool | None]
    digest: str
    seal: str


class AuditVerified(Answer, frozen=True, kw_only=True):
    """The whole log holds."""

    entries: int
    digest: str


class Thing(Answer, frozen=True, kw_only=True):
    """A machine, host, network or pool of a site, as its gateway told it."""

    id: str
    name: str
    provider: str  # the gateway
    site: str
    seen_first: str
    gone_since: str | None = None
    properties: dict[str, Any]


class SiteRead(Answer, frozen=True, kw_only=True):
    """A site was read: what came, changed and went."""

    appeared: int
    changed: int
    gone: int


class SiteStatus(Answer, frozen=True, kw_only=True):
    """When a site was read, and why not."""

    provider: str
    site: str
    read_at: str | None = None
    tried_at: str | None = None
    problem: dict[str, Any] | None = None


class JobProblem(Answer, frozen=True, kw_only=True):
    """Why a job or a step failed, in sentences."""

    code: str
    outcome: str
    happened: str
    cause: str
    action: str


class JobQuestion(Answer, frozen=True, kw_only=True):
    """What a suspended job waits for; `choices` empty: any answer."""

    question: str
    choices: list[str]
    approval: str | None = None  # the operation a second person must approve instead


class Job(Answer, frozen=True, kw_only=True):
    """A job. progress: 0 to 1."""

    id: str
    kind: str
    title: str
    state: str
    state_description: str
    allowed_operations: list[str]
    progress: float
    progress_text: str
    note: str | None
    question: JobQuestion | None
    error: JobProblem | None
    warnings: int
    created_by: str
    vault_id: str | None
    parent: str | None
    restart_of: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    changed_at: str

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ("Succeeded", "Failed", "Cancelled")


class JobStep(Answer, frozen=True, kw_only=True):
    """One step of a job. attempt: how often it was begun."""

    number: int
    name: str
    state: str
    attempt: int
    error: JobProblem | None
    started_at: str | None
    ended_at: str | None


class JobDetail(Job, frozen=True, kw_only=True):
    """A job with its steps and its result, whose form follows from its kind."""

    steps: list[JobStep]
    output: dict[str, object] | None


class JobLogLine(Answer, frozen=True, kw_only=True):
    """One line of a job's log."""

    number: int
    at: str
    step: str
    level: str
    text: str


class Page(Answer, Generic[T], frozen=True, kw_only=True):
    """Some entries of a listing."""

    value: list[T]
    next_link: str | None = None
