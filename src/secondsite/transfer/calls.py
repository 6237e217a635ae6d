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
from typing import Annotated, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from secondsite.base.errors import InvalidInput
from secondsite.base.units import KIB, MIB

CallId = NewType("CallId", str)

PATH_ASK = "/api/v1/uplink/ask"
PATH_ANSWERS = "/api/v1/uplink/answers"
# The control API takes no larger body; an inventory of a thousand machines is about a megabyte.
CALL_BODY_BYTES_MAX = 64 * KIB
ANSWER_BODY_BYTES_MAX = 8 * MIB
# as JSON text inside JSON: every quote of it is escaped
ANSWER_BYTES_MAX = 2 * ANSWER_BODY_BYTES_MAX + 4 * KIB
# How many calls one gateway works on at once; more wait at the server.
UNDER_WAY_MAX = 8
# Proxies drop what is silent for a minute.
WAIT_SECONDS_MAX = 25.0

_CALL_ID = re.compile(r"[0-9A-Za-z._:-]{1,128}\Z")
_Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[0-9A-Za-z._:-]+$")]


class _Wire(BaseModel):
    """Base: what is not known is refused, by both ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Call(_Wire):
    """One request to a gateway's control API. `job` and `epoch` are there whenever it changes something."""

    id: _Id
    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: Annotated[str, Field(pattern=r"^/v1/[!-~]*$", max_length=4096)]  # with its query
    body: Annotated[str, Field(max_length=CALL_BODY_BYTES_MAX)] = ""  # JSON
    job: Annotated[str, Field(max_length=64)] = ""
    epoch: Annotated[int, Field(ge=0, le=2**53)] = 0


class Calls(_Wire):
    """What to do next, in the order they were made; none: nothing within the time, or something is wanted."""

    calls: tuple[Call, ...] = ()
    generation: Annotated[int, Field(ge=-1, le=2**53)] = -1  # of what is wanted (`desired`); -1: not said


class Ask(_Wire):
    """A gateway asks for work."""

    room: Annotated[int, Field(ge=1, le=UNDER_WAY_MAX)]
    under_way: Annotated[tuple[_Id, ...], Field(max_length=UNDER_WAY_MAX)] = ()
    wait_seconds: Annotated[float, Field(ge=0, le=WAIT_SECONDS_MAX)] = WAIT_SECONDS_MAX
    # of what is wanted, as it was last heard: a newer one ends the waiting; -1: it is not to be told
    generation: Annotated[int, Field(ge=-1, le=2**53)] = -1


class Answer(_Wire):
    """What came of a call: the control API's status and body, or an error of the gateway in the same form."""

    id: _Id
    status: Annotated[int, Field(ge=100, le=599)]
    body: Annotated[str, Field(max_length=ANSWER_BODY_BYTES_MAX)] = ""  # JSON

    @property
    def ok(self) -> bool:
        """Whether the gateway did it."""
        return self.status < 400


def call_id(text: str) -> CallId:
    """Parse a call's id: letters, digits, dot, colon, dash, underscore; at most 128 characters."""
    if not _CALL_ID.match(text):
        raise InvalidInput(what=f"call id {text[:80]!r}", why="it has characters such an id cannot have")
    return CallId(text)
