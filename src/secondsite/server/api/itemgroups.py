"""The route for the same operation on several protected items at once: one job, with a child job an item.

What is named is refused as a whole where it is not possible for one of them; what is searched for leaves out
those for which it is not. Nothing has begun before every role, state and sentence was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from pydantic import Field, ValidationError
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.items import OperationNotAllowed, ProtectedState, check_operation
from secondsite.server.api.access import TheActor, TheServices, refuse, requires
from secondsite.server.api.desired import items_of
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.groupable import GROUPABLE, Asked, Groupable
from secondsite.server.api.itembodies import HealthName, StateName
from secondsite.server.api.items import PATH_ITEMS
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.schemas import Model, VaultPath
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import GatewayName, identity_of, note
from secondsite.server.items.records import Item
from secondsite.server.items.search import Search
from secondsite.server.jobs.service import Jobs, add_log
from secondsite.server.operations.group import GROUP, MEMBERS_MAX, TOLD_MAX, Group, Member
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["items"])

# the operation itself needs more, as it says
Reader = Annotated[Caller, requires(Operation.ITEM_READ)]
_Named = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$")]
_Sentence = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\u0000-\u001f\u007f]*$")]
GroupableName = Literal[
    "pause",
    "resume",
    "resync",
    "takePoint",
    "testFailover",
    "testFailoverCleanup",
    "disable",
    "unplannedFailover",
    "plannedFailover",
    "failoverCommit",
    "failoverCancel",
    "reprotect",
    "failback",
]


# A failback with all that may follow needs that many for a machine.
SENTENCES_EACH_MAX = 3


class ItemFilter(Model):
    """Items to be searched for; nothing given: all of the vault."""

    state: list[StateName] = Field(default=[], max_length=50)
    health: list[HealthName] = Field(default=[], max_length=3)
    provider: GatewayName | None = Field(default=None, description="At either end.")
    policy: Annotated[str, Field(max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")] | None = None
    name: Annotated[str, Field(max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$")] = ""


class GroupBody(Model):
    """What is to be done, with which: either `items` or `filter`."""

    operation: GroupableName
    items: Annotated[list[_Named], Field(min_length=1, max_length=MEMBERS_MAX)] | None = None
    filter: ItemFilter | None = None
    parameters: dict[str, Any] = Field(
        default={}, description="As the body of the operation on one item.", max_length=50
    )
    per_item: dict[_Named, dict[str, Any]] = Field(
        default={}, description="Of single items, instead of those for all.", max_length=MEMBERS_MAX
    )
    confirm: Annotated[list[_Sentence], Field(max_length=SENTENCES_EACH_MAX * MEMBERS_MAX)] = Field(
        default=[], description="What is said for each machine, where the operation is dangerous."
    )
    parallel_per_provider: Annotated[int, Field(ge=1, le=64)] = 4


class GroupImpossible(SecondsiteError):
    """For some of those that were named."""

    code = "item.group-impossible"
    outcome = Outcome.REFUSED
    happened = "{operation} is not possible for {failed} of {count} items: {which}."
    cause = "What may be asked of a protected machine follows from its state; they were named one by one."
    action = "Leave these out, or search with a filter, which leaves them out. Nothing was begun."


class GroupEmpty(SecondsiteError):
    """Nothing to do."""

    code = "item.group-empty"
    outcome = Outcome.REFUSED
    happened = "{operation} is possible for none of the items that were searched for: {which}."
    cause = "The filter fits none, or they are in other states."
    action = "Look at what fits (`secondsite item list` with the same filter). Nothing was begun."


class GroupTooLarge(SecondsiteError):
    """More than one job takes."""

    code = "item.group-too-large"
    outcome = Outcome.REFUSED
    happened = "The filter fits more than {count} items."
    cause = "One job looks after that many child jobs at most."
    action = "Narrow the filter, for example to a gateway or a policy, and begin one group after the other."


class GroupUnconfirmed(SecondsiteError):
    """A sentence is missing."""

    code = "item.group-unconfirmed"
    outcome = Outcome.REFUSED
    happened = "{operation} needs what is said for each machine; missing: {sentences}."
    cause = "It cannot be taken back easily: for each machine somebody says that it is meant."
    action = "Give each word for word (`--confirm SENTENCE`, as often as there are some). Nothing was begun."


@dataclass(frozen=True)
class _Chosen:
    items: tuple[Item, ...]
    own: Mapping[str, Mapping[str, Any]]  # by the item's id: its own parameters


@router.post(PATH_ITEMS + "/operations", status_code=202, responses=ACCEPTED)
def operate_group(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    body: GroupBody,
    caller: Reader,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Begin the same operation on several items, as one job with a child job an item."""
    row = GROUPABLE[body.operation]
    vault_id = identity_of(services).vaults.get(vault).id
    chosen = _choose(services, vault_id, body)
    for one in chosen.items:
        if not caller.may(row.needs, one.vault_id):
            raise refuse(caller, row.needs, one.vault_id)
    by = actor.name[:255]
    asked = [Asked(one, _parameters(row, body, chosen, one), by, services) for one in chosen.items]
    possible, left_out = _possible(row, body, asked)
    _confirmed(row, body, possible)
    members = tuple(_member(row, one) for one in possible)
    given = Group(vault=vault_id, title=row.title, members=members, parallel=body.parallel_per_provider)

    def begin(jobs: Jobs, connection: Connection) -> str:
        identity = jobs.start(connection, GROUP, given, actor.name, vault=vault_id)
        write = note(services, actor, row.needs, job=identity, kind=row.kind, group=True)
        for member in members:
            write(connection, vault_id, member.name)
        for text in left_out:
            add_log(connection, identity, items_of(services).now(), f"left out: {text}", level="warning")
        return identity

    return accepted(services, response, begin)


def _choose(services: Services, vault_id: str, body: GroupBody) -> _Chosen:
    """Raises InputRefused, ItemUnknown, ItemAmbiguous, GroupTooLarge."""
    if (body.items is None) == (body.filter is None):
        raise InputRefused(where="the body", why="it names either items or a filter")
    found: dict[str, Item] = {}
    with services.database.read() as connection:
        for named in body.items or ():
            one = items_of(services).find(connection, vault_id, named)
            found[one.id] = one
    if body.filter is not None:
        found = {one.id: one for one in _searched(services, vault_id, body.filter)}
    own: dict[str, Mapping[str, Any]] = {}
    with services.database.read() as connection:
        for named, parameters in body.per_item.items():
            one = items_of(services).find(connection, vault_id, named)
            if one.id not in found or one.id in own:
                raise InputRefused(where="perItem", why=f"{named} is not in the group, or twice")
            own[one.id] = parameters
    return _Chosen(tuple(found.values()), own)


def _searched(services: Services, vault_id: str, only: ItemFilter) -> Sequence[Item]:
    search = Search(
        vaults=frozenset({vault_id}),
        states=[ProtectedState(one) for one in only.state],
        health=list(only.health),
        gateway=only.provider,
        policy=None
        if only.policy is None
        else items_of(services).seams.policies.named(vault_id, only.policy),
        name_contains=only.name,
    )
    found = items_of(services).page(search, after=None, limit=MEMBERS_MAX + 1)
    if len(found) > MEMBERS_MAX:
        raise GroupTooLarge(count=MEMBERS_MAX)
    return found


def _parameters(row: Groupable, body: GroupBody, chosen: _Chosen, item: Item) -> Any:
    own = chosen.own.get(item.id, {})
    try:
        return row.body.model_validate({**body.parameters, **own})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InputRefused(where=f"the parameters of {item.name}", why=f"{where}: {first['msg']}") from None


def _possible(row: Groupable, body: GroupBody, asked: Sequence[Asked]) -> tuple[list[Asked], list[str]]:
    """Those it is possible for, and of the others why not. Raises GroupImpossible, GroupEmpty."""
    possible, refused = [], []
    for one in asked:
        item, operation = one.item, row.checks(one)
        try:
            check_operation(item.name, item.state, item.facts, operation)
            possible.append(one)
        except OperationNotAllowed as error:
            refused.append(f"{item.name}: {error.fields['why']}")
    if refused and body.items is not None:
        raise GroupImpossible(
            operation=body.operation, failed=len(refused), count=len(asked), which=_some(refused)
        )
    if not possible:
        raise GroupEmpty(operation=body.operation, which=_some(refused) or "there are none")
    return possible, refused


def _confirmed(row: Groupable, body: GroupBody, asked: Sequence[Asked]) -> None:
    said = set(body.confirm)
    wanted = [sentence for one in asked for sentence in row.sentences(one)]
    missing = [f'"{sentence}"' for sentence in wanted if sentence not in said]
    if missing:
        # all of them, however many: whoever means it says every one
        raise GroupUnconfirmed(operation=body.operation, sentences=", ".join(missing))


def _some(texts: Sequence[str]) -> str:
    more = [f"{len(texts) - TOLD_MAX} more"] * (len(texts) > TOLD_MAX)
    return "; ".join([*texts[:TOLD_MAX], *more])


def _member(row: Groupable, asked: Asked) -> Member:
    item = asked.item
    return Member(
        item=item.id,
        name=item.name,
        gateway=row.gateway(item),
        kind=row.kind,
        input=msgspec.json.encode(row.given(asked)).decode(),
        operations=(row.checks(asked),),
    )
