"""Events over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Page


class Event(Answer, frozen=True, kw_only=True):
    """Something that happened. Texts that name nothing are empty."""

    number: int
    at: str
    told_at: str | None = None
    severity: str
    code: str
    text: str
    vault: str
    gateway: str
    item: str
    machine: str


class EventsKept(Answer, frozen=True, kw_only=True):
    """How many events there are, and how many were dropped."""

    newest: int
    kept: int
    dropped: int


@dataclass(frozen=True)
class EventFilter:
    """What events are asked for; None: whatever it is. severity: at least; since: RFC 3339 with a zone."""

    vault: str | None = None
    severity: str | None = None
    codes: Sequence[str] = ()
    gateway: str | None = None
    machine: str | None = None
    item: str | None = None
    since: str | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """As a query."""
        one = {
            "vault": self.vault,
            "severity": self.severity,
            "gateway": self.gateway,
            "machine": self.machine,
            "item": self.item,
            "since": self.since,
        }
        given = [(name, text) for name, text in one.items() if text is not None]
        return [*given, *(("code", code) for code in self.codes)]


def newest_events(server: ServerClient, only: EventFilter, *, limit: int = 100) -> Iterator[Event]:
    """What happened, youngest first, for as long as one reads on; `limit` is what a page holds."""
    query = urlencode([*only.pairs(), ("limit", str(min(max(limit, 1), 1000)))])
    return server.pages(f"{at('events')}?{query}", Page[Event])


def events_above(server: ServerClient, only: EventFilter, number: int) -> Iterator[Event]:
    """What happened after the event with a number, oldest first."""
    query = urlencode([*only.pairs(), ("order", "oldest"), ("above", str(number)), ("limit", "1000")])
    return server.pages(f"{at('events')}?{query}", Page[Event])


def events_kept(server: ServerClient) -> EventsKept:
    """How many events there are, and how many are gone."""
    return server.call("GET", at("events", "kept"), EventsKept)
