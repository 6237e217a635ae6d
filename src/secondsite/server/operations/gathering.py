"""How a step asks several gateways at once: each has its own answer, and none holds up the others' errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.server.calls.service import Calls, GatewaySilent
from secondsite.server.jobs.definitions import RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import LOOK_SECONDS, AnswerUnknown, Asked, call_of, read_answer

T = TypeVar("T")


def gather(
    calls: Calls, run: StepRun[Any], asks: Mapping[str, Asked], kind: type[T]
) -> dict[str, T | SecondsiteError] | RetryAfter:
    """What each gateway answered, or why it did not; until all are known, what the step returns.

    asks: by any key of the caller's. The answers are forgotten once all are known: a step that is tried again
    asks anew.
    """
    found: dict[str, T | SecondsiteError] = {}
    waiting: list[str] = []
    for key, asked in asks.items():
        call = call_of(run, asked)
        calls.put(asked.gateway, call, seconds_max=asked.seconds_max)
        try:
            answer = calls.result(call.id)
            if answer is None:
                waiting.append(asked.name)
            else:
                found[key] = read_answer(asked.name, answer, kind)
        except (RemoteError, GatewaySilent, AnswerUnknown) as error:
            # kept until the others are known: asked anew now, the last to answer would never be the last
            found[key] = error
    if waiting:
        names = ", ".join(sorted(set(waiting)))
        return RetryAfter(LOOK_SECONDS, f"waits for gateway {names}"[:200])
    calls.forget([call_of(run, asked).id for asked in asks.values()])
    return found


def key_for(*parts: str) -> str:
    """A short key of any texts, the same each time: what tells calls of one step apart."""
    return hashlib.blake2s("\0".join(parts).encode(), digest_size=8).hexdigest()
