"""What a person decides of a machine that is held at its source since it runs elsewhere, as jobs."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from secondsite.model import confirmations
from secondsite.model.failover import HeldState
from secondsite.server.items.errors import NotHeld
from secondsite.server.items.failovers import keep_held
from secondsite.server.items.records import lock_key
from secondsite.server.jobs.definitions import DONE, Definition, Done, OnFailure, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.transfer.reports import HeldReport

RELEASE, DISCARD = "item.held-release", "item.held-discard"
ASK_SECONDS = 60.0
POLL_SECONDS = 1.0
NOTHING = "nothing"


class Decide(msgspec.Struct, frozen=True, kw_only=True):
    """Of which item's machine. remove: of what is discarded, as the gateway takes it.

    epoch: of the claim that held the machine when it was decided; of a later one it decides nothing.
    gateway: that holds it; empty: the item's source, as long as that is one.
    """

    vault: str
    item: str
    machine: str
    name: str
    epoch: int = 0
    confirm: str = ""
    remove: str = NOTHING
    by: str = ""
    gateway: str = ""


class HeldStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A held machine as its gateway tells it."""

    machine: str
    name: str
    state: HeldState
    claimant: str = ""
    epoch: int = 0
    claimed_at: str = ""
    held_at: str
    isolated_at: str | None = None
    last_point: int | None = None
    last_point_at: str | None = None
    decided_at: str | None = None
    decided_by: str = ""
    final: bool = False
    note: str = ""

    def told(self) -> HeldReport:
        """As a report would tell it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in HeldReport.model_fields}
        return HeldReport.model_validate({**values, "state": self.state.value, "note": self.note[:4000]})


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to."""

    machine: str
    state: str
    claimant: str


def decisions(tools: Tools) -> tuple[Definition[Decide], Definition[Decide]]:
    """The jobs: to let it run again, and to shut it off for good."""
    return (
        _decision(tools, RELEASE, "release", "Let {name} run again at {where}"),
        _decision(tools, DISCARD, "discard", "Discard what {name} wrote last at {where}"),
    )


def _decision(tools: Tools, kind: str, verb: str, title: str) -> Definition[Decide]:
    return Definition(
        kind=kind,
        version=1,
        input=Decide,
        steps=(
            Step("gateway-connected", do=lambda run: _connected(tools, run), tries=3, weight=0.2),
            Step("decide", do=lambda run: _decide(tools, run, verb)),
            Step("done", do=lambda run: _carried_out(tools, run)),
        ),
        title=lambda given: title.format(name=given.name, where=given.gateway or "its source"),
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def _connected(tools: Tools, run: StepRun[Decide]) -> Result:
    return tools.hear_of(_where(tools, run)) or DONE


def _where(tools: Tools, run: StepRun[Decide]) -> str:
    return run.input.gateway or tools.item(run.input.item).source_name


def _decide(tools: Tools, run: StepRun[Decide], verb: str) -> Result:
    """Asked again after a lost answer it finds that it was decided so."""
    given, item = run.input, tools.item(run.input.item)
    source = tools.gateways.get(_where(tools, run))
    body: dict[str, Any] = {"epoch": given.epoch, "confirm": given.confirm, "by": given.by}
    if verb == "discard":
        body["remove"] = given.remove
    path = f"/v1/held/{quote(item.machine, safe='')}/{verb}"
    text = msgspec.json.encode(body).decode()
    asked = Asked(source.id, source.name, "POST", path, text, ASK_SECONDS, key=verb)
    status = ask_fresh(tools, run, asked, HeldStatus)
    if isinstance(status, RetryAfter):
        return status
    run.write(lambda connection: keep_held(connection, source.id, status.told()))
    return DONE


def _carried_out(tools: Tools, run: StepRun[Decide]) -> Result:
    """The gateway keeps trying by itself; the job says when it is so."""
    item = tools.item(run.input.item)
    source = tools.gateways.get(_where(tools, run))
    asked = Asked(source.id, source.name, "GET", "/v1/held", seconds_max=ASK_SECONDS, key="look")
    found = ask_fresh(tools, run, asked, list[HeldStatus])
    if isinstance(found, RetryAfter):
        return found
    status = next((one for one in found if one.machine == item.machine), None)
    if status is None:
        raise NotHeld(name=item.name, gateway=source.name)
    run.write(lambda connection: keep_held(connection, source.id, status.told()))
    if status.isolated_at is not None and status.state is not HeldState.HELD:
        return RetryAfter(POLL_SECONDS, status.note or f"waits for the host of {item.name}")
    return Done(Decided(machine=item.machine, state=status.state.value, claimant=status.claimant))


def confirm_decision(given: Decide, held: HeldReport, kind: str) -> None:
    """Raise ConfirmationMissing unless the sentence was said that its gateway asks for."""
    wanted, why = sentence_of(given.name, held, kind, given.remove)
    confirmations.require(given.name, given.confirm, wanted, why)


def sentence_of(name: str, held: HeldReport, kind: str, remove: str) -> tuple[str, str]:
    """What is said, and why."""
    if kind == RELEASE:
        return confirmations.released(name, held.claimant), confirmations.why_released(
            held.claimant, held.epoch
        )
    why = "It is shut off for good; what it wrote after its last point is on its disks alone."
    return confirmations.discarded(name, remove), why
