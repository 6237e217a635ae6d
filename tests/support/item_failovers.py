"""The failovers of a made-up gateway: a claim, a boot, a removal and a commit each take a few looks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from secondsite.model import confirmations, reversals
from secondsite.model.failover import STANDING, FailoverEvent, FailoverState, after
from secondsite.transfer.calls import Call
from secondsite.transfer.reports import FailoverReport
from support.item_tests import Answered, refusal

LOOKS = 2
AT, BOOTED_AT = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:03+00:00"
_F, _E = FailoverState, FailoverEvent


@dataclass
class FakeFailovers:
    """By operation. last: the newest point; *_badly: so many times it is to go wrong."""

    writer: str = "gateway-a"
    last: int = 7
    epoch: int = 1
    claims_badly: int = 0
    boots_badly: int = 0
    commits_badly: int = 0
    rolls_back_badly: int = 0
    runs: bool = True
    differs: str = ""  # how the machine is not what was asked for
    needed: int = 0  # so many times its replica is not to be retired yet
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)  # claims asked for
    asked: list[str] = field(default_factory=list)  # what followed
    checked: list[dict[str, Any]] = field(default_factory=list)  # looks with settings
    settings: list[object] = field(default_factory=list)  # of those begun
    called_off: set[str] = field(default_factory=set)
    left: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of machines that are not the shop

    def _name(self, machine: str) -> str:
        return self.names.get(machine, "shop")

    def standing(self, machine: str) -> dict[str, Any] | None:
        found = [
            one
            for one in self.known.values()
            if one["machine"] == machine and FailoverState(one["state"]) in STANDING
        ]
        return found[0] if found else None

    def reports(self) -> list[FailoverReport]:
        """As the gateway reports them: the newest of each machine."""
        newest = {one["machine"]: one for one in self.known.values()}
        return [self._report(one) for one in newest.values()]

    def _report(self, one: dict[str, Any]) -> FailoverReport:
        names = {name: field.alias or name for name, field in FailoverReport.model_fields.items()}
        values = {name: one[alias] for name, alias in names.items() if alias in one}
        error = one.get("error") or {}
        differs = f"It is not what was asked for: memory: {self.differs}." if self.differs else ""
        values |= {"code": error.get("code", ""), "note": error.get("happened", differs)}
        return FailoverReport.model_validate(values)

    def answers(self, call: Call) -> bool:
        words = call.path.partition("?")[0].split("/")[2:]
        return words[0] == "failovers" or "failover" in words[2:]

    def answer(self, call: Call) -> Answered:
        path, _, query = call.path.partition("?")
        words = path.split("/")[2:]
        body = json.loads(call.body) if call.body else {}
        match call.method, words:
            case "GET", ["failovers"]:
                return 200, [self._verified(one) for one in self.known.values()]
            case "GET", ["failovers", operation]:
                return self._look(operation)
            case "GET", ["machines", machine, "failover"]:
                return self._preview(machine, dict(parse_qsl(query)))
            case "POST", ["machines", machine, "failover", "check"]:
                self.checked.append(body)
                return self._preview(machine, body)
            case "POST", ["machines", machine, "failover"]:
                return self.begin(machine, body)
            case "DELETE", ["machines", _machine, "failover"]:
                return self._call_off(body["operation"])
            case "POST", ["failovers", operation, verb]:
                return self.ask(operation, verb, body)
        raise AssertionError(f"nobody answers {call.method} {call.path}")

    def _verified(self, one: dict[str, Any]) -> dict[str, Any]:
        bad = {"name": "memory", "passed": not self.differs, "required": False, "cause": self.differs}
        return {**one, "verified": [{"name": "running", "passed": True}, bad]}

    def _preview(self, machine: str, asked: dict[str, str]) -> Answered:
        number = self.last if asked["point"].startswith("latest") else int(asked["point"])
        if not 1 <= number <= self.last:
            return 404, refusal("point.not-found", "not_found")
        bad = asked["network"] == "nowhere"
        check = {"name": "networks", "passed": not bad, "required": True}
        check |= {"cause": "the network nowhere does not exist", "action": "Make it."} if bad else {}
        return 200, {
            "machine": machine,
            "machineName": self._name(machine),
            "point": number,
            "pointAt": AT,
            "consistency": "CrashConsistent",
            "expectedLossSeconds": 12.5,
            "writer": self.writer,
            "confirm": confirmations.taken_over(self._name(machine), self.writer),
            "checks": [check],
        }

    def begin(self, machine: str, body: dict[str, Any]) -> Answered:
        """As the gateway's own; also for who sits at it."""
        operation = body["operation"]
        if operation in self.called_off:
            return 409, refusal("failover.called-off")
        one = self.known.get(operation)
        if one is not None and one["state"] != _F.FAILED.value:
            if one["state"] == _F.CLAIMED.value and one["error"] is not None:
                one |= {"error": None, "serial": one["serial"] + 1}
                self.left[operation] = LOOKS
            return 202, dict(one)
        if self.standing(machine) is not None:
            return 409, refusal("failover.exists")
        planned = body.get("kind") == "Planned"
        said = confirmations.stopped if planned else confirmations.taken_over
        if body["confirm"] != said(self._name(machine), self.writer):
            return 409, refusal("failover.confirmation-missing")
        number = self.last if body["point"].startswith("latest") else int(body["point"])
        self.begun.append(operation)
        self.settings.append(body.get("settings"))
        self.left[operation] = LOOKS
        self.known[operation] = {
            "id": operation,
            "machine": machine,
            "machineName": self._name(machine),
            "name": body.get("name") or self._name(machine),
            "kind": body.get("kind", "Unplanned"),
            "state": _F.INITIATED.value,
            "point": number,
            "pointAt": AT,
            "consistency": "CrashConsistent",
            "network": body["network"],
            "requestedAt": AT,
            "requestedBy": body["requestedBy"],
            "writer": self.writer,
            "expectedLossSeconds": 12.5,
            "steps": [{"name": "claimed in the store", "startedAt": AT}],
            "serial": 1,
            "error": None,
            "flattenedBytes": 0,
            "totalBytes": 0,
        }
        return 202, dict(self.known[operation])

    def _call_off(self, operation: str) -> Answered:
        if operation not in self.known:
            self.called_off.add(operation)
            return 404, refusal("failover.unknown", "not_found")
        return 200, dict(self.known[operation])

    def _look(self, operation: str) -> Answered:
        one = self.known.get(operation)
        if one is None:
            return 404, refusal("failover.unknown", "not_found")
        self.work(one)
        return 200, self._verified(one)

    def work(self, one: dict[str, Any]) -> None:
        """A little of what is under way."""
        if one["error"] is not None:
            return
        self.left[one["id"]] = self.left.get(one["id"], LOOKS) - 1
        if self.left[one["id"]] > 0:
            return
        self.left[one["id"]] = LOOKS
        if one.get("kept") == "Retiring":
            one["kept"] = "Retired"
        match FailoverState(one["state"]):
            case _F.INITIATED:
                self._claim(one)
            case _F.CLAIMED:
                if not self._fails(one, "boots_badly"):
                    self._move(one, _E.BOOTED, bootedAt=BOOTED_AT, userspaceAt=BOOTED_AT)
            case _F.CHANGING:
                self._move(one, _E.REMOVED, bootedAt=None)
            case _F.COMMITTING:
                one |= {"totalBytes": 1 << 30, "flattenedBytes": 1 << 29, "serial": one["serial"] + 1}
                if not self._fails(one, "commits_badly"):
                    self._move(one, _E.COMMITTED, flattenedBytes=1 << 30, endedAt=BOOTED_AT)
            case _F.ROLLING_BACK:
                if not self._fails(one, "rolls_back_badly"):
                    self.epoch += 1
                    self._move(one, _E.ROLLED_BACK, endedAt=BOOTED_AT)

    def _claim(self, one: dict[str, Any]) -> None:
        if self.claims_badly:
            self.claims_badly -= 1
            self._move(one, _E.REFUSED, error=refusal("failover.taken-over"))
            return
        self.epoch += 1
        self._move(one, _E.CLAIMED, epoch=self.epoch, claimedAt=AT, lossSeconds=20.0)

    def _fails(self, one: dict[str, Any], what: str) -> bool:
        left: int = getattr(self, what)
        if left:
            setattr(self, what, left - 1)
            one |= {"error": refusal("fabric.no-room", "unavailable"), "serial": one["serial"] + 1}
        return left > 0

    def ask(self, operation: str, verb: str, body: dict[str, Any]) -> Answered:
        """As the gateway's own; also for who sits at it."""
        one = self.known.get(operation)
        if one is None:
            return 404, refusal("failover.unknown", "not_found")
        self.asked.append(verb)
        if verb in ("retire", "complete-migration"):
            return self._keep(one, verb, body)
        state = FailoverState(one["state"])
        event, under_way, end = {
            "change-point": (_E.CHANGE_ASKED, _F.CHANGING, None),
            "commit": (_E.COMMIT_ASKED, _F.COMMITTING, _F.COMMITTED),
            "roll-back": (_E.ROLL_BACK_ASKED, _F.ROLLING_BACK, _F.ROLLED_BACK),
        }[verb]
        if state in (under_way, end):
            one |= {"error": None, "serial": one["serial"] + 1}
            return 202, dict(one)
        if verb == "change-point" and one["point"] == int(body["point"]) and one["error"] is None:
            return 202, dict(one)
        said = confirmations.kept if verb == "commit" else confirmations.lost
        if body["confirm"] != said(self._name(one["machine"])):
            return 409, refusal("failover.confirmation-missing")
        if verb == "commit" and not self.runs:
            return 409, refusal("failover.not-running")
        self._move(one, event, error=None)
        self.left[operation] = LOOKS
        if verb == "change-point":
            one["point"] = int(body["point"])
        return 202, dict(one)

    def _keep(self, one: dict[str, Any], verb: str, body: dict[str, Any]) -> Answered:
        said = reversals.retired if verb == "retire" else reversals.migrated
        if body["confirm"] != said(self._name(one["machine"])):
            return 409, refusal("failover.confirmation-missing")
        if verb == "retire" and self.needed:
            self.needed -= 1
            return 409, refusal("retire.needed")
        if verb == "complete-migration":
            one["kept"] = "MigrationCompleted"
        else:
            one["kept"], self.left[one["id"]] = "Retiring", LOOKS
        return 202, dict(one)

    def _move(self, one: dict[str, Any], event: FailoverEvent, **changes: Any) -> None:
        state = after(FailoverState(one["state"]), event, "shop").value
        one |= {"state": state, "serial": one["serial"] + 1, **changes}
