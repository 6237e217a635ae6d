"""The test failovers of a made-up gateway: a boot and a removal each take a few looks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from secondsite.transfer.calls import Call

LOOKS = 2
AT = "2026-01-01T00:00:00+00:00"
Answered = tuple[int, Any]


def refusal(code: str, outcome: str = "refused") -> dict[str, str]:
    return {"code": code, "outcome": outcome, "happened": f"made-up {code}", "cause": "-", "action": "-"}


@dataclass
class FakeTests:
    """By operation. last: the newest point; boots_badly, removals_fail: so many of them are to."""

    last: int = 7
    boots_badly: int = 0
    removals_fail: int = 0
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    called_off: set[str] = field(default_factory=set)
    unreadable: dict[str, dict[str, Any]] = field(default_factory=dict)  # of known ones
    removals: int = 0
    left: dict[str, int] = field(default_factory=dict)  # looks

    def standing(self, machine: str) -> dict[str, Any] | None:
        over = ("Failed", "CleanupCompleted")
        found = [one for one in self.known.values() if one["machine"] == machine and one["state"] not in over]
        return found[0] if found else None

    def answer(self, call: Call) -> Answered:
        path, _, query = call.path.partition("?")
        asked = dict(parse_qsl(query))
        words = path.split("/")[2:]
        match call.method, words[0], words[-1]:
            case "GET", "test-failovers", _:
                found = self.standing(asked.get("standing", ""))
                return 200, [] if found is None else [found]
            case "GET", "operations", operation:
                return self._look(operation)
            case "GET", "machines", "points":
                newest, below = int(asked["newest"]), int(asked.get("below", 10**9))
                numbers = [number for number in range(1, self.last + 1) if number < below]
                return 200, [self._point(number) for number in numbers[-newest:]]
            case "GET", "machines", "test-failover":
                return self._plan(asked)
            case "POST", "machines", "test-failover":
                return self._begin(words[1], json.loads(call.body))
            case "DELETE", "machines", "test-failover":
                return self._remove(words[1], json.loads(call.body))
        raise AssertionError(f"nobody answers {call.method} {call.path}")

    def _point(self, number: int) -> dict[str, Any]:
        sizes = {"sizeBytes": 2 << 30, "changedBytes": 1 << 20, "sentBytes": 1 << 19}
        times = {"at": AT, "askedAt": AT, "committedAt": AT}
        return {"number": number, "consistency": "CrashConsistent", "disks": ["vda"], **sizes, **times}

    def _plan(self, asked: dict[str, str]) -> Answered:
        number = self.last if asked["point"].startswith("latest") else int(asked["point"])
        if not 1 <= number <= self.last:
            return 404, refusal("point.not-found", "not_found")
        if asked["network"] == "nowhere":
            return 409, refusal("test-failover.prerequisites")
        return 200, {"point": self._point(number), "name": asked.get("name", "shop-test"), "network": "-"}

    def _begin(self, machine: str, body: dict[str, Any]) -> Answered:
        operation = body["operation"]
        if operation in self.called_off:
            return 409, refusal("test-failover.called-off")
        if operation not in self.known:
            if self.standing(machine) is not None:
                return 409, refusal("test-failover.exists")
            self.begun.append(operation)
            self.left[operation] = LOOKS
            self.known[operation] = {
                "id": operation,
                "machine": machine,
                "name": body["name"],
                "state": "Initiated",
                "point": int(body["point"]),
                "pointAt": AT,
                "consistency": "CrashConsistent",
                "network": body["network"],
                "requestedAt": AT,
                "steps": [{"name": "point exported", "startedAt": AT}],
                "error": None,
                "notes": "",
            }
        return 202, self.known[operation]

    def _look(self, operation: str) -> Answered:
        one = self.known.get(operation)
        if one is None:
            return 404, refusal("operation.unknown", "not_found")
        if one["state"] not in ("Initiated", "CleanupInitiated"):
            return 200, one
        self.left[operation] -= 1
        if self.left[operation] > 0:
            return 200, dict(one)
        if one["state"] == "CleanupInitiated":
            failed = self.removals_fail > 0
            self.removals_fail -= failed
            one["state"] = "CompletionFailed" if failed else "CleanupCompleted"
            one["error"] = refusal("fabric.busy") if failed else None
        elif self.boots_badly:
            self.boots_badly -= 1
            one |= {"state": "Failed", "error": refusal("fabric.no-room", "unavailable")}
        else:
            one |= {"state": "Completed", "bootedAt": "2026-01-01T00:00:04+00:00"}
        return 200, dict(one)

    def _remade(self, machine: str) -> dict[str, Any] | None:
        """One whose record cannot be read is among what nobody is told of."""
        for identity in list(self.unreadable):
            if self.unreadable[identity]["machine"] == machine:
                self.known[identity] = self.unreadable.pop(identity)
        return self.standing(machine)

    def _remove(self, machine: str, body: dict[str, Any]) -> Answered:
        operation = body.get("operation")
        one = self.known.get(operation) if operation else None
        if operation and one is None:
            self.called_off.add(operation)
        if not operation:
            one = self._remade(machine) if body.get("force") else self.standing(machine)
        if one is None or one["machine"] != machine:
            return 404, refusal("test-failover.none", "not_found")
        if one["state"] in ("Completed", "CompletionFailed"):
            self.removals += 1
            self.left[one["id"]] = LOOKS
            began = {"name": "machine removed", "startedAt": f"removal {self.removals}"}
            one |= {"state": "CleanupInitiated", "notes": body["notes"], "steps": [*one["steps"][:1], began]}
        return 202, dict(one)
