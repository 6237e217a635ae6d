"""What a reprotection looks at before it changes anything, each a step of its own."""

from __future__ import annotations

import secrets
from typing import Any

from secondsite.base.units import format_bytes
from secondsite.model.failover import FailoverState, KeptState
from secondsite.server.database.values import moment
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.errors import MachineNotProtectable, RecoveryKeyUnproved
from secondsite.server.items.records import Item
from secondsite.server.items.returnerrors import Migrated, TargetIsSource
from secondsite.server.items.turning import mapping_of
from secondsite.server.jobs.definitions import DONE, Done, Result, RetryAfter
from secondsite.server.operations.failoverparts import target_of
from secondsite.server.operations.protect import KeyState, machine_of
from secondsite.server.operations.reprotectparts import Old, Over, Run, Way, asked, turning, way_of
from secondsite.server.operations.returnchecks import old_copy, places, reaches, there
from secondsite.server.operations.tools import Tools, ask_fresh

COMMITTED, MIGRATED = FailoverState.COMMITTED.value, KeptState.MIGRATED.value


def direction(tools: Tools, run: Run) -> Result:
    """From where the machine runs, to where it came from; kept, since the item is turned round later."""
    item = tools.item(run.input.item)
    source = target_of(tools, item)
    wanted = run.input.target or item.source_name
    if wanted == source.name:
        raise TargetIsSource(name=item.name, gateway=source.name)
    target = tools.gateways.get(wanted)
    run.log(f"{item.name} will be protected from {source.name} to {target.name}")
    at = moment(run.clock.utc())
    return Done(Way(source=source.name, target=target.name, asked_at=at, operation=secrets.token_hex(16)))


def connected(tools: Tools, run: Run) -> Result:
    """Both ends were heard of lately."""
    return tools.hear_of(way_of(run).source, way_of(run).target) or DONE


def machine_there(tools: Tools, run: Run) -> Result:
    """Where it runs its gateway tells of it, which may take a while after its boot."""
    item, way = tools.item(run.input.item), way_of(run)
    found = there(tools, run, item, tools.gateways.get(way.source), way.asked_at)
    if isinstance(found, RetryAfter):
        return found
    if found.unprotectable:
        raise MachineNotProtectable(name=found.name, why="; ".join(found.unprotectable))
    return DONE


def keeps_store(tools: Tools, run: Run) -> Result:
    """The new target can keep a replica."""
    target = tools.gateways.get(way_of(run).target)
    # the gateway's own sentences where it has none: role missing
    answer = ask_fresh(tools, run, asked(target, "GET", "/v1/test-failovers", "store"), list[Any])
    return answer if isinstance(answer, RetryAfter) else DONE


def key_proved(tools: Tools, run: Run) -> Result:
    """Somebody holds the recovery key of the new source."""
    source = tools.gateways.get(way_of(run).source)
    answer = ask_fresh(tools, run, asked(source, "GET", "/v1/recovery-key", "key"), KeyState)
    if isinstance(answer, RetryAfter):
        return answer
    if not answer.proved:
        raise RecoveryKeyUnproved(gateway=source.name)
    return DONE


def way_open(tools: Tools, run: Run) -> Result:
    """The new source reaches its target."""
    way = way_of(run)
    found = reaches(tools, run, tools.gateways.get(way.source), tools.gateways.get(way.target))
    return found if isinstance(found, RetryAfter) else DONE


def old_site(tools: Tools, run: Run) -> Result:
    """What is left at the old site, and the failover whose replica is to be retired in the end."""
    item, way = tools.item(run.input.item), way_of(run)
    over = _failover(tools, run, item, tools.gateways.get(way.source))
    if isinstance(over, RetryAfter):
        return over
    if over.kept == MIGRATED:
        raise Migrated(name=item.name, gateway=way.source)
    if way.target != item.source_name:
        run.log(
            f"the copy of {item.name} at {item.source_name} stays held there; its first copy is a plain one"
        )
        return Done(Old(reversed_onto=False, failover=over.id))
    seen = old_copy(tools, run, item, tools.gateways.get(way.target), way.asked_at)
    if isinstance(seen, RetryAfter):
        return seen
    if seen is None:
        run.log(f"nothing of {item.name} is left at {way.target}: its first copy is a plain one", "warning")
        return Done(Old(reversed_onto=False, failover=over.id))
    run.log(f"the old disks at {way.target} are begun with ({format_bytes(seen.total_bytes)})")
    return Done(Old(reversed_onto=True, failover=over.id, confirm=seen.confirm))


def _failover(tools: Tools, run: Run, item: Item, source: Gateway) -> Over | RetryAfter:
    """The newest that brought the machine to where it runs. Raises what the gateway says."""
    found = ask_fresh(tools, run, asked(source, "GET", "/v1/failovers", "failovers"), list[Over])
    if isinstance(found, RetryAfter):
        return found
    mine = [one for one in found if one.machine == item.machine and one.state == COMMITTED]
    # by the gateway's own copy it may have been forgotten: then there is nothing to retire
    return mine[-1] if mine else Over(id="", machine=item.machine, state=COMMITTED)


def places_there(tools: Tools, run: Run) -> Result:
    """Each disk would find a place there at the next failover."""
    item = tools.item(run.input.item)
    turn, target = turning(tools, run, item), tools.gateways.get(way_of(run).target)
    with tools.items.database.read() as connection:
        mapping, _ = mapping_of(connection, tools.items.seams, item, turn)
    machine = machine_of(tools, way_of(run).source, item.machine)
    for note in places(tools, item, target, machine, mapping):
        run.log(note, "warning")
    return DONE
