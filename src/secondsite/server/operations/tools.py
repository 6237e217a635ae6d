"""What the steps of jobs on protected items share: they change an item once, and wait for its gateways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from secondsite.base.units import format_bytes
from secondsite.model.items import ProtectedEvent
from secondsite.server.calls.service import Calls
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.identity.gateways import Gateway, Gateways
from secondsite.server.inventory.service import Inventories
from secondsite.server.items.errors import GatewayNotConnected, GatewayRefused, GatewayTakesLong
from secondsite.server.items.records import Item
from secondsite.server.items.service import Items
from secondsite.server.jobs.definitions import RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway, call_of

T = TypeVar("T")

# A report wakes the job; this is for one that another server took, or whose wake was lost.
LOOK_SECONDS = 5.0
# So long after its own start a server has not heard of all its gateways again: the words of before are old by
# now, and while they find no server they beat every 10 s at most (`gateway.uplink.enrolkeeper`).
HEAR_SECONDS = 20.0
# A gateway asks for what is wanted within seconds of a change and reports that it took it.
TAKE_SECONDS_MAX = 180.0


@dataclass(frozen=True)
class Tools:
    """The parts of a server that jobs on items use."""

    items: Items
    gateways: Gateways
    inventories: Inventories
    calls: Calls
    started: float = float("-inf")  # the clock's monotonic seconds at the server's start

    def item(self, item: str) -> Item:
        """As it is now. Raises ItemUnknown."""
        with self.items.database.read() as connection:
            return self.items.get(connection, item)

    def of_machine(self, vault: str, machine: str) -> Item | None:
        """The vault's item of a machine."""
        with self.items.database.read() as connection:
            return self.items.of_machine(connection, vault, machine)

    def gateway(self, name: str) -> Gateway | None:
        """None: it was removed from the server."""
        try:
            return self.gateways.get(name)
        except GatewayUnknown:
            return None

    def connected(self, name: str) -> bool:
        """Whether it was heard of lately."""
        found = self.gateway(name)
        return (
            found is not None
            and found.contact is not None
            and found.contact.connected(self.items.clock.utc())
        )

    def hear_of(self, *names: str) -> RetryAfter | None:
        """None: all are connected. A server that just started waits for their next word.

        Raises GatewayUnknown, GatewayNotConnected.
        """
        for name in names:
            contact = self.gateways.get(name).contact
            if contact is not None and contact.connected(self.items.clock.utc()):
                continue
            last = "never" if contact is None else f"at {contact.at:%Y-%m-%d %H:%M:%S} UTC"
            error = GatewayNotConnected(gateway=name, last=last)
            if self.items.clock.monotonic() - self.started > HEAR_SECONDS:
                raise error
            return RetryAfter(1.0, f"waits for a word of gateway {name}: {error}")
        return None


def action_of(run: StepRun[Any]) -> str:
    """What an item's `changed_by` says of this action, so that, called again, it changes nothing."""
    return f"{run.job}/{run.step}/{run.action.value}"


def change_once(
    tools: Tools,
    run: StepRun[Any],
    item: str,
    event: ProtectedEvent,
    values: Callable[[Item], Mapping[str, object]],
    *,
    force: bool = False,
) -> Item:
    """A new revision of an item, made by this action of this step once, however often it is called."""

    def work(connection: Any) -> Item:
        found = tools.items.get(connection, item)
        if found.changed_by == action_of(run):
            return found
        changed = {**values(found), "changed_by": action_of(run)}
        return tools.items.change(connection, item, event, changed, force=force)

    made = run.write(work)
    for gateway in filter(None, (made.source_id, made.target_id)):
        tools.calls.bells.ring(gateway)  # it fetches what is wanted now, not after its next heartbeat
    return made


def wait_taken(tools: Tools, item: str) -> Item | RetryAfter:
    """The item, once its source gateway works towards the newest revision.

    Raises GatewayRefused, GatewayTakesLong.
    """
    found = tools.item(item)
    if found.refused:
        raise GatewayRefused(gateway=found.source_name, name=found.name, why=found.refused)
    if found.source_revision >= found.revision:
        return found
    waited = (tools.items.clock.utc() - found.changed_at).total_seconds()
    if waited > TAKE_SECONDS_MAX:
        raise GatewayTakesLong(gateway=found.source_name, name=found.name, seconds=TAKE_SECONDS_MAX)
    away = "" if tools.connected(found.source_name) else ", which is not connected"
    return RetryAfter(LOOK_SECONDS, f"waits until gateway {found.source_name}{away} has taken it")


def ask_fresh(tools: Tools, run: StepRun[Any], asked: Asked, kind: type[T]) -> T | RetryAfter:
    """As `ask_gateway`; the step called again later, by a job that is tried again, asks anew."""
    answer = ask_gateway(tools.calls, run, asked, kind)
    if not isinstance(answer, RetryAfter):
        tools.calls.forget([call_of(run, asked).id])
    elif not tools.connected(asked.name):
        return replace(answer, reason=f"{answer.reason}, which is not connected")
    return answer


def tell_progress(run: StepRun[Any], item: Item, what: str) -> str:
    """Have the job say how far a copy or comparison is; returns the same as a sentence."""
    copying = item.reported.copying if item.reported is not None else None
    if not copying:
        return f"waits for {what} at gateway {item.source_name}"
    done, total = int(copying["doneBytes"]), int(copying["totalBytes"])
    text = f"{what}: {format_bytes(done)}"
    if total:
        text += f" of {format_bytes(total)}"
        left = copying.get("secondsLeft")
        if left is not None:
            text += f", {_duration(float(left))} left"
    run.progress(done / total if total else 0.0, text)
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
