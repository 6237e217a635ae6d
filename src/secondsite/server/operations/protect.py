"""Protecting a machine as a job: looked at first, then wanted of its gateways, copied, finalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import SecondsiteError
from secondsite.model.failover import NOT_COPIED, HeldState
from secondsite.model.itemfailovers import STANDING, TAKEN_OVER
from secondsite.model.items import COUNTED, ProtectedEvent, ProtectedState
from secondsite.model.machines import Machine
from secondsite.server.inventory.service import Kind
from secondsite.server.items.errors import (
    DiskUnknown,
    GatewayRefused,
    ItemExists,
    MachineHeld,
    MachineNotProtectable,
    NothingLeft,
    RecoveryKeyUnproved,
    SameGateway,
    TakenOverMeanwhile,
)
from secondsite.server.items.failovers import has_claim, held_at
from secondsite.server.items.records import Item, lock_key
from secondsite.server.items.service import GatewayRef, NewItem
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.ending import ended_without_asking
from secondsite.server.operations.finalise import finalise
from secondsite.server.operations.tools import (
    LOOK_SECONDS,
    Tools,
    action_of,
    ask_fresh,
    change_once,
    tell_progress,
    wait_taken,
)
from secondsite.transfer.desired import WantedMapping

PROTECT = "item.protect"
# its copy at that gateway is another's, until a person decides otherwise
_ISOLATED = (HeldState.HELD.value, HeldState.REVERSED.value)
_FAILED = (ProtectedState.ENABLING_FAILED, ProtectedState.COPY_FAILED)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of a disk that the target's site has already."""

    path: str
    format: str


class Protect(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be protected, and how. disks None: all. mapping None: as the sites are mapped (JSON)."""

    vault: str  # its id
    machine: str
    name: str
    source: str  # a gateway's name
    target: str
    policy: str | None = None  # its id
    disks: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    mapping: str | None = None
    images: dict[str, Image] = {}


class Enabled(msgspec.Struct, frozen=True, kw_only=True):
    """The item that was made. had_replica: the target kept points of the machine before, or a claim."""

    item: str
    had_replica: bool


class Protected(msgspec.Struct, frozen=True, kw_only=True):
    """What the job came to."""

    item: str
    points: int


class KeyState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether somebody proved to hold a gateway's recovery key."""

    key_id: str
    proved: bool
    proved_at: str | None = None


class _Any(msgspec.Struct):
    """An answer of which only that it came counts."""


Run = StepRun[Protect]


def protect(tools: Tools) -> Definition[Protect]:
    """The job. Taken back, nothing of it is left, but a replica that was there before."""
    checks: dict[str, Callable[[Run], Result]] = {
        "gateways-connected": lambda run: _connected(tools, run),
        "machine-protectable": lambda run: _protectable(tools, run),
        "not-protected-yet": lambda run: _not_protected(tools, run),
        "target-keeps-a-store": lambda run: _keeps_store(tools, run),
        "recovery-key-proved": lambda run: _key_proved(tools, run),
        "policy-fits": lambda run: _policy_fits(tools, run),
    }
    copied = lambda run: _first_copy(tools, run)  # noqa: E731 - one line as its neighbours in the list
    return Definition(
        kind=PROTECT,
        version=1,
        input=Protect,
        steps=(
            *(Step(name, do=check, tries=3, weight=0.2) for name, check in checks.items()),
            Step("adopt-images", do=lambda run: _adopt(tools, run), undo=lambda run: _unadopt(tools, run)),
            Step("enable", do=lambda run: _enable(tools, run), undo=lambda run: _take_back(tools, run)),
            Step("taken-by-gateway", do=lambda run: _taken(tools, run), tries=1),
            Step("first-copy", do=copied, weight=20.0),
            Step(
                "finalise",
                do=lambda run: finalise(tools, run, _item(run)),
                # a mapping that is missing must not take back a first copy of hours
                on_failure=OnFailure.KEEP,
            ),
        ),
        title=lambda given: f"Protect {given.name} from {given.source} to {given.target}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
    )


# what is looked at first


def _connected(tools: Tools, run: Run) -> Result:
    if run.input.source == run.input.target:
        raise SameGateway(gateway=run.input.source)
    return tools.hear_of(run.input.source, run.input.target) or DONE


def _protectable(tools: Tools, run: Run) -> Result:
    given = run.input
    machine = machine_of(tools, given.source, given.machine)
    if machine.unprotectable:
        raise MachineNotProtectable(name=machine.name, why="; ".join(machine.unprotectable))
    check_disks(machine, given.disks, given.left_out)
    return DONE


def machine_of(tools: Tools, gateway: str, machine: str) -> Machine:
    """A machine as its site told it. Raises GatewayUnknown, ObjectUnknown."""
    found = tools.inventories.find(tools.gateways.get(gateway).id, Kind.MACHINE, machine)
    return msgspec.json.decode(found.detail, type=Machine)


def check_disks(machine: Machine, disks: tuple[str, ...] | None, left_out: tuple[str, ...]) -> None:
    """Raises DiskUnknown, NothingLeft."""
    known = [str(disk.id) for disk in machine.disks]
    for named in (*(disks or ()), *left_out):
        if named not in known:
            raise DiskUnknown(name=machine.name, disk=named, known=", ".join(known) or "none")
    if not set(known if disks is None else disks) - set(left_out):
        raise NothingLeft(name=machine.name)


def _not_protected(tools: Tools, run: Run) -> Result:
    found = tools.of_machine(run.input.vault, run.input.machine)
    if found is not None and found.state is not ProtectedState.UNPROTECTED:
        raise ItemExists(
            name=found.name, state=found.state.value, source=found.source_name, target=found.target_name
        )
    given = run.input
    with tools.items.database.read() as connection:
        held = held_at(connection, given.vault, given.source, given.machine)
    if held is not None and held.state in _ISOLATED:
        why = f"it is {held.state.lower()} there since {held.claimant} took it over in epoch {held.epoch}"
        raise MachineHeld(name=given.name, gateway=given.source, why=why)
    return DONE


def _keeps_store(tools: Tools, run: Run) -> Result:
    target = tools.gateways.get(run.input.target)
    # the gateway's own sentences where it has none: role missing
    asked = Asked(target.id, target.name, "GET", "/v1/test-failovers", seconds_max=60.0)
    answer = ask_fresh(tools, run, asked, list[Any])
    return answer if isinstance(answer, RetryAfter) else DONE


def _key_proved(tools: Tools, run: Run) -> Result:
    source = tools.gateways.get(run.input.source)
    asked = Asked(source.id, source.name, "GET", "/v1/recovery-key", seconds_max=60.0)
    answer = ask_fresh(tools, run, asked, KeyState)
    if isinstance(answer, RetryAfter):
        return answer
    if not answer.proved:
        raise RecoveryKeyUnproved(gateway=source.name)
    return DONE


def _policy_fits(tools: Tools, run: Run) -> Result:
    given = run.input
    if given.policy is None:
        return DONE
    with tools.items.database.read() as connection:
        policy, _ = tools.items.seams.policies.get(connection, given.policy)
    machine = machine_of(tools, given.source, given.machine)
    if policy.application_consistent_frequency_seconds is not None and not machine.agent:
        run.log(
            f"{machine.name} has no guest agent: its application-consistent points will be consistent "
            "as after a power cut",
            "warning",
        )
    return DONE


# what is done


def _adopt(tools: Tools, run: Run) -> Result:
    given = run.input
    if not given.images:
        return DONE
    target = tools.gateways.get(given.target)
    body = msgspec.json.encode({"images": given.images}).decode()
    path = f"/v1/adoptions/{quote(given.machine, safe='')}"
    answer = ask_fresh(tools, run, Asked(target.id, target.name, "POST", path, body), _Any)
    if isinstance(answer, RetryAfter):
        return answer
    run.log(f"gateway {target.name} begins the first copy with: {', '.join(sorted(given.images))}")
    return DONE


def _unadopt(tools: Tools, run: Run) -> Result:
    given = run.input
    if not given.images:
        return DONE
    target = tools.gateway(given.target)
    if target is None:
        return DONE
    path = f"/v1/adoptions/{quote(given.machine, safe='')}"
    asked = Asked(target.id, target.name, "DELETE", path, seconds_max=60.0)
    try:
        answer = ask_fresh(tools, run, asked, _Any)
    except SecondsiteError as error:
        run.log(f"the adoption at {target.name} was not cancelled: {error}", "warning")
        return DONE
    return answer if isinstance(answer, RetryAfter) else DONE


def _enable(tools: Tools, run: Run) -> Result:
    given = run.input
    source, target = tools.gateways.get(given.source), tools.gateways.get(given.target)
    new = NewItem(
        vault_id=given.vault,
        machine=given.machine,
        name=given.name,
        source=GatewayRef(source.id, source.name),
        target=GatewayRef(target.id, target.name),
        policy_id=given.policy,
        disks=given.disks,
        left_out=given.left_out,
        mapping=None if given.mapping is None else WantedMapping.model_validate_json(given.mapping),
    )

    def work(connection: Connection) -> Enabled:
        had_replica = tools.items.has_replica(connection, target.id, given.machine)
        had_replica = had_replica or has_claim(connection, target.id, given.machine)
        found = tools.items.of_machine(connection, given.vault, given.machine)
        if found is None or found.changed_by != action_of(run):
            found = tools.items.enable(connection, new, by=action_of(run))
        return Enabled(item=found.id, had_replica=had_replica)

    return Done(run.write(work))


def _take_back(tools: Tools, run: Run) -> Result:
    found = tools.of_machine(run.input.vault, run.input.machine)
    # another's: this job's write never came to be
    if found is None or not found.changed_by.startswith(f"{run.job}/"):
        return DONE
    if found.state is ProtectedState.UNPROTECTED:
        return DONE
    if found.state in STANDING | TAKEN_OVER:
        run.log(f"{found.name} is {found.state.value}: its protection is not taken back", "warning")
        return DONE
    had_replica = _had_replica(run)
    item = change_once(
        tools,
        run,
        found.id,
        ProtectedEvent.DISABLING,
        lambda _item: {"enabled": 0, "delete_replica": int(not had_replica)},
        force=True,
    )
    return ended_without_asking(tools, run, item)


def _had_replica(run: Run) -> bool:
    """What stood before must stay; not knowing it (the step was cut), nothing is deleted."""
    try:
        return run.output_of("enable", Enabled).had_replica
    except SecondsiteError:
        return True


def _item(run: Run) -> str:
    return run.output_of("enable", Enabled).item


def _taken(tools: Tools, run: Run) -> Result:
    found = wait_taken(tools, _item(run))
    return found if isinstance(found, RetryAfter) else DONE


def _first_copy(tools: Tools, run: Run) -> Result:
    item: Item = tools.item(_item(run))
    if item.state in _FAILED:
        why = item.refused or item.health_note or "it says no more"
        raise GatewayRefused(gateway=item.source_name, name=item.name, why=why)
    if item.state is ProtectedState.COPIED or item.state in COUNTED:
        points = item.points
        run.log(f"the first recovery point is at {item.target_name}")
        return Done(Protected(item=item.id, points=points))
    if item.state in STANDING | TAKEN_OVER:
        raise TakenOverMeanwhile(name=item.name, target=item.target_name, state=item.state.value)
    if item.health_code == NOT_COPIED:
        why = item.health_note.rstrip(".")
        raise MachineHeld(name=item.name, gateway=item.source_name, why=why)
    return RetryAfter(LOOK_SECONDS, tell_progress(run, item, "first copy"))
