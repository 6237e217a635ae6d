"""Calls: what a server asks of a gateway, over connections that only the gateway opens.

A gateway asks for work (`Ask`) and waits; the server answers with calls; the gateway carries each out on its
own control API and answers it (`Answer`). Nothing is delivered exactly once: what was delivered and not
answered is delivered again unless the gateway says that it is under way, so every call that changes something
is repeatable and names the step of the job it belongs to with that job's epoch; a gateway refuses a step of
an epoch older than it has seen (the worker that made it has lost the job to another).

    POST /api/v1/uplink/ask       Ask    -> Calls, within `wait_seconds`
    POST /api/v1/uplink/answers   Answer -> 204
"""

from __future__ import annotations

import re
from typing import Annotated, NewType

import msgspec

from secondsite.base.errors import InvalidInput
from secondsite.base.units import KIB, MIB

CallId = NewType("CallId", str)

# The control API takes no larger body; an inventory of a thousand machines is about a megabyte.
CALL_BODY_BYTES_MAX = 64 * KIB
ANSWER_BODY_BYTES_MAX = 8 * MIB
ASK_BYTES_MAX = 16 * KIB
# How many calls one gateway works on at once; more wait at the server.
UNDER_WAY_MAX = 8
# Proxies drop what is silent for a minute.
WAIT_SECONDS_MAX = 25.0

_CALL_ID = re.compile(r"[0-9A-Za-z._:-]{1,128}\Z")
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Path = Annotated[str, msgspec.Meta(pattern="^/v1/", max_length=1024)]


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base: what is not known is refused, by both ends."""


class Call(_Wire, frozen=True, kw_only=True):
    """One request to a gateway's control API. `job` and `epoch` are there whenever it changes something."""

    id: _Id
    method: Annotated[str, msgspec.Meta(pattern="^(GET|PUT|POST|DELETE)$")]
    path: _Path  # with its query
    body: str = ""  # JSON
    job: Annotated[str, msgspec.Meta(max_length=64)] = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class Calls(_Wire, frozen=True, kw_only=True):
    """What to do next, in the order they were made; empty: nothing within the time."""

    calls: tuple[Call, ...] = ()


class Ask(_Wire, frozen=True, kw_only=True):
    """A gateway asks for work."""

    room: Annotated[int, msgspec.Meta(ge=1, le=UNDER_WAY_MAX)]
    under_way: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=UNDER_WAY_MAX)] = ()
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=WAIT_SECONDS_MAX)] = WAIT_SECONDS_MAX


class Answer(_Wire, frozen=True, kw_only=True):
    """What came of a call: the control API's status and body, or an error of the gateway in the same form."""

    id: _Id
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    body: str = ""  # JSON

    @property
    def ok(self) -> bool:
        """Whether the gateway did it."""
        return self.status < 400


def call_id(text: str) -> CallId:
    """Parse a call's id: letters, digits, dot, colon, dash, underscore; at most 128 characters."""
    if not _CALL_ID.match(text):
        raise InvalidInput(what=f"call id {text[:80]!r}", why="it has characters such an id cannot have")
    return CallId(text)
