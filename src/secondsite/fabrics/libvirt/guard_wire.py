"""What a gateway and the guard of its host say to each other: one line of JSON each way."""

from __future__ import annotations

import msgspec

from secondsite.model.events import Event

# The longest message is an answer with the last events: 100 of at most 600 bytes.
LINE_BYTES_MAX = 128 * 1024
REQUEST_BYTES_MAX = 2 * 1024
EVENTS_KEPT = 100

OPERATIONS = ("hold", "release", "status", "events")
KINDS = ("job", "freeze")
# No deadline further off than this: a lease is for a job, not for a life.
SECONDS_MAX = 3600.0
# More open jobs than a host has machines is a mistake.
LEASES_MAX = 1024


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`hold` makes a lease or renews it: act `seconds` from now, or when the sender's process dies."""

    op: str
    lease: str = ""  # 32 hexadecimal digits, made by the holder
    kind: str = ""
    machine: str = ""
    seconds: float = 0.0


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as `status` lists it."""

    kind: str
    machine: str
    pid: int
    seconds_left: float


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To every request; `error` is empty when it was carried out."""

    error: str = ""
    pid: int = 0
    leases: tuple[Held, ...] = ()
    events: tuple[Event, ...] = ()
