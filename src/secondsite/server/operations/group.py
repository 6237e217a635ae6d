"""The same operation on several protected items, as one job with a child job an item.

The parent begins so many children a gateway at a time and judges their ends. What each child needs was looked
at before the parent began; it is looked at once more in the transaction a child begins in, since the machine
may have been worked on meanwhile. A child that cannot begin stands there as failed, with its reason. Tried
again, the parent has those tried again that failed, and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec
from sqlalchemy.engine import Connection

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.items import ItemOperation, OperationNotAllowed, check_operation
from secondsite.server.items.errors import ItemUnknown
from secondsite.server.jobs.definitions import Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.errors import LockHeld
from secondsite.server.jobs.records import Job
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.states import ENDED_BADLY, JobState
from secondsite.server.operations.tools import LOOK_SECONDS, Tools

GROUP = "item.group"
# A thousand children are looked at with every look of their parent.
MEMBERS_MAX = 1000
# Of the others every reason stands with its own job.
TOLD_MAX = 20


class GroupFailed(SecondsiteError):
    """Not all came to a good end."""

    code = "item.group-failed"
    outcome = Outcome.FAILED
    happened = "{failed} of {count} could not be done: {which}."
    cause = "Each has a reason of its own; those that were done stay done."
    action = (
        "See `secondsite job list --parent {job}` for each; put right what they name, then retry this job: "
        "it tries those that failed, and no other."
    )


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a group. gateway: the name of who does the work; input: JSON of the kind's input."""

    item: str
    name: str
    gateway: str
    kind: str
    input: str
    operations: tuple[ItemOperation, ...]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done with which. title: for people, without the number; parallel: at a gateway."""

    vault: str
    title: str
    members: tuple[Member, ...]
    parallel: int = 4


class GroupDone(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. warned, cancelled: names of those that ended with warnings, or were called off."""

    done: int
    warned: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()


def group(tools: Tools) -> Definition[Group]:
    """The job. What was done stays when something else failed."""
    return Definition(
        kind=GROUP,
        version=1,
        input=Group,
        steps=(Step("members", do=lambda run: _members(tools, run)),),
        title=lambda given: f"{given.title}: {len(given.members)} machines",
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def _members(tools: Tools, run: StepRun[Group]) -> Result:
    given = run.input
    children = run.children()
    live = Counter(one.gateway for one in given.members if _lives(children, one))
    for member in _due(run, children):
        if live[member.gateway] < given.parallel:
            live[member.gateway] += 1
            _begin(tools, run, member, tried=member.item in children)
    children = run.children()
    text = _progress(run, children)
    if any(_lives(children, one) for one in given.members) or any(True for _ in _due(run, children)):
        return RetryAfter(LOOK_SECONDS, text)
    return _ended(run, children)


def _lives(children: Mapping[str, Job], member: Member) -> bool:
    return member.item in children and children[member.item].live


def _due(run: StepRun[Group], children: Mapping[str, Job]) -> Iterator[Member]:
    """Those that have still to be begun, or to be tried again with the parent, in their order."""
    for member in run.input.members:
        child = children.get(member.item)
        if child is None or (child.state in ENDED_BADLY and child.parent_retries < run.retries):
            yield member


def _begin(tools: Tools, run: StepRun[Group], member: Member, *, tried: bool) -> None:
    if tried:
        run.retry_child(member.item)
        return
    given = msgspec.json.decode(member.input, type=run.registry.get(member.kind).input)

    def check(connection: Connection) -> None:
        found = tools.items.get(connection, member.item)
        for operation in member.operations:
            check_operation(found.name, found.state, found.facts, operation)

    try:
        run.start_child(member.kind, given, member.item, check=check)
    except (LockHeld, OperationNotAllowed, ItemUnknown) as error:
        run.start_child(member.kind, given, member.item, refused=error)


def _progress(run: StepRun[Group], children: Mapping[str, Job]) -> str:
    members = run.input.members
    states = Counter(children[one.item].state for one in members if one.item in children)
    done = sum(1.0 if not child.live else child.progress for child in children.values())
    parts = [f"{states[JobState.SUCCEEDED]} of {len(members)} done"]
    asking, failed = states[JobState.SUSPENDED], sum(states[state] for state in ENDED_BADLY)
    parts += [f"{failed} failed"] * bool(failed) + [f"{asking} wait for an answer"] * bool(asking)
    text = ", ".join(parts)
    run.progress(done / len(members), text)
    return text


def _ended(run: StepRun[Group], children: Mapping[str, Job]) -> Result:
    members = run.input.members
    ends: dict[JobState, list[Member]] = {}
    for member in members:
        ends.setdefault(children[member.item].state, []).append(member)
    failed = [one for state in ENDED_BADLY for one in ends.get(state, ())]
    if failed:
        told = [f"{one.name} ({_why(children[one.item])})" for one in failed[:TOLD_MAX]]
        told += [f"{len(failed) - TOLD_MAX} more"] * (len(failed) > TOLD_MAX)
        raise GroupFailed(failed=len(failed), count=len(members), which="; ".join(told), job=run.job)
    done = ends.get(JobState.SUCCEEDED, [])
    warned = tuple(one.name for one in done if children[one.item].warnings)
    cancelled = tuple(one.name for one in ends.get(JobState.CANCELLED, ()))
    for name in cancelled:
        run.log(f"{name}: called off", "warning")
    for name in warned:
        run.log(f"{name}: done, with warnings", "warning")
    result = GroupDone(done=len(done), warned=warned, cancelled=cancelled)
    return Done(result, warnings=len(warned) + len(cancelled))


def _why(child: Job) -> str:
    return child.error.happened.rstrip(".") if child.error is not None else child.state.value
