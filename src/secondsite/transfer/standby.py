"""What an active server and its standbys say to each other: who each is, and how far a standby follows.

    POST /api/v1/standby/hello    Hello -> HelloAnswer

A standby says hello to the active server; a server that took over says it to the one it took over from, which
learns that way that it is superseded. Who says it proves that it has the same master key: `proof` is an
HMAC-SHA256 over all the rest, with a key made of that one. The state itself never travels this way.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

PATH_HELLO = "/api/v1/standby/hello"
PURPOSE = "standby 1"  # of the key: `MasterKey.derive`

_Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Url = Annotated[str, Field(pattern=r"^https://[!-~]{1,250}$")]
_Time = Annotated[str, Field(min_length=20, max_length=40)]
_Short = Annotated[str, Field(min_length=1, max_length=200)]


class ServerRole(enum.StrEnum):
    """What a server is, in its own words."""

    ACTIVE = "Active"
    HANDED_OVER = "HandedOver"  # stopped in order: a standby may go on
    SUPERSEDED = "Superseded"  # a later life was met: it does nothing
    STANDBY = "Standby"


class Hello(BaseModel):
    """Who says it, and what it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    id: _Id  # of its state directory
    server: _Id
    name: _Short
    url: _Url
    role: ServerRole
    sent_at: _Time
    copy_name: Annotated[str, Field(max_length=80)] = ""  # what a standby holds, verified
    late_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0  # how far behind it may be
    life: Annotated[str, Field(max_length=256)] = ""  # of an active one: `ShownIncarnation.text`
    proof: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""

    def proved(self, key: bytes) -> Hello:
        """With its proof."""
        return self.model_copy(update={"proof": _proof(key, self)})

    def proves(self, key: bytes) -> bool:
        """Whether who says it has the key."""
        return hmac.compare_digest(self.proof, _proof(key, self))


class HelloAnswer(BaseModel):
    """Who answers, and whether what the standby holds is all there is."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)

    id: str
    name: str
    url: str
    role: ServerRole
    server_time: str
    incarnation: int = 0
    current: bool = False  # nothing changed since the copy it holds was made


def _proof(key: bytes, hello: Hello) -> str:
    plain = hello.model_copy(update={"proof": ""}).model_dump_json(by_alias=True)
    return hmac.new(key, b"secondsite standby 1\n" + plain.encode(), hashlib.sha256).hexdigest()
