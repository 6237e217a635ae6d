"""What a gateway and a server say to each other about who the gateway is.

    GET  /api/v1/enrolment/authority      -> AuthorityAnswer     anybody; the reader checks the fingerprint
    POST /api/v1/enrolment/challenges     Hello    -> Challenge  anybody
    POST /api/v1/enrolment/certificates   Enrol    -> Enrolled   proves a registration key
    POST /api/v1/gateways/self/certificate   Renew -> Enrolled   mutual TLS from here on
    POST /api/v1/gateways/self/heartbeats    Heartbeat -> HeartbeatAnswer
    GET  /api/v1/gateways/self/revocations   -> RevocationsAnswer
    GET  /api/v1/gateways/self/trust         -> TrustAnswer
    POST /api/v1/gateways/self/revocations   KnownRevocations -> RevocationsAnswer   once to each incarnation

The proof is a signature over `proof_message`, which binds the server's nonce, the request for a certificate
and all that is said beside it; a nonce counts once.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError

CLOCK_SECONDS_MAX = 300.0
CHALLENGE_SECONDS = 300
HEARTBEAT_SECONDS = 10.0
_Short = Annotated[str, Field(min_length=1, max_length=200)]
_KeyId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Pem = Annotated[str, Field(max_length=8192)]
_Time = Annotated[str, Field(min_length=20, max_length=40)]
_Small = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
PATH_AUTHORITY = "/api/v1/enrolment/authority"
PATH_CHALLENGES = "/api/v1/enrolment/challenges"
PATH_CERTIFICATES = "/api/v1/enrolment/certificates"
PATH_RENEW = "/api/v1/gateways/self/certificate"
PATH_HEARTBEATS = "/api/v1/gateways/self/heartbeats"
PATH_REVOCATIONS = "/api/v1/gateways/self/revocations"
PATH_TRUST = "/api/v1/gateways/self/trust"


class ClockOff(SecondsiteError):
    """Certificates, recovery points and logs would carry wrong times."""

    code = "enrolment.clock-off"
    outcome = Outcome.REFUSED
    happened = "The clocks differ by {seconds} s: it is {gateway} at the gateway and {server} at the server."
    cause = "One of the two does not follow a time source; at most {limit} s are accepted."
    action = "Set the clock that is wrong (for example with chrony), then try again; nothing was changed."


class _Wire(BaseModel):
    """Base of requests: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class _Answer(BaseModel):
    """Base of answers: a newer server may say more than an older gateway knows."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class AuthorityAnswer(_Answer):
    """The authority's certificate (PEM); worth nothing until its fingerprint was compared."""

    certificate: str
    server_time: str


class Hello(_Wire):
    """A gateway is about to enrol with this key."""

    key_id: _KeyId


class Challenge(_Answer):
    """What to bind the proof to."""

    nonce: str
    server_time: str


class Enrol(_Wire):
    """A gateway asks to be of a vault. proof: base64 of the signature over `proof_message`."""

    key_id: _KeyId
    nonce: _Short
    name: _Short  # a DNS name in lower case, also in its certificate
    friendly_name: _Short
    site: _Short
    version: _Short
    sent_at: _Time  # the gateway's clock, RFC 3339 UTC
    request: _Pem  # PKCS 10, PEM
    proof: _Short
    # whether the server may know the machines of its hosts at once; each cloud can be published later
    publish: Literal["all", "none"] = "all"


class Renew(_Wire):
    """A gateway asks for its next certificate."""

    version: _Short
    sent_at: _Time
    request: _Pem


class Enrolled(_Answer):
    """The certificate, and what to check others' with."""

    gateway_id: str
    name: str
    vault: str  # its friendly name
    certificate: str  # PEM
    authority: str  # PEM
    revocations: str  # PEM
    valid_until: str
    trust: str = ""  # PEM of every authority to trust, `authority` among them; empty: that one alone


class Heartbeat(_Wire):
    """A gateway lives. Numbers only: no name of a machine, no content."""

    version: _Short
    sent_at: _Time
    revocation_number: Annotated[int, Field(ge=-1, le=2**53)] = -1  # of the list it has
    refreshed: _Small = 0  # the refresh it answers
    protected: _Small = 0
    points: _Count = 0
    health: Literal["Normal", "Warning", "Critical", "Unknown"] = "Unknown"
    # where other gateways of the vault reach its listener; None: it listens for none, or does not say
    url: Annotated[str, Field(pattern=r"^https://[!-~]{1,250}$")] | None = None
    # `transfer.trust.trust_id` of the authorities it trusts
    trust: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""


class HeartbeatAnswer(_Answer):
    """What the server wants of a gateway that lives."""

    server_time: str
    revocation_number: int
    refresh: int = 0  # above the last one answered: report again at once
    friendly_name: str = ""
    generation: int = 0  # of what the server wants of the gateway (`transfer.desired`)
    trust: str = ""  # of the authorities to trust: another than the gateway's means that it fetches them
    renew: bool = False  # its certificate is of an authority that goes: the next one now
    # where this server and its standbys are reached, itself first; none: there are no standbys
    servers: Annotated[tuple[str, ...], Field(max_length=16)] = ()


class RevocationsAnswer(_Answer):
    """The revocation list, signed by the authority."""

    number: int
    pem: str


class TrustAnswer(_Answer):
    """The authorities to trust from now on: PEM, one after the other, the one that signs first."""

    pem: str


class KnownRevocations(_Wire):
    """The newest list a gateway has: a server restored from a backup may have lost what is in it."""

    pem: Annotated[str, Field(max_length=1024 * 1024)]


def proof_message(enrol: Enrol) -> bytes:
    """All that a gateway says when it enrols but the proof, in one fixed form."""
    said = enrol.model_dump(by_alias=True, exclude={"proof"})
    if enrol.publish == "all":
        del said["publish"]  # as gateways say it that know no other
    body = json.dumps(said, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return b"secondsite enrolment 1\n" + body.encode()


def encode_proof(signature: bytes) -> str:
    """A signature as text."""
    return base64.b64encode(signature).decode()


def decode_proof(text: str) -> bytes:
    """The signature; empty (which proves nothing) when the text is none."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def time_text(at: dt.datetime) -> str:
    """A time as it travels: RFC 3339, UTC, microseconds."""
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds")


def parse_time(text: str) -> dt.datetime:
    """A time as it travelled. Raises InvalidInput."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(what=f"the time {text[:40]!r}", why="it is not RFC 3339") from None
    if at.tzinfo is None:
        raise InvalidInput(what=f"the time {text[:40]!r}", why="it names no zone")
    return at.astimezone(dt.UTC)


def clock_difference(gateway: dt.datetime, server: dt.datetime) -> float:
    """Seconds by which the gateway's clock is ahead of the server's."""
    return (gateway - server).total_seconds()


def check_clocks(gateway: dt.datetime, server: dt.datetime) -> None:
    """Raises ClockOff when the two differ by more than five minutes, naming both times."""
    seconds = clock_difference(gateway, server)
    if abs(seconds) > CLOCK_SECONDS_MAX:
        raise ClockOff(
            seconds=round(abs(seconds)),
            gateway=f"{gateway:%Y-%m-%d %H:%M:%S} UTC",
            server=f"{server:%Y-%m-%d %H:%M:%S} UTC",
            limit=round(CLOCK_SECONDS_MAX),
        )
