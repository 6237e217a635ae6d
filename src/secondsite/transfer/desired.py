"""What a server wants of a gateway, fetched by the gateway over its own connections.

    GET /api/v1/gateways/self/desired?after=GENERATION  -> Desired (the whole of it, when it is newer)

A server says what it wants item by item. Each item has a revision that only grows: a gateway takes no
revision older than the one it has, so a server restored from an old backup overwrites nothing; it learns the
newer one from the gateway's report. An item that is not named is left alone: nothing is ever ended by being
forgotten, only by `enabled = false`. A gateway works towards what it took, also when the server is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.model.policies import ReplicationPolicy
from secondsite.model.retention import RetentionPolicy

PATH_DESIRED = "/api/v1/gateways/self/desired"
# Two thousand items with their mappings are about 2 MB.
DESIRED_BYTES_MAX = 16 * 1024 * 1024
ITEMS_MAX = 10_000

Name = Annotated[str, Field(min_length=1, max_length=255)]
MachineText = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
PolicyText = Annotated[str, Field(max_length=255)]
Revision = Annotated[int, Field(ge=0, le=2**53)]


class Part(BaseModel):
    """Base: a newer server may say more than an older gateway knows."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class WantedMapping(Part):
    """Where things of the source go at the target; what is not named is attached to nothing."""

    networks: dict[Name, Name] = {}
    pools: dict[Name, Name] = {}
    default_pool: Name | None = None


class WantedProtection(Part):
    """One machine of this gateway's site that is to be protected."""

    item: Name  # the protected item's id at the server
    revision: Revision
    machine: MachineText
    name: Name
    peer: Name  # the gateway that keeps the replica
    disks: Annotated[tuple[Name, ...], Field(max_length=256)] | None = None  # None: all, also those to come
    left_out: Annotated[tuple[Name, ...], Field(max_length=256)] = ()  # of all
    policy: ReplicationPolicy = ReplicationPolicy()
    policy_id: PolicyText = ""  # items of one policy share its bandwidth; "": it is this item's alone
    policy_name: PolicyText = ""  # for people
    mapping: WantedMapping = WantedMapping()
    paused: bool = False  # captures nothing; changes go on being tracked at the host
    resync: Annotated[int, Field(ge=0, le=2**31)] = 0  # above the last one done: compare everything
    enabled: bool = True  # False: end it and remove what is ours


class WantedReplica(Part):
    """One machine whose replica this gateway keeps."""

    item: Name
    revision: Revision
    machine: MachineText
    name: Name
    source: Name  # the gateway that writes it
    retention: Annotated[str, Field(min_length=1, max_length=400)]
    policy_name: PolicyText = ""  # that says so
    enabled: bool = True
    # False while not enabled: the replica stays. True: points, base and keys of the machine are deleted
    delete: bool = False

    @field_validator("retention")
    @classmethod
    def _parses(cls, text: str) -> str:
        try:
            RetentionPolicy.parse(text)
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        return text


class Peer(Part):
    """Another gateway of the vault, and where it listens."""

    name: Name
    url: Annotated[str, Field(pattern=r"^https://[!-~]{1,250}$")]


class Desired(Part):
    """All that is wanted of one gateway. `generation` grows with every change of it."""

    generation: Revision
    protections: Annotated[tuple[WantedProtection, ...], Field(max_length=ITEMS_MAX)] = ()
    replicas: Annotated[tuple[WantedReplica, ...], Field(max_length=ITEMS_MAX)] = ()
    peers: Annotated[tuple[Peer, ...], Field(max_length=1000)] = ()


class DesiredUnknown(SecondsiteError):
    """Not even its outline is one this gateway knows."""

    code = "desired.unknown"
    outcome = Outcome.FAILED
    happened = "What the server wants of this gateway cannot be read: {why}."
    cause = "The two are of versions that do not know each other, or something else answers in its place."
    action = (
        "Compare `secondsite --version` at both ends. Nothing was changed: what was wanted before goes on."
    )


@dataclass(frozen=True)
class Received:
    """What of a document can be taken. refused: item -> sentences; such items are left as they are."""

    desired: Desired
    refused: dict[str, str] = field(default_factory=dict)


class _Outline(BaseModel):
    """A `Desired` whose items were not looked at yet."""

    model_config = ConfigDict(extra="allow")

    protections: Annotated[tuple[Any, ...], Field(max_length=ITEMS_MAX)] = ()
    replicas: Annotated[tuple[Any, ...], Field(max_length=ITEMS_MAX)] = ()


_Wanted = TypeVar("_Wanted", WantedProtection, WantedReplica)


def read_desired(data: bytes | str) -> Received:
    """Read a document item by item: a setting this gateway does not know costs its own item, no other.

    What a newer server says of an item besides is ignored, but not in its policy: to replicate otherwise
    than asked for, silently, would be worse than to go on as before and to say so.

    Raises DesiredUnknown.
    """
    try:
        outline = _Outline.model_validate_json(data)
        refused: dict[str, str] = {}
        protections = _items(WantedProtection, outline.protections, refused)
        replicas = _items(WantedReplica, outline.replicas, refused)
        rest = {**(outline.model_extra or {}), "protections": protections, "replicas": replicas}
        return Received(Desired.model_validate(rest), refused)
    except ValidationError as error:
        raise DesiredUnknown(why=_first(error)) from None


def _items(kind: type[_Wanted], found: Sequence[Any], refused: dict[str, str]) -> tuple[_Wanted, ...]:
    adapter, taken = TypeAdapter(kind), []
    for number, raw in enumerate(found):
        try:
            taken.append(adapter.validate_python(raw))
        except ValidationError as error:
            named = raw.get("item") if isinstance(raw, dict) else None
            item = named if isinstance(named, str) and 0 < len(named) <= 255 else f"{kind.__name__} {number}"
            refused[item] = (
                f"This gateway cannot do what is asked for ({_first(error)}): the server is newer. "
                "It goes on as before; update the gateway."
            )
    return tuple(taken)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:500]
