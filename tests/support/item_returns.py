"""What a made-up gateway does with a machine it lost: held, reversed onto, taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secondsite.model import reversals
from secondsite.transfer.calls import Call
from support.item_tests import Answered, refusal

LOOKS = 2
AT = "2026-01-01T00:00:00+00:00"


@dataclass
class FakeReturns:
    """Of one gateway. gone: nothing of the old machine is left; checks: what is in the way of a reversal."""

    held: dict[str, str] = field(default_factory=dict)  # machine -> its state
    gone: bool = False
    checks: list[dict[str, Any]] = field(default_factory=list)
    fails: int = 0
    known: dict[str, dict[str, Any]] = field(default_factory=dict)  # reversals, by machine
    begun: list[str] = field(default_factory=list)
    taken_back: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of machines that are not the shop
    ended: Callable[[str], None] = lambda _machine: None  # its own protection of a machine
    restored: Callable[[str], None] = lambda _machine: None
    points: Callable[[str], int | None] = lambda _machine: None  # the newest of the other direction here

    def _name(self, machine: str) -> str:
        return self.names.get(machine, "shop")

    def answers(self, call: Call) -> bool:
        return call.path.split("/")[2] == "held"

    def answer(self, call: Call) -> Answered:
        body = json.loads(call.body) if call.body else {}
        match call.method, call.path.split("/")[3:]:
            case "GET", [machine, "reverse", "preview"]:
                return self._preview(machine)
            case "GET", [machine, "reverse"]:
                return self._look(machine)
            case "POST", [machine, "reverse"]:
                return self._begin(machine, body)
            case "DELETE", [machine, "reverse"]:
                return self._take_back(machine)
        raise AssertionError(f"nobody answers {call.method} {call.path}")

    def _preview(self, machine: str) -> Answered:
        if machine not in self.held:
            return 404, refusal("machine.not-here", "not_found")
        if self.gone:
            return 409, refusal("reverse.machine-gone")
        return 200, {
            "machine": machine,
            "name": self._name(machine),
            "writer": "gateway-b",
            "epochFloor": 3,
            "totalBytes": 2 << 30,
            "confirm": reversals.reversed_onto(self._name(machine)),
            "checks": self.checks,
        }

    def _begin(self, machine: str, body: dict[str, Any]) -> Answered:
        found = self.known.get(machine)
        if found is not None and found["state"] != "TakenBack" and found["point"] is None:
            if found["operation"] != body["operation"]:
                return 409, refusal("reverse.exists")
            return 202, dict(found)
        if body["confirm"] != reversals.reversed_onto(self._name(machine)):
            return 409, refusal("failover.confirmation-missing")
        self.begun.append(body["operation"])
        self.left[machine] = LOOKS
        self.known[machine] = {
            "operation": body["operation"],
            "machine": machine,
            "name": self._name(machine),
            "state": "Adopting",
            "writer": "gateway-b",
            "requestedAt": AT,
            "point": None,
            "sentBytes": None,
            "error": None,
        }
        self.ended(machine)
        return 202, dict(self.known[machine])

    def _look(self, machine: str) -> Answered:
        found = self.look(machine)
        return (404, refusal("reverse.unknown", "not_found")) if found is None else (200, dict(found))

    def look(self, machine: str) -> dict[str, Any] | None:
        """A little of what is under way."""
        found = self.known.get(machine)
        if found is not None:
            self.left[machine] -= 1
            if self.left[machine] <= 0:
                self._get_on(machine, found)
        return found

    def _get_on(self, machine: str, found: dict[str, Any]) -> None:
        if found["state"] == "Adopting" and self.fails:
            self.fails -= 1
            found |= {"state": "Failed", "error": refusal("store.full", "unavailable")}
        elif found["state"] == "Adopting":
            found["state"], self.held[machine] = "Ready", "Reversed"
        elif found["state"] == "Ready" and found["point"] is None:
            point = self.points(machine)
            found |= {"point": point, "sentBytes": None if point is None else 4096}
        elif found["state"] == "TakingBack":
            found["state"], self.held[machine] = "TakenBack", "Held"
            self.restored(machine)

    def _take_back(self, machine: str) -> Answered:
        found = self.known.get(machine)
        if found is None:
            return 404, refusal("reverse.unknown", "not_found")
        if found["point"] is not None:
            return 409, refusal("reverse.complete")
        if found["state"] not in ("TakingBack", "TakenBack"):
            self.taken_back.append(found["operation"])
            found |= {"state": "TakingBack", "error": None}
            self.left[machine] = LOOKS
        return 202, dict(found)
