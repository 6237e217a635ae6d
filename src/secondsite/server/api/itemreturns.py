"""Routes to protect an item in the other direction, and to end its way back for good."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.model import confirmations, reversals
from secondsite.model.items import ItemOperation
from secondsite.model.machines import Machine
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.desired import items_of
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.inventory import inventories_of
from secondsite.server.api.itembodies import MappingBody, MappingView
from secondsite.server.api.itemfailovers import ASK_SECONDS
from secondsite.server.api.items import PATH_ITEMS, Reader, ThePlace, checked, start_job
from secondsite.server.api.jobs import ACCEPTED, JobView
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.services import Services
from secondsite.server.api.uplink import calls_of
from secondsite.server.api.vaults import GatewayName, identity_of
from secondsite.server.inventory.service import Kind, ObjectUnknown
from secondsite.server.items.errors import TargetElsewhere
from secondsite.server.items.records import Item, job_input
from secondsite.server.items.returnerrors import TargetIsSource
from secondsite.server.items.service import GatewayRef
from secondsite.server.items.turning import Direction, Turn, is_forth, mapping_of, policy_of
from secondsite.server.operations.asking import read_answer
from secondsite.server.operations.failback import FAILBACK, Failback, sentences
from secondsite.server.operations.held import NOTHING
from secondsite.server.operations.migration import COMPLETE, CompleteMigration
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from secondsite.server.operations.returnchecks import MACHINE_GONE, ReversePreview
from secondsite.server.people.roles import Caller, Operation
from secondsite.transfer.desired import WantedMapping

router = APIRouter(prefix="/api/v1", tags=["items"])

FailsOver = Annotated[Caller, requires(Operation.ITEM_FAILOVER)]
WRITES = "What the old machine wrote last is on its disks alone; they become the beginning of the replica."
FOR_GOOD = "Afterwards nothing is protected back onto the old site's disks, and nothing fails back."
_Named = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")]
_Sentence = Annotated[
    str,
    Field(
        max_length=1024,
        pattern=r"^[^\u0000]*$",
        description="What a person says to it, word for word; a refusal, and the look before, say what.",
    ),
]
_Target = Annotated[
    GatewayName | None,
    Query(alias="targetProvider", description="Another gateway than the one it came from."),
]


class ReprotectBody(Model):
    """What is wanted otherwise than it is preset."""

    target_provider: GatewayName | None = Field(
        default=None, description="Absent: the gateway the machine came from, onto its old disks."
    )
    policy: _Named | None = Field(
        default=None, description="Absent: the failback policy; towards its first target the first one."
    )
    mapping: MappingBody | None = Field(default=None, description="Absent: as the two sites are mapped.")
    confirm: _Sentence = ""


class MigrationBody(Model):
    """What a person says to it."""

    confirm: _Sentence = ""


class FailbackBody(Model):
    """What is done beyond the move itself, and how. Of what goes for good nothing is preset."""

    old_machine: Literal["remove", "remove-with-disks"] | None = Field(
        description="Of its former copy at its first site, which makes room there; null: there is none."
    )
    network: _Named = Field(default="mapped", description="mapped, none, or a network of that site.")
    seconds: Annotated[float, Field(ge=1, le=86400, description="For its guest to shut down.")] = 300.0
    power_off: Annotated[
        bool, Field(description="If it does not: switch it off, and ask nobody. Else the job asks.")
    ] = False
    commit: Annotated[bool, Field(description="Keep it there, once it runs.")] = False
    recovery_machine: Annotated[
        Literal["nothing", "machine", "machine-and-disks"],
        Field(description="What is removed of the one it leaves. Nothing: it is held, or protected onto."),
    ] = "nothing"
    reprotect: Annotated[bool, Field(description="Protect it in the first direction again.")] = False
    confirm: Annotated[list[_Sentence], Field(max_length=10)] = []  # noqa: RUF012 - copied by the framework


class FailbackUnconfirmed(SecondsiteError):
    """A sentence is missing."""

    code = "item.failback-unconfirmed"
    outcome = Outcome.REFUSED
    happened = "Nothing was done to {name}: this needs {count} sentences, and not all were said."
    cause = "Each says what cannot be undone by itself: {sentences}."
    action = "Say each, word for word (`--confirm SENTENCE`, several times)."


class ReprotectCheckView(View):
    """One thing looked at before; what fails says why and what to do."""

    name: str
    passed: bool
    required: bool = Field(description="False: it is only to be known.")
    cause: str
    action: str


class ReprotectPreviewView(View):
    """What protecting in the other direction would do, as it is preset."""

    direction: Direction
    provider: str
    target_provider: str
    policy_id: str | None = Field(description="Null: settings without a policy of the vault.")
    rpo_threshold_seconds: float
    retention: str
    mapping: MappingView | None = Field(description="Null: the machine is not told of yet.")
    old_disks_bytes: int | None = Field(
        description="Of the old disks that it would begin with; null: there are none, all is copied."
    )
    confirm: str = Field(description="What a person has to say to begin it; empty: nothing.")
    checks: list[ReprotectCheckView]


@router.get(PATH_ITEMS + "/{item}/reprotect")
def look_at_reprotect(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
    target_provider: _Target = None,
) -> ReprotectPreviewView:
    """What it would do and what is in the way at the old site; changes nothing."""
    found = place.read(services)
    if found.target_id is None:
        raise TargetElsewhere(name=found.name, gateway=found.target_name)
    target = _target(services, found, target_provider)
    machine = _machine(services, found.target_id, found.machine)
    turn = Turn(target=target, machine=machine, old=_machine(services, str(target.id), found.machine))
    seams = items_of(services).seams
    with services.database.read() as connection:
        policy_id, policy, _ = policy_of(connection, seams, found, turn)
        mapping, _ = mapping_of(connection, seams, found, turn)
    seen = _old_site(services, found) if target.id == found.source_id else None
    return ReprotectPreviewView(
        direction=Direction.FORTH if is_forth(found, target.id) else Direction.BACK,
        provider=found.target_name,
        target_provider=target.name,
        policy_id=policy_id,
        rpo_threshold_seconds=policy.rpo_threshold_seconds,
        retention=policy.retention,
        mapping=None if machine is None else MappingView.model_validate(mapping.model_dump()),
        old_disks_bytes=None if seen is None else seen.total_bytes,
        confirm=reversals.reversed_onto(found.name) if target.id == found.source_id else "",
        checks=[ReprotectCheckView(**msgspec.structs.asdict(one)) for one in (seen.checks if seen else ())],
    )


@router.post(PATH_ITEMS + "/{item}/reprotect", status_code=202, responses=ACCEPTED)
def reprotect_item(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ReprotectBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Protect a machine from the site that took it over, back to the one it came from or to another one."""
    given = turned(services, place.read(services), body, actor.name)
    check = checked(services, place, ItemOperation.REPROTECT)
    return start_job(services, actor, response, REPROTECT, given, Operation.ITEM_FAILOVER, check)


@router.post(PATH_ITEMS + "/{item}/completeMigration", status_code=202, responses=ACCEPTED)
def complete_item_migration(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: MigrationBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Keep a machine for good where it was taken over: nothing leads back from then on."""
    found = place.read(services)
    confirmations.require(found.name, body.confirm, reversals.migrated(found.name), FOR_GOOD)
    given = CompleteMigration(**job_input(found, actor.name), confirm=body.confirm)
    check = checked(services, place, ItemOperation.COMPLETE_MIGRATION)
    return start_job(services, actor, response, COMPLETE, given, Operation.ITEM_FAILOVER, check)


@router.post(PATH_ITEMS + "/{item}/failback", status_code=202, responses=ACCEPTED)
def fail_item_back(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: FailbackBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Move a machine back to its first site in order; on wish commit it there, and protect it as at first."""
    found = place.read(services)
    given = moved_home(found, body, actor.name)
    check = checked(services, place, ItemOperation.FAILBACK)
    wanted = sentences(given)
    if not set(wanted) <= {one.strip().rstrip(".") for one in body.confirm}:
        with services.database.read() as connection:
            check(connection)  # whether it is possible at all is told first
        listed = ", ".join(f'"{one}"' for one in wanted)
        raise FailbackUnconfirmed(name=found.name, count=len(wanted), sentences=listed)
    return start_job(services, actor, response, FAILBACK, given, Operation.ITEM_FAILOVER, check)


# what the routes share


def moved_home(item: Item, body: FailbackBody, by: str) -> Failback:
    """What the job is given; whether it was said is for who asks. Raises InputRefused."""
    if (body.reprotect or body.recovery_machine != NOTHING) and not body.commit:
        raise InputRefused(where="the body", why="what follows a commit needs `commit`")
    return Failback(
        **job_input(item, by),
        source=item.source_name,
        target=item.target_name,
        network=body.network,
        seconds=body.seconds,
        power_off=body.power_off,
        old_machine=body.old_machine,
        commit=body.commit,
        recovery=body.recovery_machine,
        reprotect=body.reprotect,
    )


def turned(services: Services, item: Item, body: ReprotectBody, by: str) -> Reprotect:
    """What the job is given. Raises GatewayUnknown, TargetIsSource, PolicyUnknown, ConfirmationMissing."""
    target = _target(services, item, body.target_provider)
    if target.id == item.source_id:
        confirmations.require(item.name, body.confirm, reversals.reversed_onto(item.name), WRITES)
    policy = body.policy
    mapping = None if body.mapping is None else WantedMapping.model_validate(body.mapping.model_dump())
    return Reprotect(
        **job_input(item, by),
        target=target.name,
        policy=policy and items_of(services).seams.policies.named(item.vault_id, policy),
        mapping=None if mapping is None else mapping.model_dump_json(by_alias=True),
        confirm=body.confirm,
    )


def _target(services: Services, item: Item, named: str | None) -> GatewayRef:
    """Raises GatewayUnknown, TargetIsSource."""
    if named is None or named == item.source_name:
        return GatewayRef(item.source_id, item.source_name)
    found = identity_of(services).gateways.get(named)
    if found.id == item.target_id:
        raise TargetIsSource(name=item.name, gateway=named)
    return GatewayRef(found.id, found.name)


def _machine(services: Services, gateway: str, machine: str) -> Machine | None:
    try:
        found = inventories_of(services)[0].find(gateway, Kind.MACHINE, machine)
    except ObjectUnknown:
        return None
    return msgspec.json.decode(found.detail, type=Machine)


def _old_site(services: Services, item: Item) -> ReversePreview | None:
    """None: nothing of it is left there. Raises GatewaySilent, or what the gateway says."""
    path = f"/v1/held/{quote(item.machine, safe='')}/reverse/preview"
    answer = calls_of(services).ask_now(item.source_id, path, seconds_max=ASK_SECONDS)
    try:
        return read_answer(item.source_name, answer, ReversePreview)
    except RemoteError as error:
        if error.body.get("code") in MACHINE_GONE:
            return None
        raise
