"""The planned stops of a made-up source gateway: shutdown, last changes and proof take a few looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secondsite.transfer.calls import Call
from support.item_tests import AT, Answered, refusal

LOOKS = 2
_NEXT = {"ShuttingDown": "LastChanges", "LastChanges": "Proving", "Proving": "Completed"}


@dataclass
class FakeStops:
    """By machine. stubborn: so often its guest does not shut down; taken: another site has claimed it."""

    stubborn: int = 0
    fails: int = 0
    last_point: Callable[[], int] = lambda: 7
    taken: Callable[[str], bool] = lambda _machine: False
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    runs_again: int = 0
    left: int = LOOKS
    tries: int = 0

    def answers(self, call: Call) -> bool:
        return call.path.endswith("/planned-stop")

    def stopped(self, machine: str) -> bool:
        return self.known.get(machine, {}).get("state") == "Completed"

    def answer(self, call: Call) -> Answered:
        machine = call.path.split("/")[3]
        one = self.known.get(machine)
        if call.method == "POST":
            return self._begin(machine, json.loads(call.body))
        if one is None:
            return 404, refusal("planned.unknown", "not_found")
        if call.method == "GET":
            self._work(one)
            return 200, dict(one)
        if self.taken(machine):
            return 409, refusal("failover.taken-over")
        if one["state"] != "Cancelled":
            one["state"] = "Cancelled"
            self.runs_again += 1
        return 200, dict(one)

    def _begin(self, machine: str, body: dict[str, Any]) -> Answered:
        one = self.known.get(machine)
        if one is not None and one["operation"] != body["operation"]:
            if one["state"] not in ("Completed", "Cancelled", "Failed"):
                return 409, refusal("planned.exists")
            one = None
        if one is not None and one["state"] in (*_NEXT, "Completed"):
            return 202, dict(one)
        self.asked.append(body)
        self.left, self.tries = LOOKS, self.tries + 1
        steps = [{"name": "shut down", "startedAt": f"try {self.tries}"}]
        self.known[machine] = {
            "operation": body["operation"],
            "machine": machine,
            "name": "shop",
            "state": "ShuttingDown",
            "requestedAt": AT,
            "steps": steps,
            "error": None,
            "powerOff": body["powerOff"],
        }
        return 202, dict(self.known[machine])

    def _work(self, one: dict[str, Any]) -> None:
        if one["state"] not in _NEXT or one["error"] is not None:
            return
        self.left -= 1
        if self.left > 0:
            return
        self.left = LOOKS
        if one["state"] == "ShuttingDown" and self.stubborn and not one["powerOff"]:
            self.stubborn -= 1
            one |= {"state": "Waiting", "note": "it did not shut down"}
        elif one["state"] == "LastChanges" and self.fails:
            self.fails -= 1
            one |= {"state": "Failed", "error": refusal("planned.differs", "damaged")}
        else:
            one["state"] = _NEXT[one["state"]]
            if one["state"] == "Completed":
                by = "power off" if one["powerOff"] else "agent"
                one |= {"point": self.last_point(), "pointAt": AT, "proved": True, "shutDownBy": by}
