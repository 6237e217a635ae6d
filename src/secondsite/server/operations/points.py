"""Taking a recovery point now, of a machine that a gateway protects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from secondsite.server.calls.service import Calls
from secondsite.server.jobs.definitions import Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked, ask_gateway

TAKE_POINT = "point.take"


class TakePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Of which machine, at which gateway."""

    gateway: str  # its id
    gateway_name: str
    machine: str  # its id
    machine_name: str


class PointTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What the source gateway says of it; `note`: why it is less consistent than was asked for."""

    number: int
    at: str
    consistency: str
    frozen_seconds: float | None = msgspec.field(name="frozenSeconds", default=None)
    note: str = ""


def take_point(calls: Calls) -> Definition[TakePoint]:
    """The job. Repeated, it takes another point: harmless, so it needs no undo."""

    def take(run: StepRun[TakePoint]) -> Result:
        given = run.input
        path = f"/v1/protections/{quote(given.machine, safe='')}/point"
        asked = Asked(given.gateway, given.gateway_name, "POST", path)
        taken = ask_gateway(calls, run, asked, PointTaken)
        if isinstance(taken, RetryAfter):
            return taken
        run.log(
            f"point {taken.number} of {taken.at}, {taken.consistency}"
            + (f": {taken.note}" * bool(taken.note))
        )
        return Done(taken)

    return Definition(
        kind=TAKE_POINT,
        version=1,
        input=TakePoint,
        steps=(Step("take", take),),
        title=lambda given: f"Take a recovery point of {given.machine_name}",
        locks=lambda given: (f"machine:{given.machine}",),
    )


def operations(calls: Calls) -> Sequence[Definition[Any]]:
    """Every kind of job that asks gateways."""
    return (take_point(calls),)
