"""How a step asks a gateway for something: it asks until there is an answer, and no thread waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.server.calls.service import Calls
from secondsite.server.jobs.definitions import RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.transfer.calls import Answer, Call

T = TypeVar("T")

# An answer wakes the job; this is for one that another server took, or whose wake was lost.
LOOK_SECONDS = 5.0


class AnswerUnknown(SecondsiteError):
    """A gateway said what this server does not understand."""

    code = "operation.answer-unknown"
    outcome = Outcome.FAILED
    happened = "Gateway {gateway} answered in a way this server does not understand: {why}."
    cause = "The two are of different versions."
    action = "Compare `secondsite --version` at both ends and update the older one; then retry the job."


@dataclass(frozen=True)
class Asked:
    """A request to a gateway's control API. gateway: its id; name: for people."""

    gateway: str
    name: str
    method: str
    path: str
    body: str = ""
    seconds_max: float = 180.0  # for the gateway to be back, and to do it
    key: str = ""  # tells the calls apart that one step makes


def ask_gateway(calls: Calls, run: StepRun[Any], asked: Asked, kind: type[T]) -> T | RetryAfter:
    """The gateway's answer as `kind`, or what the step returns until it is there.

    Raises what the gateway says (RemoteError), GatewaySilent, or AnswerUnknown.
    """
    call = call_of(run, asked)
    answer = calls.ask(asked.gateway, call, seconds_max=asked.seconds_max)
    if answer is None:
        return RetryAfter(LOOK_SECONDS, f"waits for gateway {asked.name}", asked=True)
    try:
        return read_answer(asked.name, answer, kind)
    except SecondsiteError:
        calls.forget([call.id])  # tried again, it is asked anew
        raise


def call_of(run: StepRun[Any], asked: Asked) -> Call:
    """The call that a step makes; asked again it is the same call.

    But not in a job that a person had tried again: what was taken back meanwhile is to be done, and gateways
    keep what they answered.
    """
    again = f"retry-{run.retries}" if run.retries else ""
    parts = (run.job, run.step, run.action.value, asked.key, again)
    return Call.model_validate(
        {
            "id": ":".join(part for part in parts if part),
            "method": asked.method,
            "path": asked.path,
            "body": asked.body,
            "job": run.job,
            "epoch": run.epoch,
        }
    )


def read_answer(gateway: str, answer: Answer, kind: type[T]) -> T:
    """What a gateway said, as `kind`. Raises RemoteError (its error) or AnswerUnknown."""
    try:
        if not answer.ok:
            raise RemoteError(msgspec.json.decode(answer.body, type=dict[str, Any]))
        return msgspec.json.decode(answer.body, type=kind)
    except JSON_ERRORS as error:
        raise AnswerUnknown(gateway=gateway, why=str(error)) from None
