"""Approvals by a second person over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Job, Page


class Vote(Answer, frozen=True, kw_only=True):
    """What one person said."""

    voter: str
    verdict: str
    comment: str
    at: str


class Approval(Answer, frozen=True, kw_only=True):
    """What a job asks to be approved. needed: of how many people besides `asked_by` (and `urged_by`)."""

    id: str
    job: str
    operation: str
    vault_id: str | None
    subject: str
    asked_by: str
    urged_by: str | None
    needed: int
    state: str
    asked_at: str
    expires_at: str
    votes: list[Vote]


class Demand(Answer, frozen=True, kw_only=True):
    """An operation that needs an approval. people: of how many."""

    operation: str
    people: int


class Demands(Answer, frozen=True, kw_only=True):
    """What of a vault needs an approval, and what could."""

    demands: list[Demand]
    known: list[str]


def approvals(server: ServerClient) -> Iterator[Approval]:
    """What waits for an approval, the youngest first."""
    return server.pages(at("approvals"), Page[Approval])


def approvals_of(server: ServerClient, job: str) -> Iterator[Approval]:
    """What a job asked to be approved, the first first."""
    return server.pages(at("jobs", job, "approvals"), Page[Approval])


def approve(server: ServerClient, job: str, comment: str = "") -> Job:
    """Let it happen."""
    return server.call("POST", at("jobs", job, "approve"), Job, {"comment": comment})


def reject(server: ServerClient, job: str, comment: str = "") -> Job:
    """Have it fail."""
    return server.call("POST", at("jobs", job, "reject"), Job, {"comment": comment})


def demands(server: ServerClient, vault: str) -> Demands:
    """What of a vault needs an approval."""
    return server.call("GET", at("vaults", vault, "approvals"), Demands)


def change_demands(server: ServerClient, vault: str, wanted: Mapping[str, int]) -> Job:
    """Begin to change it: operation -> of how many people; what is left out needs none."""
    found = [{"operation": operation, "people": people} for operation, people in sorted(wanted.items())]
    return server.call("PUT", at("vaults", vault, "approvals"), Job, {"demands": found})
